# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Get+forward.check.RULE: looks at everything that concerns one forward, sends a probe, and answers the diagnosis.

hop=QUBE result=ok|bad|hint|unknown cause=WORD text=sentence to the end of the line
verdict=open | verdict=QUBE:CAUSE                        (left out where neither is certain)
"""

from typing import Any

from portfwd.dom0.changes import qube_of
from portfwd.dom0.check import Case, diagnose, verdict
from portfwd.dom0.plan import Plan, Problem, is_over
from portfwd.dom0.probe import Prober, Trace, names_of
from portfwd.dom0.snapshot import Qube, Snapshot
from portfwd.dom0.status import StatusService
from portfwd.dom0.store import StoredForward
from portfwd.wire.entry import Entry, parse_words
from portfwd.wire.errors import RefusedError, shown
from portfwd.wire.values import Family, IPAddress, IPNetwork, QubeName, RuleId, Side, family_of, parse_address


class CheckService:
    """One per qubesd, beside the StatusService."""

    def __init__(self, status: StatusService) -> None:
        self._status, self._prober = status, Prober()

    async def check(self, vm: Any, untrusted_rule: str, untrusted_payload: str = "") -> str:
        """The diagnosis of one forward of a qube.

        The payload is empty, or `client=ADDRESS`: one who could not connect. Raises RefusedError for words that make
        no sense; a forward that is not there is a finding.
        """
        rule = RuleId(untrusted_rule)
        client = _client(untrusted_payload)
        survey = await self._status.survey(vm)
        qube = qube_of(vm, survey.snapshot)
        stored = next((one for one in qube.forwards if one.rule.id(qube.name) == rule), None)
        over = stored is not None and is_over(stored, qube, survey.snapshot)
        path = survey.planned.paths.get(rule, ()) if stored is not None and not over else ()
        problem = _problem(survey.planned, qube, rule)
        asked = self._status.named(names_of(path))
        paused = frozenset(name for name, hop in asked.items() if hop.is_paused())
        trace = Trace()
        if path and stored is not None and stored.rule.enabled:
            clients = {family_of(client): client} if client else _siblings(survey.snapshot, qube, stored, path)
            awake = {name: hop for name, hop in asked.items() if name not in paused}
            trace = await self._prober.trace(path, awake, clients)
        case = Case(
            qube=qube.name,
            stored=stored,
            over=over,
            problem=problem,
            path=path,
            above=(qube, *survey.snapshot.path(qube.name)),
            look=survey.look,
            trace=trace,
            paused=paused,
            refused=(await self._status.kept_out(survey)).get(rule, {}),
            client=client,
            client_qube=None if client is None else _owner(survey.snapshot, client),
        )
        findings = diagnose(case)
        lines = [str(finding) for finding in findings]
        word = verdict(findings)
        return "".join(f"{line}\n" for line in [*lines, *([f"verdict={word}"] if word else [])])


def _client(untrusted_payload: str) -> IPAddress | None:
    untrusted_line = untrusted_payload.removesuffix("\n")
    if not untrusted_line:
        return None
    if len(untrusted_line) > 64:
        raise RefusedError(f"{shown(untrusted_line)} is not client=ADDRESS")
    return parse_address(parse_words(untrusted_line, ("client",), ("client",))["client"])


def _problem(planned: Plan, qube: Qube, rule: RuleId) -> Problem | None:
    return next((p for p in planned.problems if (p.qube, p.rule) == (qube.name, rule)), None)


def _siblings(
    snapshot: Snapshot, qube: Qube, stored: StoredForward, path: tuple[tuple[QubeName, Entry], ...]
) -> dict[Family, IPAddress]:
    """For an internal rule the address of a qube behind the same net qube in each family: it has to be someone's."""
    found: dict[Family, IPAddress] = {}
    if path[0][1].side is not Side.DOWNSTREAM:
        return found
    for other in snapshot.qubes.values():
        if other.name == qube.name or not other.running or other.netvm != path[0][0]:
            continue
        for family in Family:
            address, source = other.address(family), stored.rule.srchost
            allowed = address is not None and (not isinstance(source, IPNetwork) or address in source)
            if address is not None and allowed:
                found.setdefault(family, address)
    return found


def _owner(snapshot: Snapshot, client: IPAddress) -> QubeName | None:
    family = family_of(client)
    return next((q.name for q in snapshot.qubes.values() if q.running and q.address(family) == client), None)
