# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""A stranger fills the connection table by datagrams with sources that are not his, while a connection has to end."""

import contextlib
import ipaddress
import socket
import struct
import time
from pathlib import Path

import pytest

from portfwd.agent.rules.skeleton import MARK_OURS
from portfwd.kernel.conntrack import Conntrack
from portfwd.wire.values import Family, IPAddress
from tests.agent import sockets
from tests.agent.kernel_world import KernelWorld, bring
from tests.agent.machine import Machine
from tests.agent.world import LAPTOP, UDP, Attempt, Life, accept, relay

FLOOD = 40_000
SPOOFED = {Family.V4: ipaddress.ip_address("11.0.0.0"), Family.V6: ipaddress.ip_address("2001:db8:f00d::")}


def flood(_machine: Machine, target: IPAddress, port: int, first: IPAddress, number: int) -> None:
    """Command: that many datagrams, each from an address of its own, none of them ours."""
    version = target.version
    kind = socket.AF_INET if version == 4 else socket.AF_INET6
    data = struct.pack(">HHHH", 4444, port, 8, 0)
    with socket.socket(kind, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        for place in range(number):
            source = first + place
            pseudo = source.packed + target.packed + struct.pack(">II", 8, 17) + data
            total = sum(struct.unpack(f">{len(pseudo) // 2}H", pseudo))
            total = (total & 0xFFFF) + (total >> 16)
            check = 0xFFFF - (total & 0xFFFF) - (total >> 16) or 0xFFFF
            udp = data[:6] + struct.pack(">H", check)
            if version == 4:
                header = struct.pack(">BBHHHBBH", 0x45, 0, 28, 0, 0, 64, 17, 0)
            else:
                header = struct.pack(">IHBB", 6 << 28, 8, 17, 64)
            with contextlib.suppress(BlockingIOError):
                raw.sendto(header + source.packed + target.packed + udp, (str(target), 0))


def tracked(_machine: Machine) -> int:
    """Command: how many connections this qube's kernel knows."""
    return int(Path("/proc/sys/net/netfilter/nf_conntrack_count").read_text())


def walk(_machine: Machine) -> float:
    """Command: how long one walk over all of them takes, in seconds."""
    begin = time.monotonic()
    Conntrack().marked(MARK_OURS)
    return time.monotonic() - begin


@pytest.mark.parametrize("family", list(Family))
@pytest.mark.parametrize("removed", ["the flooded forward, too", "another forward"])
def test_f20_a_flood_of_spoofed_datagrams_keeps_no_connection_of_a_removed_forward_alive(
    kernel: KernelWorld, family: Family, removed: str
) -> None:
    kernel.reset()
    victim, flooded = relay(443, family=family), relay(53, proto=UDP, family=family)
    kernel.apply([victim, flooded, accept(443, family=family), accept(53, proto=UDP, family=family)])
    handle = kernel.open(Attempt(LAPTOP, 443, family=family))
    hop, outside = kernel.machine("hop"), kernel.machine("outside")
    outside.call(flood, LAPTOP.dials[family], 53, SPOOFED[family], FLOOD)
    assert hop.call(tracked) > FLOOD / 2
    whole = hop.call(walk)
    left = [flooded] if removed == "another forward" else []
    begin = time.monotonic()
    hop.begin(bring, left, kernel.now(), {})
    while outside.call(sockets.clients_speak, [(kernel.opened(handle), 0.02)]) != [Life.RESET]:
        assert time.monotonic() - begin < 30
    ended = time.monotonic() - begin
    hop.finish()
    assert ended < whole, "what ends is found without a walk over everything"
    if not left:
        assert hop.call(tracked) < 100, "the rest is ended, too, only later"
    kernel.forget_connections()
