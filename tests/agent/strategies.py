# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Random entries that often overlap: few ports, few prefixes, few ends."""

import dataclasses
import ipaddress

from hypothesis import strategies as st

from portfwd.wire.entry import Accept, Entry, Relay
from portfwd.wire.values import (
    Family,
    HostName,
    IPAddress,
    PortRange,
    Proto,
    RuleId,
    Side,
    Source,
    SourceWord,
)

NOW = 1_800_000_000
ENDS = (NOW - 5, NOW + 1, NOW + 2, NOW + 60)
NAME, SILENT_NAME = HostName("known.example.org"), HostName("unknown.example.org")
CLIENTS: dict[Family, tuple[IPAddress, ...]] = {
    Family.V4: tuple(ipaddress.ip_address(f"192.0.2.{n}") for n in (1, 2, 3, 5, 64, 200)),
    Family.V6: tuple(ipaddress.ip_address(f"2001:db8::{n}") for n in (1, 2, 3, 5, 64, 200)),
}
NAMES = {NAME: (CLIENTS[Family.V4][1], CLIENTS[Family.V6][1], CLIENTS[Family.V4][4])}
TARGETS: dict[Family, tuple[IPAddress, ...]] = {
    Family.V4: tuple(ipaddress.ip_address(f"10.137.0.{n}") for n in (20, 21)),
    Family.V6: tuple(ipaddress.ip_address(f"fd09::{n}") for n in (20, 21)),
}
PORTS = st.integers(1, 12)


@st.composite
def sources(draw: st.DrawFn, family: Family, *, neighbours: bool) -> Source:
    words: list[Source] = [SourceWord.ANYONE, NAME, SILENT_NAME]
    if neighbours:
        words.append(SourceWord.NEIGHBOURS)
    bits = draw(st.sampled_from((8, 1, 0, 6)))
    prefix = ipaddress.ip_network((draw(st.sampled_from(CLIENTS[family])), family.bits - bits), strict=False)
    return draw(st.sampled_from([*words, prefix, prefix, family.everything]))


@st.composite
def accepts(draw: st.DrawFn, rule: int = 0) -> Entry:
    family, proto = draw(st.sampled_from(Family)), draw(st.sampled_from(Proto))
    first, last = sorted((draw(PORTS), draw(PORTS)))
    source = draw(sources(family, neighbours=False))
    end = draw(st.none() | st.sampled_from(ENDS))
    return Accept(RuleId(f"{rule:016x}"), family, proto, Side.UPLINK, PortRange(first, last), source, expire=end)


@st.composite
def relays(draw: st.DrawFn, rule: int = 0) -> Entry:
    family, proto = draw(st.sampled_from(Family)), draw(st.sampled_from(Proto))
    side = draw(st.sampled_from(Side))
    first, last = sorted((draw(PORTS), draw(PORTS)))
    listen = PortRange(first, last)
    start = draw(st.sampled_from((first, first + 3, 8000)))
    ports = draw(st.sampled_from((PortRange(start, start + len(listen) - 1), PortRange(start, start))))
    source = draw(sources(family, neighbours=side is not Side.INNER))
    to = draw(st.sampled_from(TARGETS[family]))
    end = draw(st.none() | st.sampled_from(ENDS))
    return Relay(RuleId(f"{rule:016x}"), family, proto, side, listen, source, to, ports, expire=end)


def _numbered(entry: st.SearchStrategy[Entry]) -> st.SearchStrategy[list[Entry]]:
    def number(found: list[Entry]) -> list[Entry]:
        return [dataclasses.replace(e, rule=RuleId(f"{n:016x}")) for n, e in enumerate(found)]

    return st.lists(entry, max_size=8).map(number)


accept_sets = _numbered(accepts())
relay_sets = _numbered(relays())
entry_sets = _numbered(accepts() | relays())
