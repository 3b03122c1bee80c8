# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Routes replies through the uplink that the request came in by: has the kernel hold what ways.py wants.

Only routes and rules with our protocol number, in our tables, are ever removed.
"""

import contextlib
import logging
from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import NamedTuple

from portfwd.agent.network.uplinks import links_of, read_links
from portfwd.agent.network.ways import TABLES, Ways, is_ours, leaves_by_tunnel, plan_ways
from portfwd.kernel.links import read_devices
from portfwd.kernel.netlink import NETLINK_ROUTE, Netlink
from portfwd.kernel.routes import (
    Route,
    RoutingRule,
    add_route,
    add_rule,
    next_hop,
    read_routes,
    read_rules,
    remove_route,
    remove_rule,
)
from portfwd.wire.values import Family, IPAddress

log = logging.getLogger(__name__)


class Outcome(NamedTuple):
    """Numbers of uplinks by interface name; whether the qube's own traffic leaves by a tunnel."""

    numbers: Mapping[str, int]
    tunnel: bool


class Routes:
    """Our routes and rules in this network namespace. Numbers are read back from the kernel after a restart."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}

    def bring(self, families: Collection[Family], gateways: Mapping[Family, IPAddress]) -> Outcome:
        """Add the routes and rules that replies need, remove the others. Raises OSError when the kernel cannot be read.

        `families` are those in which something may come in; `gateways` are those of the uplink to a net qube.
        """
        netlink = Netlink(NETLINK_ROUTE)
        try:
            devices = read_devices(netlink)
            links = links_of(devices)
            routes, rules = list(read_routes(netlink)), list(read_rules(netlink))
            # Numbers of interfaces that are down are kept for when they come up again.
            present = {device.index for device in devices}
            held = {r.link: r.table - TABLES for r in routes if is_ours(r)} | self._numbers
            held = {index: number for index, number in held.items() if index in present}
            ways = plan_ways(links, routes, rules, families, gateways, held)
            self._numbers = held | dict(ways.numbers)
            # The kernel gives routes of IPv6 a metric of its own.
            _change(netlink, ways, {r._replace(metric=0) for r in routes if is_ours(r)}, set(filter(is_ours, rules)))
        finally:
            netlink.close()
        names = {link.name: ways.numbers[link.index] for link in links if link.index in ways.numbers}
        return Outcome(names, leaves_by_tunnel(links, routes, rules))


def without_way(addresses: Collection[IPAddress]) -> frozenset[IPAddress]:
    """Those of these addresses of qubes behind us that no interface to a qube leads to now.

    Raises OSError when the kernel cannot be asked.
    """
    netlink = Netlink(NETLINK_ROUTE)
    try:
        downstream = {link.index for link in read_links(netlink) if link.downstream}
        hops = {address: next_hop(netlink, address) for address in addresses}
    finally:
        netlink.close()
    return frozenset(address for address, hop in hops.items() if hop is None or hop.link not in downstream)


def _change(netlink: Netlink, ways: Ways, routes: set[Route], rules: set[RoutingRule]) -> None:
    """Remove first, since one place takes one route; add rules after their tables."""
    # Attached networks before the gateways that stand in them.
    missing = sorted(ways.routes - routes, key=lambda r: (r.gateway is not None, -r.prefix.prefixlen))
    steps: list[Callable[[], None]] = [
        *(partial(remove_rule, netlink, rule) for rule in sorted(rules - ways.rules)),
        *(partial(remove_route, netlink, route) for route in routes - ways.routes),
        *(partial(add_route, netlink, route) for route in missing),
        *(partial(add_rule, netlink, rule) for rule in sorted(ways.rules - rules)),
    ]
    for step in steps:
        try:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError, FileExistsError):
                step()
        except OSError as error:
            # The interface is going away; its notice triggers another look.
            log.warning("a way for replies could not be changed: %s", error)
