# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Set+forward.check: looks at everything that concerns one forward, sends a probe, and answers the diagnosis."""

import contextlib
from collections.abc import Iterator
from typing import Any

from portfwd.api.diagnosis import CheckRequest, format_check
from portfwd.api.errors import ErrorWord, WordedError
from portfwd.dom0.asking.probing import Prober, Trace, names_of
from portfwd.dom0.diagnosis.judge import Case, diagnose
from portfwd.dom0.planning.plan import Plan, Problem, is_over
from portfwd.dom0.planning.snapshot import Qube, Snapshot
from portfwd.dom0.storage.store import StoredForward
from portfwd.dom0.usecases.caller import DOM0, ORDINARY, Caller
from portfwd.dom0.usecases.changes import qube_of
from portfwd.dom0.views.queries import StatusService, Survey
from portfwd.wire.entry import Entry
from portfwd.wire.values import Family, IPAddress, IPNetwork, QubeName, RuleId, Side, family_of

BUSY = "busy"
"""First word of the answer to who comes too late, for programs that look for it instead of the error's word."""


class CheckQueue:
    """The queue of probes, which go through the chains one at a time: few may wait, the next is refused at once.

    `most`: probes under way and waiting, in all; `each`: those of one caller.
    """

    def __init__(self, most: int = 4, each: int = 2) -> None:
        self._most, self._each = most, each
        self._taken: list[str] = []

    @contextlib.contextmanager
    def take(self, caller: str) -> Iterator[None]:
        """Hold a place. Raises WordedError."""
        if len(self._taken) >= self._most or self._taken.count(caller) >= self._each:
            text = f"{BUSY}: as many checks as may wait are under way; try again in some seconds"
            raise WordedError(ErrorWord.BUSY, text)
        self._taken.append(caller)
        try:
            yield
        finally:
            self._taken.remove(caller)


class CheckService:
    """One per qubesd, beside the StatusService."""

    def __init__(self, status: StatusService) -> None:
        self._status, self._prober, self._turns = status, Prober(), CheckQueue()

    async def check(self, vm: Any, untrusted_payload: str, caller: Caller = DOM0) -> str:
        """The diagnosis of one forward of a qube.

        Raises RefusedError for words that make no sense, and when it is not the caller's turn; a forward that is not
        there is a finding.
        """
        asked = CheckRequest.parse(untrusted_payload)
        del untrusted_payload
        with self._turns.take(caller.name):
            return await self._check(vm, asked.rule, asked.client, caller)

    async def _check(self, vm: Any, rule: RuleId, client: IPAddress | None, caller: Caller) -> str:
        survey = await self._status.survey(vm, caller)
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
            client_qube=None if client is None else _owner(survey, client),
        )
        return format_check(diagnose(case))


def _problem(planned: Plan, qube: Qube, rule: RuleId) -> Problem | None:
    return next((p for p in planned.problems if (p.qube, p.rule) == (qube.name, rule)), None)


def _siblings(
    snapshot: Snapshot, qube: Qube, stored: StoredForward, path: tuple[tuple[QubeName, Entry], ...]
) -> dict[Family, IPAddress]:
    """For an internal rule: in each family the address of a qube behind the same net qube, as the probe's source."""
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


def _owner(survey: Survey, client: IPAddress) -> QubeName | None:
    """The qube with that address, if the caller may read its outbound rules."""
    family = family_of(client)
    found = (q.name for q in survey.snapshot.qubes.values() if q.running and q.address(family) == client)
    return next((name for name in found if survey.caller.may(name, ORDINARY)), None)
