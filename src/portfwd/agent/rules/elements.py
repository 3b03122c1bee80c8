# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""What the elements of our sets and maps are made of, and what is to be known of a kind of entries. PURE."""

import ipaddress
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Generic, NamedTuple, Protocol, TypeVar

from portfwd.agent.rules.counters import Counts
from portfwd.agent.rules.skeleton import LATE_SECONDS
from portfwd.kernel.conntrack import Flow
from portfwd.kernel.sockets import Socket
from portfwd.wire.acknowledgement import Result
from portfwd.wire.answers.report import EntryReport
from portfwd.wire.entry import Entry
from portfwd.wire.values import (
    Family,
    HostName,
    IPAddress,
    IPNetwork,
    PortRange,
    Side,
    SourceWord,
)


class Network(NamedTuple):
    """A network attached to an interface."""

    interface: str
    prefix: IPNetwork


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The surroundings of the qube that decide, with its entries, what is open. `now` is in seconds of any clock.

    `ends` gives by the same clock when entries end (by entry key); for a key that is not in it, `expire` counts.
    """

    now: float
    near: tuple[Network, ...] = ()
    names: Mapping[HostName, tuple[IPAddress, ...]] = field(default_factory=dict)
    numbers: Mapping[str, int] = field(default_factory=dict)
    """The uplinks whose replies need a way of their own: interface name -> its number."""
    ends: Mapping[str, float] = field(default_factory=dict)
    occupied: frozenset[str] = frozenset()
    """The keys of entries whose port a local socket uses."""
    home: tuple[Network, ...] = ()
    """The only interfaces by which addresses of attached networks come in; no overlaps but of equal prefixes."""
    shut: frozenset[str] = frozenset()
    """Interfaces by which nothing may come in, although their kind would allow it."""

    def end_of(self, entry: Entry) -> float | None:
        """When an entry ends, by the clock of `now`."""
        return self.ends.get(entry.key, entry.expire)


class Element(NamedTuple):
    """One element: what it maps to ('' in a set), when it ends (as Surroundings.now), and the rules it serves."""

    data: str = ""
    expire: float | None = None
    comment: str = ""


Elements = dict[tuple[Family, str], dict[str, Element]]
"""(family, set or map name) -> key text -> element."""


Results = dict[str, Result]
"""How each entry fared, by its key."""
Own = TypeVar("Own", bound=Entry)


class Facts(Protocol):
    """What a report of entries is made from."""

    def sockets(self) -> Collection[Socket]:
        """The listening sockets of the qube. Raises OSError."""

    def counts(self, family: Family, names: Collection[str]) -> Counts | None:
        """What the elements of these sets and maps have counted; None when that cannot be read."""

    def connections_by_entry(self) -> Mapping[str, int] | None:
        """The open connections, by the key of each entry that lets them in; None when they cannot be counted."""


class Kind(ABC, Generic[Own]):
    """What the agent does for the entries of one kind."""

    chain: ClassVar[str]
    """The chain of the base firewall that its packets pass."""
    yields: ClassVar[bool] = False
    """Whether an entry stays shut while a program of the qube itself listens on one of its ports."""

    @abstractmethod
    def side(self, entry: Own) -> str:
        """The first part of the names of its sets and maps."""

    @abstractmethod
    def mark(self, entry: Own) -> int:
        """The bits of the connection mark of what comes in by an entry."""

    @abstractmethod
    def build(self, entries: Sequence[Own], around: Surroundings) -> tuple[Elements, Results]:
        """The elements of these entries, which stand in the order of their keys, and how each has fared."""

    @abstractmethod
    def leads(self, entry: Own, flow: Flow, interface: str | None, around: Surroundings) -> bool:
        """Whether a connection is one that an entry would take in from anyone; `interface`: the uplink, if known."""

    @abstractmethod
    def report(self, entries: Sequence[Own], facts: Facts) -> dict[str, EntryReport]:
        """What the qube tells of these entries. Raises OSError."""


def hindrance(entry: Entry, around: Surroundings) -> Result:
    """Why an entry opens nothing, as far as that is its own affair; OK for nothing."""
    end = around.end_of(entry)
    if end is not None and end <= around.now:
        return Result.EXPIRED
    if isinstance(entry.source, HostName) and not addresses_of(entry, around):
        return Result.UNRESOLVED
    return Result.OCCUPIED if entry.key in around.occupied else Result.OK


def addresses_of(entry: Entry, around: Surroundings) -> list[IPNetwork]:
    """The prefixes that an entry's source means now; none for the words any and neighbours."""
    if isinstance(entry.source, SourceWord):
        return []
    if isinstance(entry.source, HostName):
        found = around.names.get(entry.source, ())
        return [ipaddress.ip_network(address) for address in found if address.version == entry.family]
    return [entry.source]


def add(elements: Elements, family: Family, name: str, key: str, element: Element) -> None:
    """Put in one element."""
    elements.setdefault((family, name), {})[key] = element


def add_door(elements: Elements, side: str, ports: PortRange, owners: Sequence[Entry], around: Surroundings) -> None:
    """Add the elements that let the sources of these entries in at these ports."""
    family, proto = owners[0].family, owners[0].proto.value
    expire = _end(owners, around)
    words = {e.source for e in owners if isinstance(e.source, SourceWord)}
    klass = "any" if SourceWord.ANYONE in words else "near" if SourceWord.NEIGHBOURS in words else "src"
    way = f"{side}-inner" if owners[0].side is Side.INNER else side
    door = Element(f"goto {way}-{klass}", expire, " ".join(sorted(e.rule for e in owners))[:100])
    if len(ports) == 1:
        add(elements, family, f"{side}-port", f"{proto} . {ports.first}", door)
    else:
        add(elements, family, f"{side}-range", f"{ports} . {proto}", door)
    if side == "in" and expire is not None:
        add(elements, family, "in-ends", f"{ports.short} . {proto}", Element())
        add(elements, family, "in-late", f"{ports.short} . {proto}", Element(expire=expire + LATE_SECONDS))
    if klass == "src":
        prefixes = [prefix for e in owners for prefix in addresses_of(e, around)]
        for prefix in collapse(prefixes):
            add(elements, family, f"{side}-src", f"{ports.short} . {proto} . {prefix}", Element())


def _end(owners: Sequence[Entry], around: Surroundings) -> float | None:
    """When a port that several entries share must be looked at again.

    Same sources: it stays open as long as any of them. Different sources: it shuts with the first, and the agent opens
    it anew for the others, so that a dead agent lets nobody in whose time is over.
    """
    ends = [end for e in owners if (end := around.end_of(e)) is not None]
    if len({e.source for e in owners}) == 1:
        return max(ends) if len(ends) == len(owners) else None
    return min(ends, default=None)


def collapse(prefixes: Iterable[IPNetwork]) -> list[IPNetwork]:
    """The same addresses in prefixes that do not overlap: the kernel refuses overlapping intervals."""
    unique = list(prefixes)
    if len(unique) == 1:
        return unique
    v4 = [p for p in unique if isinstance(p, ipaddress.IPv4Network)]
    v6 = [p for p in unique if isinstance(p, ipaddress.IPv6Network)]
    return [*ipaddress.collapse_addresses(v4), *ipaddress.collapse_addresses(v6)]
