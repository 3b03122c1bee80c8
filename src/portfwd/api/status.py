# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""How a forward fares: at each hop, and in all. Values only; does no I/O. Made by status_lines.py."""

import enum
import ipaddress
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from portfwd.api.words import NOT_KNOWN, Doors, HopState, doors_of
from portfwd.model.forward import ForwardRule
from portfwd.wire.values import (
    Family,
    HostName,
    IPAddress,
    Kind,
    PortRange,
    Proto,
    QubeName,
    RuleId,
    Side,
    Source,
    family_of,
    source_family,
)


class Listening(enum.StrEnum):
    """Whether a program of the qube listens where the forward leads."""

    YES = "yes"
    NO = "no"
    LOCAL = "local"
    UNKNOWN = "unknown"


class Outbound(enum.StrEnum):
    """What a sibling's own outbound rules make of its packets to an internal forward."""

    REFUSED = "refused"
    PARTLY = "partly"
    UNKNOWN = "unknown"


class State(enum.StrEnum):
    """How a forward fares, in one word."""

    OPEN = "open"
    NO_SERVER = "no-server"
    """Open on every hop, and nothing listens at the qube."""
    LOCAL_ONLY = "local-only"
    """Open on every hop, and the server listens on a loopback address only."""
    PENDING = "pending"
    """Some hop has not acknowledged yet."""
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


_PENDING = (HopState.PLANNED, HopState.WRITTEN, HopState.INCOMPLETE)
Way = tuple[Family, Proto]
Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface


@dataclass(frozen=True, slots=True)
class HopStatus:
    """One entry at one hop. Counts are None where the qube has not told them; `last` is in seconds."""

    hop: QubeName
    family: Family
    proto: Proto
    kind: Kind
    side: Side
    listen: PortRange
    source: Source
    to: IPAddress | None
    ports: PortRange | None
    expire: int | None
    state: HopState
    listening: Listening
    hits: int | None
    last: int | None
    packets: int | None
    bytes: int | None
    connections: int | None


@dataclass(frozen=True, slots=True)
class Fault:
    """The first thing in the way: at which hop, the word for it, and dom0's sentence if it has one."""

    hop: QubeName
    reason: str
    text: str = ""


@dataclass(frozen=True, slots=True)
class RuleStatus:
    """One forward. `doors`: whether clients can pass; `silent`: whose answer is missing to know that.

    `uplinks` are those of its entrance, `addresses` those among them that its clients can use.
    `note` is dom0's sentence on what the entrance leaves out of account, or ''.
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
        """The qube where clients come in, as far as the hops tell."""
        return self.hops[0].hop if self.hops else None

    @property
    def in_doubt(self) -> bool:
        """Whether it is to be shut, and not known to be."""
        return self.state in (State.PAUSED, State.PROBLEM) and self.doors is Doors.UNKNOWN and bool(self.silent)

    def total(self, count: str) -> int | None:
        """The sum of a count over all entries (hits: over those of the entrance); None when no qube tells it."""
        hops = [hop for hop in self.hops if count != "hits" or hop.hop == self.entrance]
        told = [number for hop in hops if (number := getattr(hop, count)) is not None]
        return sum(told) if told else None

    @property
    def last(self) -> int | None:
        """Seconds since the newest connection came in."""
        return min((hop.last for hop in self.hops if hop.last is not None), default=None)


def usable_addresses(
    rule: ForwardRule, families: Collection[Family], uplinks: Iterable[Interface]
) -> tuple[IPAddress, ...]:
    """The addresses that the rule's clients can use: of these families, and of their own network if they are in one."""
    only = source_family(rule.srchost)
    carried = [family for family in families if only in (None, family)]
    usable = [i for i in uplinks if family_of(i.ip) in carried and not i.ip.is_link_local]
    if only is not None:
        # mypy does not see that only a prefix has a family.
        near = [i for i in usable if i.network.overlaps(rule.srchost)]  # type: ignore[arg-type]
        usable = near or usable
    return tuple(dict.fromkeys(i.ip for i in usable))


def heard(hops: Sequence[HopStatus]) -> Listening:
    """Whether a server was found. Of several protocols and IP versions one is enough: most servers speak one."""
    told = {hop.listening for hop in hops if hop.kind is Kind.ACCEPT}
    for word in (Listening.YES, Listening.LOCAL):
        if word in told:
            return word
    return Listening.NO if told == {Listening.NO} else Listening.UNKNOWN


def judge(rule: ForwardRule, hops: Sequence[HopStatus]) -> tuple[State, Fault | None]:
    """How a forward fares whose entries stand on these hops, way by way from the entrance to the qube."""
    ways: dict[Way, HopStatus | None] = {}
    for hop in hops:
        way = (hop.family, hop.proto)
        if ways.setdefault(way, None) is None and hop.state is not HopState.APPLIED:
            ways[way] = hop
    broken = [hop for hop in ways.values() if hop is not None]
    if isinstance(rule.srchost, HostName):
        # A name with addresses of one family only is a healthy name.
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


_OF_SERVER = {
    Listening.YES: State.OPEN,
    Listening.LOCAL: State.LOCAL_ONLY,
    Listening.NO: State.NO_SERVER,
    Listening.UNKNOWN: State.SERVER_UNKNOWN,
}


def doors(hops: Iterable[HopStatus]) -> tuple[Doors, tuple[QubeName, ...]]:
    """Whether clients can pass these hops, and whose answer is missing to know it."""
    hops = tuple(hops)
    found = doors_of(((hop.family, hop.proto), hop.state) for hop in hops)
    silent = [hop.hop for hop in hops if found is Doors.UNKNOWN and hop.state in NOT_KNOWN]
    return found, tuple(dict.fromkeys(silent))


def _server(hops: Sequence[HopStatus]) -> tuple[State, Fault | None]:
    doors = [hop for hop in hops if hop.kind is Kind.ACCEPT]
    listening = heard(doors)
    state = _OF_SERVER[listening]
    return state, None if state is State.OPEN else Fault(doors[0].hop, state)
