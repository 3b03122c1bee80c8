# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Reads the kernel's routes and rules, and brings ours to what ways.py wants. Formats: rtnetlink(7), linux/fib_rules.h.

Only routes and rules with our protocol number, in our tables, are ever removed.
"""

import contextlib
import errno
import ipaddress
import logging
import re
import socket
import struct
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from portfwd.agent.network.uplinks import Link, read_links
from portfwd.agent.network.ways import TABLES, Route, Rule, Ways, leaves_by_tunnel, plan_ways
from portfwd.agent.rules.skeleton import UPLINK_BITS, UPLINK_MAX, UPLINK_SHIFT
from portfwd.kernel.netlink import NETLINK_ROUTE, NLM_F_NEW, Netlink, attribute, attributes
from portfwd.wire.answers.report import NO_ROUTE, UPLINK_ROUTE, Reached
from portfwd.wire.values import Family, IPAddress, family_of

log = logging.getLogger(__name__)

_NEWROUTE, _DELROUTE, _GETROUTE = 24, 25, 26
_NEWRULE, _DELRULE, _GETRULE = 32, 33, 34
_ROUTE = struct.Struct("=BBBBBBBBI")
"""struct rtmsg: family, lengths of destination and source, TOS, table, protocol, scope, type, flags."""
_RULE = struct.Struct("=BBBBBBBBI")
"""struct fib_rule_hdr: family, lengths of destination and source, TOS, table, two reserved, action, flags."""
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_MULTIPATH, _RTA_TABLE = 1, 4, 5, 6, 9, 15
_FRA_PRIORITY, _FRA_FWMARK, _FRA_TABLE, _FRA_FWMASK, _FRA_PROTOCOL = 6, 10, 15, 16, 21
_UNICAST, _ONLINK, _SCOPE_UNIVERSE, _SCOPE_LINK, _TO_TABLE = 1, 4, 0, 253, 1
_PROTOCOL = 113
"""Who made a route or rule: not among those of rtnetlink.h or iproute2's rt_protos."""
_NEXT_HOP = struct.Struct("=HBBi")
_AF = {Family.V4: socket.AF_INET, Family.V6: socket.AF_INET6}
_FAMILIES = {number: family for family, number in _AF.items()}


class Outcome(NamedTuple):
    """Numbers of uplinks by interface name; whether what is sent to the world leaves by a tunnel."""

    numbers: Mapping[str, int]
    tunnel: bool


class Routes:
    """Our routes and rules in this network namespace. Numbers are read back from the kernel, so they outlive us."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}

    def bring(self, families: Collection[Family], gateways: Mapping[Family, IPAddress]) -> Outcome:
        """Make the ways that replies need, take away the others. Raises OSError when the kernel cannot be read.

        `families` are those in which something may come in; `gateways` are those of the uplink to a net qube.
        """
        netlink = Netlink(NETLINK_ROUTE)
        try:
            links = read_links(netlink)
            routes, rules = list(read_routes(netlink)), list(_read_rules(netlink))
            present = _present(netlink)
            held = {r.link: r.table - TABLES for r in routes if r.ours} | self._numbers
            held = {index: number for index, number in held.items() if index in present}
            ways = plan_ways(links, routes, rules, families, gateways, held)
            self._numbers = held | dict(ways.numbers)
            _change(netlink, ways, {r._replace(metric=0) for r in routes if r.ours}, {r for r in rules if r.ours})
        finally:
            netlink.close()
        names = {link.name: ways.numbers[link.index] for link in links if link.index in ways.numbers}
        return Outcome(names, leaves_by_tunnel(links, routes, rules))


def ways_to(addresses: Collection[IPAddress]) -> dict[IPAddress, Reached]:
    """By what each address is reached now: the name of an interface to a qube behind us, or a word of wire.report.

    Raises OSError when the kernel cannot be asked.
    """
    netlink = Netlink(NETLINK_ROUTE)
    try:
        links = {link.index: link for link in read_links(netlink)}
        return {address: _way_to(netlink, address, links) for address in addresses}
    finally:
        netlink.close()


def _way_to(netlink: Netlink, address: IPAddress, links: Mapping[int, Link]) -> Reached:
    header = _ROUTE.pack(_AF[family_of(address)], address.max_prefixlen, 0, 0, 0, 0, 0, 0, 0)
    try:
        answers = netlink.request(_GETROUTE, header + attribute(_RTA_DST, address.packed))
    except OSError as error:
        if error.errno not in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL):
            raise
        return NO_ROUTE
    for message in answers:
        fields = attributes(message.body[_ROUTE.size :])
        if _RTA_OIF in fields:
            link = links.get(_number(fields, _RTA_OIF, 0))
            return (
                Reached(re.sub(r"[^A-Za-z0-9_.@-]", "_", link.name)[:15]) if link and link.downstream else UPLINK_ROUTE
            )
    return NO_ROUTE


def _present(netlink: Netlink) -> set[int]:
    """Every interface, also those that are down: their numbers are kept for when they come up again."""
    return {struct.unpack_from("=i", m.body, 4)[0] for m in netlink.dump(18, struct.pack("=BBHiII", 0, 0, 0, 0, 0, 0))}


def _change(netlink: Netlink, ways: Ways, routes: set[Route], rules: set[Rule]) -> None:
    """What leaves goes first, since one place takes one route; rules come when their tables are there."""
    steps: list[tuple[int, bytes, int]] = []
    steps += [(_DELRULE, _rule_body(rule), 0) for rule in sorted(rules - ways.rules)]
    steps += [(_DELROUTE, _route_body(route), 0) for route in routes - ways.routes]
    # Attached networks before the gateways that stand in them.
    missing = sorted(ways.routes - routes, key=lambda r: (r.gateway is not None, -r.prefix.prefixlen))
    steps += [(_NEWROUTE, _route_body(route), NLM_F_NEW) for route in missing]
    steps += [(_NEWRULE, _rule_body(rule), NLM_F_NEW) for rule in sorted(ways.rules - rules)]
    for kind, body, flags in steps:
        try:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError, FileExistsError):
                netlink.request(kind, body, flags)
        except OSError as error:
            # An interface that is going away; its notice has us look again.
            log.warning("a way for replies could not be changed: %s", error)


def read_routes(netlink: Netlink) -> Iterator[Route]:
    """Every unicast route of the kernel, ours included. Raises OSError."""
    for message in netlink.dump(_GETROUTE, _ROUTE.pack(socket.AF_UNSPEC, 0, 0, 0, 0, 0, 0, 0, 0)):
        number, length, _, _, table, protocol, _, kind, _ = _ROUTE.unpack_from(message.body)
        fields = attributes(message.body[_ROUTE.size :])
        if number not in _FAMILIES or kind != _UNICAST:
            continue
        family = _FAMILIES[number]
        table = _number(fields, _RTA_TABLE, table)
        prefix = ipaddress.ip_network((fields.get(_RTA_DST, bytes(family.bits // 8)), length))
        ours = protocol == _PROTOCOL and 0 < table - TABLES <= UPLINK_MAX
        metric = _number(fields, _RTA_PRIORITY, 0)
        for link, gateway in _next_hops(fields):
            yield Route(family, table, prefix, link, gateway, metric, ours)


def _next_hops(fields: dict[int, bytes]) -> Iterator[tuple[int, IPAddress | None]]:
    if _RTA_OIF in fields:
        yield _number(fields, _RTA_OIF, 0), _address(fields.get(_RTA_GATEWAY))
    data = fields.get(_RTA_MULTIPATH, b"")
    while len(data) >= _NEXT_HOP.size:
        length, _, _, link = _NEXT_HOP.unpack_from(data)
        if not _NEXT_HOP.size <= length <= len(data):
            return
        yield link, _address(attributes(data[_NEXT_HOP.size : length]).get(_RTA_GATEWAY))
        data = data[length + (-length % 4) :]


def _read_rules(netlink: Netlink) -> Iterator[Rule]:
    for message in netlink.dump(_GETRULE, _RULE.pack(socket.AF_UNSPEC, 0, 0, 0, 0, 0, 0, 0, 0)):
        number, _, _, _, table, _, _, action, _ = _RULE.unpack_from(message.body)
        fields = attributes(message.body[_RULE.size :])
        if number not in _FAMILIES or action != _TO_TABLE:
            continue
        table = _number(fields, _FRA_TABLE, table)
        mark, mask = _number(fields, _FRA_FWMARK, 0), _number(fields, _FRA_FWMASK, 0)
        ours = fields.get(_FRA_PROTOCOL, b"\0")[0] == _PROTOCOL and 0 < table - TABLES <= UPLINK_MAX
        priority = _number(fields, _FRA_PRIORITY, 0)
        yield Rule(_FAMILIES[number], priority, table, mark >> UPLINK_SHIFT if mask == UPLINK_BITS else 0, ours)


def _route_body(route: Route) -> bytes:
    scope = _SCOPE_LINK if route.gateway is None else _SCOPE_UNIVERSE
    # The gateway is trusted to be beyond this interface: in the main table it was so already.
    flags = 0 if route.gateway is None else _ONLINK
    header = _ROUTE.pack(_AF[route.family], route.prefix.prefixlen, 0, 0, 0, _PROTOCOL, scope, _UNICAST, flags)
    body = header + attribute(_RTA_TABLE, struct.pack("=I", route.table))
    body += attribute(_RTA_OIF, struct.pack("=I", route.link))
    if route.prefix.prefixlen:
        body += attribute(_RTA_DST, route.prefix.network_address.packed)
    return body if route.gateway is None else body + attribute(_RTA_GATEWAY, route.gateway.packed)


def _rule_body(rule: Rule) -> bytes:
    body = _RULE.pack(_AF[rule.family], 0, 0, 0, 0, 0, 0, _TO_TABLE, 0)
    body += attribute(_FRA_PRIORITY, struct.pack("=I", rule.priority))
    body += attribute(_FRA_TABLE, struct.pack("=I", rule.table))
    body += attribute(_FRA_FWMARK, struct.pack("=I", rule.number << UPLINK_SHIFT))
    body += attribute(_FRA_FWMASK, struct.pack("=I", UPLINK_BITS))
    return body + attribute(_FRA_PROTOCOL, bytes([_PROTOCOL]))


def _number(fields: Mapping[int, bytes], kind: int, otherwise: int) -> int:
    raw = fields.get(kind)
    return otherwise if raw is None else int(struct.unpack_from("=I", raw)[0])


def _address(raw: bytes | None) -> IPAddress | None:
    return None if raw is None else ipaddress.ip_address(raw)
