# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Judges why one forward does not work, and at which hop. PURE: (case) -> findings, and the verdict from these.

What a probe has met counts more than what anybody reports: a fault that did not stop it is only a hint, and what comes
behind the place where it was lost cannot be known from it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from portfwd.api.diagnosis import Cause, CheckResult, Diagnosis, Finding
from portfwd.api.status import HopState, Outbound, ProblemKind
from portfwd.dom0.asking.probing import HopTrace, Trace, WayKey, names_of
from portfwd.dom0.diagnosis import texts
from portfwd.dom0.planning.plan import Problem
from portfwd.dom0.planning.snapshot import Qube
from portfwd.dom0.storage.store import StoredForward
from portfwd.dom0.views.look import Look
from portfwd.model.forward import ForwardRule, ForwardType
from portfwd.wire.answers.probe import Answer, Count, RouteWord, Sent, Sight
from portfwd.wire.entry import Entry, Relay
from portfwd.wire.values import Family, IPAddress, IPNetwork, Proto, QubeName, Side, SourceWord, source_family


@dataclass(frozen=True, slots=True)
class Case:
    """All that is known about one forward of a qube.

    `stored` is None when there is none with that id. `path` is that of the plan, `above` the qube and its net qubes.
    `paused` are paused qubes; `refused` are qubes whose own rules keep them from an internal forward.
    `client` is who could not connect, if that is known.
    """

    qube: QubeName
    stored: StoredForward | None
    over: bool = False
    problem: Problem | None = None
    path: tuple[tuple[QubeName, Entry], ...] = ()
    above: tuple[Qube, ...] = ()
    look: Look = field(default_factory=lambda: Look({}, {}))
    trace: Trace = field(default_factory=Trace)
    paused: frozenset[QubeName] = frozenset()
    refused: Mapping[QubeName, Outbound] = field(default_factory=dict)
    client: IPAddress | None = None
    client_qube: QubeName | None = None


@dataclass(frozen=True, slots=True)
class _Fault:
    """A fault that may stop a way, and where along it: the index of its hop, and 1 where it stops answers."""

    finding: Finding
    place: int
    back: bool = False


def diagnose(case: Case) -> Diagnosis:
    """All findings, from the entrance to the qube; the first bad one is the reason."""
    return Diagnosis.of(_findings(case))


def _findings(case: Case) -> tuple[Finding, ...]:
    stop = _before_packets(case)
    if stop is not None:
        return (stop,)
    hops = names_of(case.path)
    hints = [*_hints(case, hops)]
    wrong = [*_wrong_client(case, hops)]
    if wrong:
        return (*wrong, *hints)
    ways: dict[WayKey, dict[QubeName, Entry]] = {}
    for name, entry in case.path:
        if case.client is None or entry.family == case.client.version:
            ways.setdefault((entry.family, entry.proto), {})[name] = entry
    if not ways and case.client is not None:
        return (_bad(hops[0], Cause.WRONG_SOURCE, texts.wrong_family(case.client)), *hints)
    found: dict[Finding, list[WayKey]] = {}
    served = {key for key in ways if _listening(case, key, hops[-1]) == "yes"}
    for key, entries in ways.items():
        for finding in _judge(case, hops, key, entries, others=bool(served - {key})):
            found.setdefault(finding, []).append(key)
    told = [_labelled(finding, keys, len(ways)) for finding, keys in found.items()]
    told = _only_the_worst(told)
    told += _fine(hops, told, case.trace)
    told.sort(key=lambda finding: hops.index(finding.hop))
    return (*told, *hints)


def _before_packets(case: Case) -> Finding | None:
    """A fault that makes every further look pointless."""
    if case.stored is None:
        return _bad(case.qube, Cause.GONE, texts.GONE)
    if case.over:
        return _bad(case.qube, Cause.EXPIRED, texts.EXPIRED)
    if not case.stored.rule.enabled:
        return _bad(case.qube, Cause.PAUSED, texts.PAUSED)
    if case.problem is not None and case.problem.kind is ProblemKind.NO_ADDRESS:
        return _no_address(case, case.stored.rule, case.problem)
    if case.problem is not None:
        return _bad(case.problem.at, Cause(case.problem.kind.value), case.problem.text)
    return None


def _no_address(case: Case, rule: ForwardRule, problem: Problem) -> Finding:
    """Name the outermost qube without the address family: a qube has IPv6 only if its net qube has it."""
    only = source_family(rule.srchost)
    families = list(Family) if only is None else [only]
    inner = case.above[:-1] if rule.forwardtype is ForwardType.EXTERNAL else case.above[:1]
    bare = (hop.name for hop in reversed(inner) if not any(hop.address(family) for family in families))
    at = next(bare, problem.at)
    return _bad(at, Cause.NO_ADDRESS, texts.no_address(at, families))


def _wrong_client(case: Case, hops: Sequence[QubeName]) -> Iterator[Finding]:
    """Findings about a client that the rule is not for, as far as dom0 can know."""
    if case.client is None or case.stored is None:
        return
    rule, entrance = case.stored.rule, hops[0]
    if isinstance(rule.srchost, IPNetwork):
        if case.client not in rule.srchost:
            yield _bad(entrance, Cause.WRONG_SOURCE, texts.wrong_source(case.client, rule.srchost))
    elif rule.srchost is SourceWord.NEIGHBOURS and rule.forwardtype is ForwardType.EXTERNAL:
        wide = {str(found.what) for found in case.look.ignored.get(entrance, ())}
        networks = [a.network for a in case.look.uplinks.get(entrance, ()) if str(a.network) not in wide]
        if networks and not any(case.client in network for network in networks):
            yield _bad(entrance, Cause.NOT_A_NEIGHBOUR, texts.not_a_neighbour(case.client, entrance))
    if case.client_qube is not None and case.refused.get(case.client_qube) is Outbound.REFUSED:
        yield _bad(case.client_qube, Cause.SENDER_REFUSED, texts.sender_refused(case.client_qube))


def _hints(case: Case, hops: Sequence[QubeName]) -> Iterator[Finding]:
    if case.stored is None:
        return
    rule = case.stored.rule
    for name, word in case.refused.items():
        if name != case.client_qube or word is not Outbound.REFUSED:
            yield Finding(name, Cause.SENDER_REFUSED, CheckResult.HINT, texts.sender_may_be_refused(name, word))
    families = {entry.family for _, entry in case.path}
    uplinks = [a for a in case.look.uplinks.get(hops[0], ()) if not a.is_link_local and a.version in families]
    everyone = rule.srchost is not SourceWord.NEIGHBOURS
    if rule.forwardtype is ForwardType.EXTERNAL and everyone and uplinks and all(_private(a.ip) for a in uplinks):
        yield Finding(hops[0], Cause.PRIVATE_UPLINK, CheckResult.HINT, texts.private_uplink(hops[0], uplinks[0].ip))
    upper = case.above[: len(hops)]
    if families == {Family.V4} and not isinstance(rule.srchost, IPNetwork) and any(q.ip6 for q in upper):
        bare = next((q.name for q in reversed(upper) if q.ip6 is None), None)
        if bare is not None:
            yield Finding(bare, Cause.NO_IPV6, CheckResult.HINT, texts.no_ipv6(bare))


def _private(address: IPAddress) -> bool:
    return not address.is_global


def _judge(
    case: Case, hops: Sequence[QubeName], key: WayKey, entries: Mapping[QubeName, Entry], *, others: bool
) -> Iterator[Finding]:
    """The findings of one way. `others`: a program listens there, but for another family or protocol."""
    faults = [fault for place, name in enumerate(hops) for fault in _faults(case, hops, place, key, entries[name])]
    passed, lost = _follow(case.trace, hops, key, entries)
    for fault in faults:
        idle = others and fault.finding.cause in (Cause.NO_SERVER, Cause.LOCAL_ONLY)
        stopped = not passed and (lost is None or fault.place <= lost.place)
        yield fault.finding if stopped and not idle else replace(fault.finding, result=CheckResult.HINT)
    # A hop that was ready to count and then reported nothing is as silent as one that never answered.
    told = {name for name, hop in case.trace.hops.items() if key in hop.counts}
    silent = next((name for name in hops if name not in told), None)
    if silent is not None and case.trace.sent is Sent.YES and silent not in case.paused:
        yield Finding(
            silent, Cause.NOT_PROBED, CheckResult.HINT if passed else CheckResult.UNKNOWN, texts.not_probed(silent)
        )
    elif lost is None and not passed and not faults:
        yield _not_probed(case.trace, hops[0], key, entries[hops[0]])
    if lost is None:
        return
    if lost.finding.cause is Cause.NOT_ARRIVED and _moved(case, lost.finding.hop):
        yield _bad(lost.finding.hop, Cause.RESTART_NEEDED, texts.restart_needed(lost.finding.hop))
    # A fault that explains the loss is the cause.
    elif not any(fault.place == lost.place for fault in faults):
        idle = others and lost.finding.cause is Cause.NO_SERVER
        yield replace(lost.finding, result=CheckResult.HINT) if idle else lost.finding


def _moved(case: Case, hop: QubeName) -> bool:
    """Whether a hop has to be restarted for a change in dom0, even if in the other family."""
    return any(case.look.state(name, entry) is HopState.RESTART for name, entry in case.path if name == hop)


def _faults(case: Case, hops: Sequence[QubeName], place: int, key: WayKey, entry: Entry) -> Iterator[_Fault]:
    """The faults of a hop that are seen without a packet."""
    name = hops[place]

    def fault(cause: Cause, text: str) -> _Fault:
        return _Fault(_bad(name, cause, text), place)

    if name in case.paused:
        yield fault(Cause.QUBE_PAUSED, texts.qube_paused(name))
        return
    hop = case.trace.hops.get(name)
    state = case.look.state(name, entry)
    dead = hop is not None and not hop.agent
    sight = None if hop is None else hop.sights.get(key)
    if sight is not None:
        moved = place + 1 < len(hops) and _moved(case, hops[place + 1])
        seen = _sight_faults(name, entry, sight, state)
        yield from (fault(cause, text) for cause, text in seen if not (moved and cause is Cause.NO_ROUTE))
    if dead:
        yield fault(Cause.AGENT_DEAD, texts.agent_dead(name))
    elif state is HopState.RESTART:
        # The hop before it has no way to the new address.
        yield _Fault(_bad(name, Cause.RESTART_NEEDED, texts.restart_needed(name)), max(0, place - 1))
    elif state is not HopState.APPLIED and (sight is None or state not in _SEEN):
        yield fault(*texts.of_state(name, state, entry))
    elif sight is not None and sight.base and not sight.door:
        yield fault(Cause.DOOR_MISSING, texts.door_missing(name))


_SEEN = (HopState.NO_ROUTE, HopState.NOT_FORWARDING)
"""Words of an agent on what a sight shows, too, and newer."""


def _sight_faults(name: QubeName, entry: Entry, sight: Sight, state: HopState) -> Iterator[tuple[Cause, str]]:
    if not sight.base:
        if state is not HopState.NO_BASE:
            yield Cause.NO_BASE, texts.no_base(name)
        return
    if not sight.rule:
        yield Cause.RULE_MISSING, texts.rule_missing(name, entry)
    if isinstance(entry, Relay):
        if not sight.forwarding:
            yield Cause.NOT_FORWARDING, texts.not_forwarding(name, entry.family)
        if sight.route is not RouteWord.VIF:
            yield Cause.NO_ROUTE, texts.no_route(name, entry, sight.route)
    elif sight.listening == "no":
        yield Cause.NO_SERVER, texts.no_server(name, entry)
    elif sight.listening == "local":
        yield Cause.LOCAL_ONLY, texts.local_only(name, entry)


def _follow(
    trace: Trace, hops: Sequence[QubeName], key: WayKey, entries: Mapping[QubeName, Entry]
) -> tuple[bool, _Fault | None]:
    """Whether the probe came through and back, and where it was lost."""
    seen = [hop.counts.get(key) if (hop := trace.hops.get(name)) is not None else None for name in hops]
    if seen[0] and seen[0].returned and seen[-1] and seen[-1].answer in (Answer.SYN_ACK, Answer.DATAGRAM):
        # Whatever a hop between these two says, or does not.
        return True, None
    counts: list[Count] = []
    for count in seen:
        if trace.sent is not Sent.YES or count is None:
            break
        counts.append(count)
    for place, count in enumerate(counts):
        cause = _loss(count, first=place == 0, target=place == len(hops) - 1)
        if cause is Cause.NOT_PROBED:
            return False, None
        if cause is not None:
            sight = trace.hops[hops[place]].sights.get(key)
            text = texts.of_loss(cause, hops, place, sight)
            return False, _Fault(_bad(hops[place], cause, text), place)
    if len(counts) < len(hops):
        return False, None
    return _follow_back(trace, hops, key, entries[hops[-1]], counts)


def _loss(count: Count, *, first: bool, target: bool) -> Cause | None:
    """Where in one hop the probe was lost on its way in."""
    if not count.arrived:
        return Cause.NOT_PROBED if first else Cause.NOT_ARRIVED
    if count.delivered if target else count.left:
        return None
    if count.answer in (Answer.RESET, Answer.UNREACHABLE):
        return Cause.REJECTED
    if count.passing:
        return Cause.NOT_FOR_IT if target else Cause.DROPPED
    if count.local:
        return Cause.DROPPED if target else Cause.NOT_TRANSLATED
    return Cause.NOT_ROUTED


def _follow_back(
    trace: Trace, hops: Sequence[QubeName], key: WayKey, door: Entry, counts: Sequence[Count]
) -> tuple[bool, _Fault | None]:
    """Whether the answer came back, from the target to the entrance, and where it was lost."""
    last = len(hops) - 1
    answer = counts[last].answer
    sight = trace.hops[hops[last]].sights.get(key)
    serving = sight is not None and sight.listening == "yes"

    def fault(cause: Cause, place: int) -> tuple[bool, _Fault]:
        return False, _Fault(_bad(hops[place], cause, texts.of_loss(cause, hops, place, sight)), place, back=True)

    if answer in (Answer.RESET, Answer.UNREACHABLE) and not (serving and len(door.listen) > 1):
        return fault(Cause.REFUSED if serving else Cause.NO_SERVER, last)
    if not counts[last].back:
        # A program need not answer an empty datagram.
        return (True, None) if door.proto is Proto.UDP else fault(Cause.SILENT, last)
    for place in range(last, -1, -1):
        if not counts[place].back:
            return fault(Cause.ANSWER_LOST, place)
        if not counts[place].returned:
            return fault(Cause.ANSWER_DROPPED, place)
    return True, None


def _not_probed(trace: Trace, entrance: QubeName, key: WayKey, entry: Entry) -> Finding:
    hop = trace.hops.get(entrance)
    sight = None if hop is None else hop.sights.get(key)
    if sight is not None and sight.client is None and entry.side is Side.DOWNSTREAM:
        return Finding(entrance, Cause.NO_CLIENT, CheckResult.UNKNOWN, texts.no_client(entrance))
    if trace.sent is Sent.NO_UPLINK:
        return _bad(entrance, Cause.NO_UPLINK, texts.no_uplink(entrance))
    if sight is not None and sight.client is None:
        # The other family could be probed.
        return Finding(entrance, Cause.NO_UPLINK, CheckResult.HINT, texts.no_uplink(entrance))
    text = texts.not_probed(entrance) if trace.sent is None else texts.cannot_probe(entrance)
    return Finding(entrance, Cause.NOT_PROBED, CheckResult.UNKNOWN, text)


def _listening(case: Case, key: WayKey, target: QubeName) -> str | None:
    hop = case.trace.hops.get(target)
    sight = None if hop is None else hop.sights.get(key)
    return None if sight is None else sight.listening


def _labelled(finding: Finding, keys: Sequence[WayKey], ways: int) -> Finding:
    """The finding, naming the ways that it concerns where these are not all."""
    if len(keys) == ways:
        return finding
    label = ", ".join(f"IPv{int(family)} {proto.value}" for family, proto in keys)
    return replace(finding, text=f"{label}: {finding.text}")


def _only_the_worst(findings: Sequence[Finding]) -> list[Finding]:
    """Merge equal findings of one hop: a fault for one way and a hint for another is a fault."""
    bad = {(finding.hop, finding.cause) for finding in findings if finding.result is CheckResult.BAD}
    return [f for f in findings if f.result is not CheckResult.HINT or (f.hop, f.cause) not in bad]


def _fine(hops: Sequence[QubeName], found: Sequence[Finding], trace: Trace) -> list[Finding]:
    """A finding for each hop that the probe has passed and that has no bad finding."""
    spoken = {finding.hop for finding in found if finding.result is not CheckResult.HINT}
    first = min((hops.index(f.hop) for f in found if f.result is CheckResult.BAD and f.hop in hops), default=len(hops))
    fine = []
    for place, name in enumerate(hops[:first]):
        hop: HopTrace | None = trace.hops.get(name)
        if name not in spoken and hop is not None and any(c.left or c.delivered for c in hop.counts.values()):
            target = place == len(hops) - 1
            fine.append(Finding(name, Cause.PASSED, CheckResult.OK, texts.passed(name, target=target)))
    return fine


def _bad(hop: QubeName, cause: Cause, text: str) -> Finding:
    return Finding(hop, cause, CheckResult.BAD, text)
