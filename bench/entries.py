# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The entries that are loaded: many forwards that look alike, the measured one in the middle. PURE."""

import enum
import ipaddress
from collections.abc import Iterator

from bench.network import HOP1, HOP2, HOP2_AT, HOPS, OUTSIDE_AT, TARGET, TARGET_AT
from portfwd.agent.rules.elements import Network, Surroundings
from portfwd.wire.entry import Accept, Entry, Relay
from portfwd.wire.values import Family, HostName, PortRange, Proto, RuleId, Side, Source, SourceWord, parse_source

FIRST_PORT = 20000
SPARE_PORT = 19000
"""A forward that comes and goes beside the many."""
NEAR = ipaddress.ip_network("192.168.1.0/24")
_TO = {HOP1: HOP2_AT, HOP2: TARGET_AT}


class Clients(enum.Enum):
    """Who may use the forwards."""

    ANYONE = "any"
    NEIGHBOURS = "neighbours"
    ONE_PREFIX = "1 prefix"
    THREE_PREFIXES = "3 prefixes"


def forwards(node: str, count: int, clients: Clients = Clients.ANYONE, width: int = 1) -> list[Entry]:
    """The entries of `count` forwards at a node, each `width` ports wide; the middle one is open over UDP, too."""
    found = [_entry(node, index, Proto.TCP, clients, width) for index in range(count)]
    return [*found, _entry(node, count // 2, Proto.UDP, clients, width)]


def middle(count: int, width: int = 1) -> int:
    """The port of the measured forward."""
    return FIRST_PORT + count // 2 * width


def spare(node: str, clients: Clients = Clients.ANYONE, proto: Proto = Proto.TCP, port: int = SPARE_PORT) -> Entry:
    """One more forward, which no other resembles."""
    return _made(node, port, proto, PortRange(port, port), _source(clients, node, 0))


def around(count: int, now: float, clients: Clients, numbered: bool = False) -> Surroundings:
    """What the agent knows beside the entries. A rule has one source, so several prefixes come from a name.

    `numbered`: replies need a way of their own through every uplink.
    """
    names = {HostName(f"client{index}.example"): tuple(_addresses(index)) for index in range(count)}
    near = (Network("ens6", NEAR),)
    return Surroundings(
        now,
        near,
        names if clients is Clients.THREE_PREFIXES else {},
        {"ens6": 1, "eth0": 2} if numbered else {},
        home=near,
    )


def _entry(node: str, index: int, proto: Proto, clients: Clients, width: int) -> Entry:
    first = FIRST_PORT + index * width
    return _made(node, index, proto, PortRange(first, first + width - 1), _source(clients, node, index))


def _made(node: str, number: int, proto: Proto, listen: PortRange, source: Source) -> Entry:
    rule = RuleId(f"{number:016x}")
    if node == TARGET:
        return Accept(rule, Family.V4, proto, Side.UPLINK, listen, source)
    to = ipaddress.ip_address(_TO[node])
    return Relay(rule, Family.V4, proto, Side.UPLINK, listen, source, to, listen)


def _source(clients: Clients, node: str, index: int) -> Source:
    if clients is Clients.THREE_PREFIXES:
        return HostName(f"client{index}.example")
    if clients is Clients.ONE_PREFIX:
        return parse_source(f"{OUTSIDE_AT}/32")
    # Only the outermost hop knows its neighbours.
    return SourceWord.NEIGHBOURS if clients is Clients.NEIGHBOURS and node == HOPS[0] else SourceWord.ANYONE


def _addresses(index: int) -> Iterator[ipaddress.IPv4Address]:
    yield ipaddress.IPv4Address(OUTSIDE_AT)
    yield ipaddress.IPv4Address("10.1.0.0") + index
    yield ipaddress.IPv4Address("10.2.0.0") + index
