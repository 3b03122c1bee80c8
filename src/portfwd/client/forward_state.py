# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The state of a forward in one word, derived from dom0's status and plan. Values only; does no I/O."""

import enum
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from portfwd.api.plan import PlanAnswer
from portfwd.api.status import (
    NOT_KNOWN,
    Doors,
    Entrance,
    ForwardStatus,
    HopState,
    HopStatus,
    Interface,
    Outbound,
    PathStatus,
    Status,
    doors_of,
)
from portfwd.model.forward import ForwardRule
from portfwd.wire.answers.report import Listening
from portfwd.wire.entry import Accept
from portfwd.wire.values import (
    Family,
    HostName,
    IPAddress,
    IPNetwork,
    Proto,
    QubeName,
    RuleId,
    family_of,
    source_family,
)


class State(enum.StrEnum):
    """The state of a forward in one word."""

    OPEN = "open"
    NO_SERVER = "no-server"
    """Open on every hop, and nothing listens at the qube."""
    LOCAL_ONLY = "local-only"
    """Open on every hop, and the server listens on a loopback address only."""
    PENDING = "pending"
    """Some hop has not acknowledged yet, or its qube or the next one is still coming up."""
    PARTLY = "partly"
    """Open for one protocol or IP version, and not for another."""
    PAUSED = "paused"
    PROBLEM = "problem"
    UNCLEAR = "unclear"
    """Some hop answers what dom0 does not understand."""
    UNKNOWN = "unknown"
    """It was open, and some hop has not answered since: it may be open or not."""
    SERVER_UNKNOWN = "server-unknown"
    """Open on every hop; whether anything listens at the qube is not known."""

    @property
    def passes(self) -> bool:
        """Whether every hop lets clients pass."""
        return self in (State.OPEN, State.NO_SERVER, State.LOCAL_ONLY, State.SERVER_UNKNOWN)


_PENDING = (HopState.PLANNED, HopState.WRITTEN, HopState.INCOMPLETE, HopState.NO_ROUTE, HopState.NOT_FORWARDING)
_OF_SERVER = {
    Listening.YES: State.OPEN,
    Listening.LOCAL: State.LOCAL_ONLY,
    Listening.NO: State.NO_SERVER,
    None: State.SERVER_UNKNOWN,
}
NOT_UNDERSTOOD = "not-understood"
"""The reason for a hop whose words of a newer dom0 are not understood here, where that matters."""
FamilyProto = tuple[Family, Proto]


@dataclass(frozen=True, slots=True)
class Fault:
    """The first obstacle: its hop, its word, and dom0's sentence if there is one."""

    hop: QubeName
    reason: str
    text: str = ""


@dataclass(frozen=True, slots=True)
class RuleStatus:
    """One forward. `doors`: whether clients can pass; `silent`: the qubes whose answer is missing to know that.

    `uplinks` are those of its entrance, `addresses` those among them that its clients can use.
    `note` is dom0's sentence on what the entrance ignores, or ''.
    `siblings` are qubes behind the same net qube whose own outbound rules may keep them from an internal forward.
    """

    qube: QubeName
    number: int
    id: RuleId
    rule: ForwardRule
    hops: tuple[HopStatus, ...]
    state: State
    fault: Fault | None
    addresses: tuple[IPAddress, ...]
    uplinks: tuple[Interface, ...]
    siblings: Mapping[QubeName, Outbound]
    doors: Doors
    silent: tuple[QubeName, ...]
    note: str = ""

    @property
    def entrance(self) -> QubeName | None:
        """The qube where clients come in; None when no hop is known."""
        return self.hops[0].hop if self.hops else None

    @property
    def in_doubt(self) -> bool:
        """Whether it should be shut, and is not known to be."""
        return self.state in (State.PAUSED, State.PROBLEM) and self.doors is Doors.UNKNOWN and bool(self.silent)

    def total(self, count: str) -> int | None:
        """The sum of a count over all entries (hits: over those of the entrance); None when no qube reports it."""
        hops = [hop for hop in self.hops if count != "hits" or hop.hop == self.entrance]
        told = [number for hop in hops if (number := getattr(hop, count)) is not None]
        return sum(told) if told else None

    @property
    def last(self) -> int | None:
        """Seconds since the newest connection came in."""
        return min((hop.last for hop in self.hops if hop.last is not None), default=None)


def unconfirmed(silent: Sequence[QubeName]) -> str:
    """The sentence for qubes, at least one, that have not confirmed that a port is shut."""
    *others, last = silent
    if others:
        return f"{', '.join(others)} and {last} have not confirmed it: the port may stay open until they do"
    return f"{last} has not confirmed it: the port may stay open until it does"


def judged(status: Status) -> tuple[RuleStatus, ...]:
    """The forwards of the answer, in order."""
    return tuple(_judged(forward, status.entrances) for forward in status.forwards)


def judged_plan(plan: PlanAnswer, qube: QubeName, rules: Sequence[ForwardRule]) -> tuple[RuleStatus, ...]:
    """The state of each of these rules if the plan were carried out."""
    forwards = (
        ForwardStatus(qube, rule.id(qube), number, rule, plan.paths.get(rule.id(qube), PathStatus()))
        for number, rule in enumerate(rules)
    )
    return tuple(_judged(forward, {}) for forward in forwards)


def _judged(forward: ForwardStatus, entrances: Mapping[QubeName, Entrance]) -> RuleStatus:
    path = forward.path
    doors, silent = forward.doors, forward.silent
    if doors is None:
        # An older dom0 does not judge, and reports a paused or impossible forward as shut.
        stopped = path.paused is not None or path.obstacle is not None
        doors, silent = (Doors.SHUT, ()) if stopped else _doors(path.hops)
    state, fault = _state(forward, doors)
    entrance = entrances.get(path.hops[0].hop, Entrance()) if path.hops else Entrance()
    return RuleStatus(
        qube=forward.qube,
        number=forward.number,
        id=forward.id,
        rule=forward.rule,
        hops=path.hops,
        state=state,
        fault=fault,
        addresses=usable_addresses(forward.rule, {hop.entry.family for hop in path.hops}, entrance.uplinks),
        uplinks=entrance.uplinks,
        siblings=forward.siblings,
        doors=doors,
        silent=silent,
        note=entrance.note,
    )


def _state(forward: ForwardStatus, doors: Doors) -> tuple[State, Fault | None]:
    path = forward.path
    if path.paused is not None:
        return State.PAUSED, None
    if path.obstacle is not None:
        return State.PROBLEM, Fault(path.obstacle.hop, path.obstacle.kind, path.obstacle.text)
    if path.passed_over and doors is Doors.OPEN:
        state = _OF_SERVER[forward.server]
        return state, None if state is State.OPEN else Fault(forward.qube, state)
    found = judge(forward.rule, path.hops) if path.hops else (State.PENDING, Fault(forward.qube, HopState.PLANNED))
    if path.passed_over and (found[0].passes or not path.hops):
        return State.UNCLEAR, Fault(path.passed_over[0], NOT_UNDERSTOOD)
    return found


def usable_addresses(
    rule: ForwardRule, families: Collection[Family], uplinks: Iterable[Interface]
) -> tuple[IPAddress, ...]:
    """The addresses that the rule's clients can use: of these families, and of their own network if they are in one."""
    only, source = source_family(rule.srchost), rule.srchost
    carried = [family for family in families if only in (None, family)]
    usable = [i for i in uplinks if family_of(i.ip) in carried and not i.ip.is_link_local]
    if isinstance(source, IPNetwork):
        near = [i for i in usable if i.network.overlaps(source)]
        usable = near or usable
    return tuple(dict.fromkeys(i.ip for i in usable))


def heard(hops: Iterable[HopStatus]) -> Listening | None:
    """Whether a server was found. One protocol and IP version is enough, since most servers speak one."""
    told = {hop.listening for hop in hops if isinstance(hop.entry, Accept)}
    for word in (Listening.YES, Listening.LOCAL):
        if word in told:
            return word
    return Listening.NO if told == {Listening.NO} else None


def judge(rule: ForwardRule, hops: Sequence[HopStatus]) -> tuple[State, Fault | None]:
    """The state of a forward with entries on these hops, way by way from the entrance to the qube."""
    ways: dict[FamilyProto, HopStatus | None] = {}
    for hop in hops:
        way = (hop.entry.family, hop.entry.proto)
        if ways.setdefault(way, None) is None and hop.state is not HopState.APPLIED:
            ways[way] = hop
    broken = [hop for hop in ways.values() if hop is not None]
    if isinstance(rule.srchost, HostName):
        # A name may well have addresses of one family only.
        others = [hop for hop in broken if hop.state is not HopState.UNRESOLVED]
        broken = others if len(broken) < len(ways) else broken
    if not broken:
        return _server(hops)
    for state, words_of in (
        (State.PENDING, _PENDING),
        (State.UNKNOWN, (HopState.UNKNOWN,)),
        (State.UNCLEAR, (HopState.UNCLEAR,)),
    ):
        for hop in broken:
            if hop.state in words_of:
                return state, Fault(hop.hop, hop.state)
    return (State.PARTLY if len(broken) < len(ways) else State.PROBLEM), Fault(broken[0].hop, broken[0].state)


def _doors(hops: Sequence[HopStatus]) -> tuple[Doors, tuple[QubeName, ...]]:
    """Whether clients can pass these hops, and the qubes whose answer is missing to know it."""
    found = doors_of(((hop.entry.family, hop.entry.proto), hop.state) for hop in hops)
    silent = [hop.hop for hop in hops if found is Doors.UNKNOWN and hop.state in NOT_KNOWN]
    return found, tuple(dict.fromkeys(silent))


def _server(hops: Sequence[HopStatus]) -> tuple[State, Fault | None]:
    doors = [hop for hop in hops if isinstance(hop.entry, Accept)]
    listening = heard(doors)
    state = _OF_SERVER[listening]
    return state, None if state is State.OPEN else Fault((doors or hops)[-1].hop, state)
