# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Relay entries: what a net qube does to hand connections on to the next hop."""

import bisect
import functools
from collections.abc import Sequence

from portfwd.agent.rules.elements import (
    Element,
    Elements,
    Facts,
    Kind,
    Results,
    Surroundings,
    add,
    add_door,
    hindrance,
)
from portfwd.agent.rules.skeleton import HITS, MARK_DOWN, MARK_UP, RELAY_SIDES
from portfwd.kernel.conntrack import Flow
from portfwd.wire.acknowledgement import Result
from portfwd.wire.answers.report import EntryReport, RelayReport
from portfwd.wire.entry import Relay
from portfwd.wire.limits import PORT_MAX, SHIFTED_ELEMENTS_MAX, SHIFTED_PORTS_MAX
from portfwd.wire.values import Family, HostName, IPAddress, Proto, Side

_REMEMBERED = 1 << 15
"""Size of the cache of relays: more than one for each port, family and protocol is not usual."""
_SHIFTED_REMEMBERED = SHIFTED_ELEMENTS_MAX // SHIFTED_PORTS_MAX
"""Size of the cache of relays with an element per port: no more of them than may stand."""
_Taken = dict[tuple[Family, str, Proto], list[tuple[int, int]]]


class Relays(Kind[Relay]):
    """DNAT, and letting pass."""

    chain = "custom-forward"
    yields = True

    def side(self, entry: Relay) -> str:
        return RELAY_SIDES[entry.side]

    def mark(self, entry: Relay) -> int:
        return MARK_DOWN if entry.side is Side.DOWNSTREAM else MARK_UP

    def build(self, entries: Sequence[Relay], around: Surroundings) -> tuple[Elements, Results]:
        """Of two that want the same port the first gets it, and what shifts more ports than there is room for none."""
        results: Results = {}
        taken: _Taken = {}
        shifted = 0
        places: dict[Family, dict[str, dict[str, Element]]] = {family: {} for family in Family}
        for entry in entries:
            if entry.shifted > min(SHIFTED_PORTS_MAX, SHIFTED_ELEMENTS_MAX - shifted):
                results[entry.key] = Result.REFUSED
                continue
            results[entry.key] = result = hindrance(entry, around)
            if result is not Result.OK:
                continue
            if not _take(entry, taken):
                results[entry.key] = Result.CLASH
                continue
            shifted += entry.shifted
            found = around.names.get(entry.source, ()) if isinstance(entry.source, HostName) else ()
            own = places[entry.family]
            for name, key, element in (_shifted_relay if entry.shifted else _relay)(entry, around.end_of(entry), found):
                own.setdefault(name, {})[key] = element
        return {(family, name): keys for family, own in places.items() for name, keys in own.items()}, results

    def leads(self, entry: Relay, flow: Flow, interface: str | None, around: Surroundings) -> bool:
        if (flow.server, flow.server_port) != (entry.to, entry.maps_to(flow.port)):
            return False
        if interface is None or entry.side is not Side.UPLINK:
            return True
        homes = {network.interface for network in around.home if flow.client in network.prefix}
        return not homes or interface in homes

    def report(self, entries: Sequence[Relay], facts: Facts) -> dict[str, EntryReport]:
        """Connections that came in by each."""
        if not entries:
            return {}
        places = {(entry.family, self.side(entry)) for entry in entries}
        counts = {place: facts.counts(place[0], (f"{place[1]}-{HITS}",)) for place in places}
        found: dict[str, EntryReport] = {}
        for entry in entries:
            hits = last = None
            if (of_side := counts[entry.family, self.side(entry)]) is not None:
                ports = of_side.within(entry)
                hits, last = sum(port.packets for port in ports), min((port.last for port in ports), default=None)
            found[entry.key] = RelayReport(hits, last)
        return found


def _take(entry: Relay, taken: _Taken) -> bool:
    """Whether nobody has its ports; then they are taken."""
    held = taken.setdefault((entry.family, RELAY_SIDES[entry.side], entry.proto), [])
    # Ports that are held never overlap, so only the neighbours in port order can be in the way.
    place = bisect.bisect_right(held, (entry.listen.last, PORT_MAX))
    if place and held[place - 1][1] >= entry.listen.first:
        return False
    held.insert(place, (entry.listen.first, entry.listen.last))
    return True


def _made(entry: Relay, end: float | None, found: tuple[IPAddress, ...]) -> list[tuple[str, str, Element]]:
    """The elements of one relay: set or map, key, element. Cached, since most entries stay as they are.

    `found` are the addresses of its source where that is a name.
    """
    elements: Elements = {}
    names = {entry.source: found} if isinstance(entry.source, HostName) else {}
    _add_relay(elements, entry, Surroundings(0, names=names, ends={} if end is None else {entry.key: end}))
    return [(name, key, element) for (_, name), keys in elements.items() for key, element in keys.items()]


_relay = functools.lru_cache(maxsize=_REMEMBERED)(_made)
_shifted_relay = functools.lru_cache(maxsize=_SHIFTED_REMEMBERED)(_made)


def _add_relay(elements: Elements, entry: Relay, around: Surroundings) -> None:
    side = RELAY_SIDES[entry.side]
    add_door(elements, side, entry.listen, [entry], around)
    proto, listen, ports, to = entry.proto.value, entry.listen, entry.ports, entry.to
    if len(listen) == 1:
        add(elements, entry.family, f"{side}-to", f"{proto} . {listen.first}", Element(f"{to} . {ports.first}"))
    elif len(ports) == 1:
        add(elements, entry.family, f"{side}-to-one", f"{listen} . {proto}", Element(f"{to} . {ports.first}"))
    elif ports == listen:
        add(elements, entry.family, f"{side}-to-keep", f"{listen} . {proto}", Element(str(to)))
    else:
        # A dnat to a range sends everything to its first port, so a shifted range is written out port by port.
        for offset in range(len(listen)):
            key = f"{proto} . {listen.first + offset}"
            add(elements, entry.family, f"{side}-to", key, Element(f"{to} . {ports.first + offset}"))
