# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The elements of one family's sets and maps -> doors, port by port. PURE."""

import ipaddress
from collections.abc import Mapping, Sequence

from tests.oracle.rules import Doors

Span = tuple[int, int]
Row = tuple[tuple[Span, ...], tuple[int | str, ...]]
"""The key's parts as ranges of numbers, in the order of the declaration; what it leads to."""
PROTOS = {6: "tcp", 17: "udp"}


def doors_of(family: int, sets: Mapping[str, Sequence[Row]]) -> Doors:
    """Doors of all three sides. A door without a destination, or a destination without a door, is a door, too."""
    doors: Doors = {}
    for side in ("up", "down", "in"):
        classes = _by_port(sets.get(f"{side}-port", ()), port_first=False)
        classes |= _by_port(sets.get(f"{side}-range", ()), port_first=True)
        leads: dict[tuple[str, int], tuple[str, int]] = {}
        for kind in ("to", "to-one", "to-keep"):
            for (proto, port), data in _by_port(sets.get(f"{side}-{kind}", ()), port_first=kind != "to").items():
                address = ipaddress.ip_address(int(data[0]).to_bytes(4 if family == 4 else 16, "big"))
                leads[proto, port] = str(address), int(data[1]) if len(data) > 1 else port
        sources: dict[tuple[str, int], set[str]] = {}
        for (ports, protos, addresses), _ in sets.get(f"{side}-src", ()):
            first, last = (ipaddress.ip_address(a.to_bytes(4 if family == 4 else 16, "big")) for a in addresses)
            prefixes = {str(prefix) for prefix in ipaddress.summarize_address_range(first, last)}
            for port in range(ports[0], ports[1] + 1):
                sources.setdefault((PROTOS[protos[0]], port), set()).update(prefixes)
        for place in classes.keys() | leads.keys() | sources.keys():
            klass = str(classes.get(place, ("no door",))[0]).rpartition("-")[2]
            allowed = frozenset(sources.get(place, ())) if klass == "src" else frozenset({klass})
            doors[side, family, *place] = allowed, leads.get(place)
    return doors


def _by_port(rows: Sequence[Row], *, port_first: bool) -> dict[tuple[str, int], tuple[int | str, ...]]:
    found = {}
    for key, data in rows:
        ports, protos = key if port_first else (key[1], key[0])
        for port in range(ports[0], ports[1] + 1):
            found[PROTOS[protos[0]], port] = data
    return found
