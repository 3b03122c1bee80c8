# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""From entries to the elements of our sets and maps. PURE: (entries, surroundings) -> elements and a result per entry.

An entry that is expired, not resolved or at odds with another opens nothing; its result says why.
"""

import bisect
import functools
import ipaddress
import operator
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from portfwd.agent.rules.skeleton import LATE_SECONDS, RELAY_SIDES
from portfwd.wire.acknowledgement import Result
from portfwd.wire.entry import Entry
from portfwd.wire.limits import PORT_MAX, SHIFTED_ELEMENTS_MAX, SHIFTED_PORTS_MAX
from portfwd.wire.values import (
    Family,
    HostName,
    IPAddress,
    IPNetwork,
    Kind,
    PortRange,
    Proto,
    Side,
    SourceWord,
)

_REMEMBERED = 1 << 15
"""Relays whose elements are kept: more than one of each port, family and protocol is not usual."""
_SHIFTED_REMEMBERED = SHIFTED_ELEMENTS_MAX // SHIFTED_PORTS_MAX
"""The same of those with an element for each port: no more of them than may stand."""


class Network(NamedTuple):
    """A network attached to an interface."""

    interface: str
    prefix: IPNetwork


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the qube knows beside its entries. `now` is in seconds of any clock.

    `ends` says by the same clock when entries end (by entry key); where it is silent, `expire` counts.
    """

    now: float
    near: tuple[Network, ...] = ()
    names: Mapping[HostName, tuple[IPAddress, ...]] = field(default_factory=dict)
    numbers: Mapping[str, int] = field(default_factory=dict)
    """The uplinks whose replies need a way of their own: interface name -> its number."""
    ends: Mapping[str, float] = field(default_factory=dict)
    occupied: frozenset[str] = frozenset()
    """The keys of entries whose port the qube itself uses."""
    home: tuple[Network, ...] = ()
    """Where the addresses of attached networks come in, and nowhere else; without overlaps but of one prefix."""
    shut: frozenset[str] = frozenset()
    """Interfaces by which nothing may come in, although their kind alone would allow it."""

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


def build(entries: Iterable[Entry], around: Surroundings) -> tuple[Elements, dict[str, Result]]:
    """All elements that the entries want, and how each entry fared (by entry key)."""
    elements: Elements = {}
    results: dict[str, Result] = {}
    accepts: list[Entry] = []
    taken: dict[tuple[Family, str, Proto], list[tuple[int, int]]] = {}
    shifted = 0
    relays: dict[Family, dict[str, dict[str, Element]]] = {family: {} for family in Family}
    for entry in sorted(entries, key=operator.attrgetter("key")):
        if entry.shifted > min(SHIFTED_PORTS_MAX, SHIFTED_ELEMENTS_MAX - shifted):
            results[entry.key] = Result.REFUSED
            continue
        results[entry.key] = result = _judge(entry, around, taken)
        if result is not Result.OK:
            continue
        shifted += entry.shifted
        if entry.kind is Kind.ACCEPT:
            accepts.append(entry)
            continue
        found = around.names.get(entry.source, ()) if isinstance(entry.source, HostName) else ()
        places = relays[entry.family]
        for name, key, element in (_shifted_relay if entry.shifted else _relay)(entry, around.end_of(entry), found):
            places.setdefault(name, {})[key] = element
    elements |= {(family, name): keys for family, places in relays.items() for name, keys in places.items()}
    for family in Family:
        for proto in Proto:
            mine = [e for e in accepts if e.family is family and e.proto is proto]
            for ports, owners in _segments(mine):
                _add_door(elements, "in", ports, owners, around)
    _add_near(elements, around)
    _add_home(elements, around)
    _add_via(elements, around)
    return elements, results


def _judge(entry: Entry, around: Surroundings, taken: dict[tuple[Family, str, Proto], list[tuple[int, int]]]) -> Result:
    end = around.end_of(entry)
    if end is not None and end <= around.now:
        return Result.EXPIRED
    if isinstance(entry.source, HostName) and not addresses_of(entry, around):
        return Result.UNRESOLVED
    if entry.key in around.occupied:
        return Result.OCCUPIED
    if entry.kind is Kind.RELAY:
        held = taken.setdefault((entry.family, RELAY_SIDES[entry.side], entry.proto), [])
        # What is held never overlaps, so only the neighbours in port order can be in the way.
        place = bisect.bisect_right(held, (entry.listen.last, PORT_MAX))
        if place and held[place - 1][1] >= entry.listen.first:
            return Result.CLASH
        held.insert(place, (entry.listen.first, entry.listen.last))
    return Result.OK


def addresses_of(entry: Entry, around: Surroundings) -> list[IPNetwork]:
    """The prefixes that an entry's source means at this moment; none for the words any and neighbours."""
    if isinstance(entry.source, SourceWord):
        return []
    if isinstance(entry.source, HostName):
        found = around.names.get(entry.source, ())
        return [ipaddress.ip_network(address) for address in found if address.version == entry.family]
    return [entry.source]


def _add(elements: Elements, family: Family, name: str, key: str, element: Element) -> None:
    elements.setdefault((family, name), {})[key] = element


def _made(entry: Entry, end: float | None, found: tuple[IPAddress, ...]) -> list[tuple[str, str, Element]]:
    """The elements of one relay: set or map, key, element. Remembered, since most entries stay as they are.

    `found` are the addresses of its source where that is a name.
    """
    elements: Elements = {}
    names = {entry.source: found} if isinstance(entry.source, HostName) else {}
    _add_relay(elements, entry, Surroundings(0, names=names, ends={} if end is None else {entry.key: end}))
    return [(name, key, element) for (_, name), keys in elements.items() for key, element in keys.items()]


_relay = functools.lru_cache(maxsize=_REMEMBERED)(_made)
_shifted_relay = functools.lru_cache(maxsize=_SHIFTED_REMEMBERED)(_made)


def _add_relay(elements: Elements, entry: Entry, around: Surroundings) -> None:
    side = RELAY_SIDES[entry.side]
    _add_door(elements, side, entry.listen, [entry], around)
    if entry.ports is None or entry.to is None:
        raise ValueError("a relay entry always has a destination")
    proto, listen, ports, to = entry.proto.value, entry.listen, entry.ports, entry.to
    if len(listen) == 1:
        _add(elements, entry.family, f"{side}-to", f"{proto} . {listen.first}", Element(f"{to} . {ports.first}"))
    elif len(ports) == 1:
        _add(elements, entry.family, f"{side}-to-one", f"{listen} . {proto}", Element(f"{to} . {ports.first}"))
    elif ports == listen:
        _add(elements, entry.family, f"{side}-to-keep", f"{listen} . {proto}", Element(str(to)))
    else:
        # One dnat to a range sends all to its first port, so a shifted range is written out port by port.
        for offset in range(len(listen)):
            key = f"{proto} . {listen.first + offset}"
            _add(elements, entry.family, f"{side}-to", key, Element(f"{to} . {ports.first + offset}"))


def _add_door(elements: Elements, side: str, ports: PortRange, owners: list[Entry], around: Surroundings) -> None:
    """Let the sources of these entries in at these ports."""
    family, proto = owners[0].family, owners[0].proto.value
    expire = _end(owners, around)
    words = {e.source for e in owners if isinstance(e.source, SourceWord)}
    klass = "any" if SourceWord.ANYONE in words else "near" if SourceWord.NEIGHBOURS in words else "src"
    way = f"{side}-inner" if owners[0].side is Side.INNER else side
    door = Element(f"goto {way}-{klass}", expire, " ".join(sorted(e.rule for e in owners))[:100])
    if len(ports) == 1:
        _add(elements, family, f"{side}-port", f"{proto} . {ports.first}", door)
    else:
        _add(elements, family, f"{side}-range", f"{ports} . {proto}", door)
    if side == "in" and expire is not None:
        _add(elements, family, "in-ends", f"{ports.short} . {proto}", Element())
        _add(elements, family, "in-late", f"{ports.short} . {proto}", Element(expire=expire + LATE_SECONDS))
    if klass == "src":
        prefixes = [prefix for e in owners for prefix in addresses_of(e, around)]
        for prefix in collapse(prefixes):
            _add(elements, family, f"{side}-src", f"{ports.short} . {proto} . {prefix}", Element())


def _end(owners: list[Entry], around: Surroundings) -> float | None:
    """When a door shared by several entries must be looked at again.

    Same sources: it stays open as long as any of them. Different sources: it shuts with the first, and the agent opens
    it anew for the others, so that a dead agent leaves nobody in whose time has come.
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


def _segments(entries: list[Entry]) -> Iterator[tuple[PortRange, list[Entry]]]:
    """Cut overlapping listen ranges into pieces that do not overlap, each with the entries that cover it."""
    edges: dict[int, tuple[list[Entry], list[Entry]]] = {}
    for entry in entries:
        edges.setdefault(entry.listen.first, ([], []))[0].append(entry)
        edges.setdefault(entry.listen.last + 1, ([], []))[1].append(entry)
    active: list[Entry] = []
    start = 0
    for edge in sorted(edges):
        if active:
            yield PortRange(start, edge - 1), list(active)
        begins, ends = edges[edge]
        active = [e for e in active if e not in ends] + begins
        start = edge


def _add_near(elements: Elements, around: Surroundings) -> None:
    """The neighbour networks, only where some relay asks for them."""
    for family in Family:
        doors = [d for name in ("up-port", "up-range") for d in elements.get((family, name), {}).values()]
        if not any(door.data == "goto up-near" for door in doors):
            continue
        interfaces = {network.interface for network in around.near}
        for interface in sorted(interfaces):
            prefixes = [n.prefix for n in around.near if n.interface == interface and n.prefix.version == family]
            for prefix in collapse(prefixes):
                _add(elements, family, "near", f'"{interface}" . {prefix}', Element())


def _add_home(elements: Elements, around: Surroundings) -> None:
    """Whose addresses belong where, and what is shut altogether, only where something may come in by a relay."""
    for family in Family:
        if not any((family, f"{side}-{shape}") in elements for side in ("up", "down") for shape in ("port", "range")):
            continue
        home = [network for network in around.home if network.prefix.version == family]
        for prefix in collapse(network.prefix for network in home):
            _add(elements, family, "attached", str(prefix), Element())
        for interface in sorted({network.interface for network in home}):
            for prefix in collapse(network.prefix for network in home if network.interface == interface):
                _add(elements, family, "home", f'"{interface}" . {prefix}', Element())
        for interface in sorted(around.shut):
            _add(elements, family, "shut", f'"{interface}"', Element())


def _add_via(elements: Elements, around: Surroundings) -> None:
    """The numbered uplinks, only where something may come in by them."""
    for family in Family:
        if any((family, f"{side}-{shape}") in elements for side in ("up", "in") for shape in ("port", "range")):
            for interface, number in around.numbers.items():
                _add(elements, family, "via", f'"{interface}"', Element(f"jump via-{number}"))
