# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Routes replies through the uplink that the request came in by. PURE: (links, routes, rules) -> ours.

Where there is more than one way out, an uplink has a number, a routing table of its own (a copy of the main table's
routes through it), and a rule that leads packets with that number in their mark there, before any rule of a VPN. Their
values and routing protocol tell them from those of others, which are read and never touched.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from portfwd.agent.network.uplinks import Link
from portfwd.agent.rules.skeleton import UPLINK_BITS, UPLINK_MAX, UPLINK_SHIFT
from portfwd.kernel.routes import DEFAULT, LOCAL, MAIN, Route, RoutingRule
from portfwd.wire.values import Family, IPAddress, IPNetwork

_STOCK_TABLES = {DEFAULT, MAIN, LOCAL}
TABLES = 0x71626600
"""The table of uplink N is TABLES + N."""
PRIORITY = 990
"""Priority of our rules: after the local table, before the rules that VPN and mesh programs make."""
PROTOCOL = 113
"""The routing protocol number of our routes and rules: not among those of rtnetlink.h or iproute2's rt_protos."""

_WIDE = {Family.V4: 3, Family.V6: 7}
"""A prefix so short is a default route, or a part of one that VPN programs put before it."""


def is_ours(made: Route | RoutingRule) -> bool:
    """Whether the agent made it: by its protocol, and the table that it is in or leads to."""
    return made.protocol == PROTOCOL and 0 < made.table - TABLES <= UPLINK_MAX


@dataclass(frozen=True, slots=True)
class Ways:
    """What the kernel should hold: numbers by interface index, and all our routes and rules."""

    numbers: Mapping[int, int]
    routes: frozenset[Route] = frozenset()
    rules: frozenset[RoutingRule] = frozenset()


def plan_ways(
    links: Iterable[Link],
    routes: Collection[Route],
    rules: Iterable[RoutingRule],
    families: Collection[Family],
    gateways: Mapping[Family, IPAddress],
    held: Mapping[int, int],
) -> Ways:
    """Number the uplinks, if replies could leave by another uplink than the request's.

    `families` are those in which something may come in; `gateways` serve an uplink to a net qube that has lost its
    default route to a VPN; `held` are the numbers that connections may bear already.
    """
    outward = [link for link in links if link.outward]
    used = {r.link for r in routes if not is_ours(r) and r.table != LOCAL and not r.prefix.is_link_local}
    ways = [link for link in outward if link.index in used]
    foreign = any(not is_ours(rule) and rule.table not in _STOCK_TABLES for rule in rules)
    if not families or (len(ways) < 2 and not foreign):
        return Ways({})
    numbers: dict[int, int] = {}
    wanted: set[Route] = set()
    for link in ways:
        if link.uplink and (number := _number(link.index, numbers, held)):
            numbers[link.index] = number
            for family in families:
                gateway = gateways.get(family) if link.xen else None
                wanted |= _copies(link.index, number, family, routes, gateway)
    return Ways(numbers, frozenset(wanted), frozenset(_leading(r.family, r.table) for r in wanted))


def _leading(family: Family, table: int) -> RoutingRule:
    """The rule that leads packets with the number of an uplink to its table."""
    return RoutingRule(family, PRIORITY, table, (table - TABLES) << UPLINK_SHIFT, UPLINK_BITS, PROTOCOL)


def _number(index: int, taken: Mapping[int, int], held: Mapping[int, int]) -> int:
    """The number that it had before, else a free one that was not in use lately; 0 when there are too many uplinks."""
    reserved = {*taken.values(), *held.values()}
    first = held.get(index, (index - 1) % UPLINK_MAX + 1)
    free = (n for n in ((first + i - 1) % UPLINK_MAX + 1 for i in range(UPLINK_MAX)) if n not in reserved)
    return first if index in held else next(free, 0)


def _copies(index: int, number: int, family: Family, routes: Iterable[Route], gateway: IPAddress | None) -> set[Route]:
    best: dict[IPNetwork, Route] = {}
    for route in routes:
        if (route.table, route.family, route.link) == (MAIN, family, index) and not route.prefix.is_link_local:
            best[route.prefix] = min(route, best.get(route.prefix, route), key=lambda r: r.metric)
    if gateway is not None and family.everything not in best:
        best[family.everything] = Route(family, MAIN, family.everything, index, gateway)
    return {r._replace(table=TABLES + number, metric=0, protocol=PROTOCOL) for r in best.values()}


def leaves_by_tunnel(links: Iterable[Link], routes: Collection[Route], rules: Iterable[RoutingRule]) -> bool:
    """Whether this qube's own traffic leaves by a tunnel, in either family.

    It does by the best default route, by a wide route before it, or by a table that a rule of others leads to. An
    interface of an unknown kind counts as a tunnel here, so that nothing is shown that its user means to hide.
    """
    tunnels = {link.index for link in links if link.outward and not link.uplink}
    led_to = {(rule.family, rule.table) for rule in rules if not is_ours(rule) and rule.table not in _STOCK_TABLES}
    for family in Family:
        mine = [r for r in routes if r.family is family and r.prefix.prefixlen <= _WIDE[family] and not is_ours(r)]
        defaults = [r for r in mine if r.table == MAIN and r.prefix.prefixlen == 0]
        lowest = min((r.metric for r in defaults), default=0)
        found = [r for r in defaults if r.metric == lowest]
        found += [r for r in mine if r.table == MAIN and r.prefix.prefixlen > 0]
        found += [r for r in mine if (family, r.table) in led_to]
        if any(route.link in tunnels for route in found):
            return True
    return False
