# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Connection tables with tens of thousands of connections, of strangers who begin or clients who hold them."""

import contextlib
import ipaddress
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from portfwd.agent.rules.skeleton import MARK_OURS, MARK_UP, TABLE
from portfwd.kernel.conntrack import Conntrack
from portfwd.kernel.netlink import NETLINK_NETFILTER, NLM_F_NEW, Netlink, attribute, nested
from portfwd.wire.acknowledgement import Acknowledgement, AgentState
from portfwd.wire.values import Family, IPAddress
from tests.agent import sockets
from tests.agent.kernel_world import KernelWorld, bring
from tests.agent.machine import Machine
from tests.agent.process import RunningAgent
from tests.agent.world import LAPTOP, UDP, WORK, Attempt, Life, Node, accept, relay

FLOOD = 40_000
_CT_NEW = 0x100
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
    list(Conntrack().marked(MARK_OURS))
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


def hold(_machine: Machine, number: int) -> None:
    """Command: the table as when clients hold that many TCP connections open through port 443."""
    netlink = Netlink(NETLINK_NETFILTER)
    hop, work = LAPTOP.dials[Family.V4].packed, WORK[Family.V4].packed
    state = nested(4, nested(1, attribute(1, b"\x03")))
    # Seen in both directions, assured, confirmed, with a translated destination.
    rest = state + attribute(3, struct.pack(">I", 0xAE)) + attribute(7, struct.pack(">I", 600))
    rest += attribute(8, struct.pack(">I", MARK_UP))
    for place in range(number):
        client = (ipaddress.IPv4Address("11.0.0.0") + place).packed
        ends = nested(1, _ends(client, hop, 4444, 443)), nested(2, _ends(work, client, 443, 4444))
        netlink.request(_CT_NEW, struct.pack("=BBH", socket.AF_INET, 0, 0) + b"".join(ends) + rest, NLM_F_NEW)
    netlink.close()


def _ends(source: bytes, target: bytes, source_port: int, target_port: int) -> bytes:
    ports = attribute(2, struct.pack(">H", source_port)) + attribute(3, struct.pack(">H", target_port))
    return nested(1, attribute(1, source), attribute(2, target)) + nested(2, attribute(1, b"\x06"), ports)


@pytest.fixture
def agent(kernel: KernelWorld) -> Iterator[RunningAgent]:
    kernel.reset()
    running = RunningAgent(kernel)
    yield running
    running.close()


def test_f20_another_port_is_shut_while_the_connections_of_a_removed_forward_are_ended(agent: RunningAgent) -> None:
    """Mistake: the agent hears nothing until the last of tens of thousands of connections has ended."""
    held, other = relay(443), relay(22)
    agent.publish([held, other])
    hop = agent.world.machine("hop")
    hop.call(hold, FLOOD)
    agent.write([other])
    agent.commit([other])
    agent.world.wait_until(lambda: hop.call(tracked) < FLOOD, 30)
    agent.write([])
    generation = agent.commit([])
    agent.world.wait_until(lambda: "goto" not in agent.world.nft(Node.HOP, f"list map ip {TABLE} up-port"), 30)
    assert hop.call(tracked) > 100, "connections are left to be ended"
    acknowledged = Acknowledgement(generation, AgentState.APPLIED)
    assert agent.acknowledged() != acknowledged, "what is confirmed is done"
    agent.world.wait_until(lambda: agent.acknowledged() == acknowledged, 60)
    assert hop.call(tracked) < 100
    agent.world.forget_connections()
