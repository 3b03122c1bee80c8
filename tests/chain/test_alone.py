# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""A rule ends at its time when nobody of ours is left: no dom0, no agent, only the kernels of the qubes."""

import time
from collections.abc import Iterator

import pytest

from tests.chain.world import LAPTOP, SHUT, SYS_NET, SYS_NET6, Ask, World, says, wait_until

ENDS = "forwardtype=external proto=tcp srcports=443 dstports=8443 expire=+10"
HELD = "forwardtype=external proto=tcp srcports=444 dstports=9001 expire=+10"
LASTS = "forwardtype=external proto=tcp srcports=445 dstports=9002"
HOPS = ("sys-net", "sys-firewall", "work")


@pytest.fixture
def alone(world: World) -> Iterator[World]:
    """The same, in which everything of ours is started again afterwards."""
    yield world
    world.lab.service("dom0", "qubesd", "start")
    for hop in HOPS:
        world.lab.agent(hop, "start")
    world.lab.converge()


def test_c24_u5_ten_seconds_later_it_is_shut(alone: World) -> None:
    world = alone
    world.add("work", ENDS)
    world.add("work", HELD)
    world.add("work", LASTS)
    held = world.hold("laptop", SYS_NET, 444, "work", 9001)
    lasting = world.hold("laptop", SYS_NET, 445, "work", 9002)
    ends = [int(rule.split("expire=")[1].split()[0]) for rule in world.forwards("work") if "expire=" in rule]
    world.lab.service("dom0", "qubesd", "stop")
    for hop in HOPS:
        world.lab.agent(hop, "stop")
    hosts = (SYS_NET, SYS_NET6)
    world.expect({Ask("laptop", SYS_NET, 443): says("work", 8443, LAPTOP)})
    assert held.lives
    assert time.time() < min(ends), "the machine is too slow for this test"
    wait_until(lambda: time.time() > max(ends), lambda: "the end of the rules")
    world.expect({Ask("laptop", host, port): SHUT for host in hosts for port in (443, 444)})
    assert held.is_cut, "and both ends are told, by the kernel of the target alone"
    assert lasting.lives
