# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""From entries to the elements of our sets and maps. PURE: (entries, surroundings) -> elements and a result per entry.

An entry that is expired, not resolved or in conflict with another opens nothing; its result says why.
"""

import operator
from collections.abc import Iterable, Mapping
from typing import Any

from portfwd.agent.rules.accepts import Accepts
from portfwd.agent.rules.elements import Element, Elements, Kind, Results, Surroundings, add, collapse
from portfwd.agent.rules.relays import Relays
from portfwd.wire.entry import Accept, Entry, Relay
from portfwd.wire.values import Family

KINDS: Mapping[type[Entry], Kind[Any]] = {Relay: Relays(), Accept: Accepts()}
"""The agent's part for each kind of entry (wire/entry.py)."""


def kind_of(entry: Entry) -> Kind[Any]:
    """The agent's part for an entry."""
    return KINDS[type(entry)]


def by_kind(entries: Iterable[Entry]) -> dict[Kind[Any], list[Entry]]:
    """The same entries, kind by kind, otherwise in their order."""
    found: dict[Kind[Any], list[Entry]] = {kind: [] for kind in KINDS.values()}
    for entry in entries:
        found[kind_of(entry)].append(entry)
    return found


def build(entries: Iterable[Entry], around: Surroundings) -> tuple[Elements, Results]:
    """Build all elements that the entries want, and the result of each entry (by entry key)."""
    elements: Elements = {}
    results: Results = {}
    for kind, own in by_kind(sorted(entries, key=operator.attrgetter("key"))).items():
        made, fared = kind.build(own, around)
        # No two kinds have a set or map in common.
        elements |= made
        results |= fared
    _add_near(elements, around)
    _add_home(elements, around)
    _add_via(elements, around)
    return elements, results


def _add_near(elements: Elements, around: Surroundings) -> None:
    """Add the neighbour networks, only where some relay asks for them."""
    for family in Family:
        doors = [d for name in ("up-port", "up-range") for d in elements.get((family, name), {}).values()]
        if not any(door.data == "goto up-near" for door in doors):
            continue
        interfaces = {network.interface for network in around.near}
        for interface in sorted(interfaces):
            prefixes = [n.prefix for n in around.near if n.interface == interface and n.prefix.version == family]
            for prefix in collapse(prefixes):
                add(elements, family, "near", f'"{interface}" . {prefix}', Element())


def _add_home(elements: Elements, around: Surroundings) -> None:
    """Add which addresses belong to which interface, and the shut interfaces, only where a relay lets something in."""
    for family in Family:
        if not any((family, f"{side}-{shape}") in elements for side in ("up", "down") for shape in ("port", "range")):
            continue
        home = [network for network in around.home if network.prefix.version == family]
        for prefix in collapse(network.prefix for network in home):
            add(elements, family, "attached", str(prefix), Element())
        for interface in sorted({network.interface for network in home}):
            for prefix in collapse(network.prefix for network in home if network.interface == interface):
                add(elements, family, "home", f'"{interface}" . {prefix}', Element())
        for interface in sorted(around.shut):
            add(elements, family, "shut", f'"{interface}"', Element())


def _add_via(elements: Elements, around: Surroundings) -> None:
    """Add the numbered uplinks, only where something may come in by them."""
    for family in Family:
        if any((family, f"{side}-{shape}") in elements for side in ("up", "in") for shape in ("port", "range")):
            for interface, number in around.numbers.items():
                add(elements, family, "via", f'"{interface}"', Element(f"jump via-{number}"))
