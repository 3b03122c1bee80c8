# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The kernel's routes and routing rules: reading, asking, changing. Formats: rtnetlink(7), linux/fib_rules.h.

All raise OSError when the kernel cannot be asked, or refuses.
"""

import errno
import ipaddress
import socket
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from portfwd.kernel.netlink import NLM_F_NEW, Netlink, attribute, attributes
from portfwd.wire.values import Family, IPAddress, IPNetwork, family_of

GROUPS = (1, 5, 7, 8, 9, 11, 19, 24, 25)
"""RTNLGRP_LINK, and IFADDR, ROUTE, RULE, NETCONF of both families: what may change here and in links.py."""
DEFAULT, MAIN, LOCAL = 253, 254, 255
"""The tables that the kernel's own rules look at."""

_NEWROUTE, _DELROUTE, _GETROUTE = 24, 25, 26
_NEWRULE, _DELRULE, _GETRULE = 32, 33, 34
_ROUTE = struct.Struct("=BBBBBBBBI")
"""struct rtmsg: family, lengths of destination and source, TOS, table, protocol, scope, type, flags."""
_RULE = struct.Struct("=BBBBBBBBI")
"""struct fib_rule_hdr: family, lengths of destination and source, TOS, table, two reserved, action, flags."""
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_MULTIPATH, _RTA_TABLE = 1, 4, 5, 6, 9, 15
_FRA_PRIORITY, _FRA_FWMARK, _FRA_TABLE, _FRA_FWMASK, _FRA_PROTOCOL = 6, 10, 15, 16, 21
_UNICAST, _TO_ITSELF = 1, 2
_ONLINK, _SCOPE_UNIVERSE, _SCOPE_LINK, _TO_TABLE = 4, 0, 253, 1
_NEXT_HOP = struct.Struct("=HBBi")
_AF = {Family.V4: socket.AF_INET, Family.V6: socket.AF_INET6}
_FAMILIES = {number: family for family, number in _AF.items()}
_NOWHERE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL)
_FORWARDING = {
    Family.V4: Path("/proc/sys/net/ipv4/ip_forward"),
    Family.V6: Path("/proc/sys/net/ipv6/conf/all/forwarding"),
}


class Route(NamedTuple):
    """A unicast route. `gateway` is None for an attached network; `protocol` tells who made it."""

    family: Family
    table: int
    prefix: IPNetwork
    link: int
    gateway: IPAddress | None
    metric: int = 0
    protocol: int = 0


class RoutingRule(NamedTuple):
    """A rule that leads packets with these bits of their mark, or all, to a table; `protocol` tells who made it."""

    family: Family
    priority: int
    table: int
    mark: int = 0
    mask: int = 0
    protocol: int = 0


class NextHop(NamedTuple):
    """The next hop of a packet: an interface, or this machine itself."""

    link: int
    local: bool


def read_routes(netlink: Netlink) -> Iterator[Route]:
    """Every unicast route, one for each next hop."""
    for message in netlink.dump(_GETROUTE, _ROUTE.pack(socket.AF_UNSPEC, 0, 0, 0, 0, 0, 0, 0, 0)):
        number, length, _, _, table, protocol, _, kind, _ = _ROUTE.unpack_from(message.body)
        fields = attributes(message.body[_ROUTE.size :])
        if number not in _FAMILIES or kind != _UNICAST:
            continue
        family = _FAMILIES[number]
        table = _number(fields, _RTA_TABLE, table)
        prefix = ipaddress.ip_network((fields.get(_RTA_DST, bytes(family.bits // 8)), length))
        metric = _number(fields, _RTA_PRIORITY, 0)
        for link, gateway in _next_hops(fields):
            yield Route(family, table, prefix, link, gateway, metric, protocol)


def read_rules(netlink: Netlink) -> Iterator[RoutingRule]:
    """Every rule that leads to a table."""
    for message in netlink.dump(_GETRULE, _RULE.pack(socket.AF_UNSPEC, 0, 0, 0, 0, 0, 0, 0, 0)):
        number, _, _, _, table, _, _, action, _ = _RULE.unpack_from(message.body)
        fields = attributes(message.body[_RULE.size :])
        if number in _FAMILIES and action == _TO_TABLE:
            table, priority = _number(fields, _FRA_TABLE, table), _number(fields, _FRA_PRIORITY, 0)
            mark, mask = _number(fields, _FRA_FWMARK, 0), _number(fields, _FRA_FWMASK, 0)
            yield RoutingRule(_FAMILIES[number], priority, table, mark, mask, fields.get(_FRA_PROTOCOL, b"\0")[0])


def next_hop(netlink: Netlink, address: IPAddress) -> NextHop | None:
    """The next hop of this machine's packets to an address, now; None without a route."""
    header = _ROUTE.pack(_AF[family_of(address)], address.max_prefixlen, 0, 0, 0, 0, 0, 0, 0)
    try:
        answers = netlink.request(_GETROUTE, header + attribute(_RTA_DST, address.packed))
    except OSError as error:
        if error.errno not in _NOWHERE:
            raise
        return None
    for message in answers:
        fields = attributes(message.body[_ROUTE.size :])
        if _RTA_OIF in fields:
            return NextHop(_number(fields, _RTA_OIF, 0), message.body[7] == _TO_ITSELF)
    return None


def forwards(family: Family) -> bool:
    """Whether this network namespace forwards packets of a family; False where the family is missing."""
    try:
        return _FORWARDING[family].read_text().strip() != "0"
    except OSError:
        return False


def add_route(netlink: Netlink, route: Route) -> None:
    """Add a route. Raises FileExistsError when there is one in its place."""
    netlink.request(_NEWROUTE, _route_body(route), NLM_F_NEW)


def remove_route(netlink: Netlink, route: Route) -> None:
    """Remove a route. Raises ProcessLookupError when there is none."""
    netlink.request(_DELROUTE, _route_body(route))


def add_rule(netlink: Netlink, rule: RoutingRule) -> None:
    """Add a rule. Raises FileExistsError when it exists."""
    netlink.request(_NEWRULE, _rule_body(rule), NLM_F_NEW)


def remove_rule(netlink: Netlink, rule: RoutingRule) -> None:
    """Remove a rule. Raises FileNotFoundError when there is none."""
    netlink.request(_DELRULE, _rule_body(rule))


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


def _route_body(route: Route) -> bytes:
    scope = _SCOPE_LINK if route.gateway is None else _SCOPE_UNIVERSE
    # ONLINK: the gateway is on this link, whatever other tables say.
    flags = 0 if route.gateway is None else _ONLINK
    header = _ROUTE.pack(_AF[route.family], route.prefix.prefixlen, 0, 0, 0, route.protocol, scope, _UNICAST, flags)
    body = header + _numbered(_RTA_TABLE, route.table) + _numbered(_RTA_OIF, route.link)
    if route.metric:
        body += _numbered(_RTA_PRIORITY, route.metric)
    if route.prefix.prefixlen:
        body += attribute(_RTA_DST, route.prefix.network_address.packed)
    return body if route.gateway is None else body + attribute(_RTA_GATEWAY, route.gateway.packed)


def _rule_body(rule: RoutingRule) -> bytes:
    body = _RULE.pack(_AF[rule.family], 0, 0, 0, 0, 0, 0, _TO_TABLE, 0)
    body += _numbered(_FRA_PRIORITY, rule.priority) + _numbered(_FRA_TABLE, rule.table)
    if rule.mask:
        body += _numbered(_FRA_FWMARK, rule.mark) + _numbered(_FRA_FWMASK, rule.mask)
    return body + attribute(_FRA_PROTOCOL, bytes([rule.protocol]))


def _numbered(kind: int, number: int) -> bytes:
    return attribute(kind, struct.pack("=I", number))


def _number(fields: Mapping[int, bytes], kind: int, otherwise: int) -> int:
    raw = fields.get(kind)
    return otherwise if raw is None else int(struct.unpack_from("=I", raw)[0])


def _address(raw: bytes | None) -> IPAddress | None:
    return None if raw is None else ipaddress.ip_address(raw)
