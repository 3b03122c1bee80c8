# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Slow starts: `domain-start` comes before an agent is ready, and an agent applies before its network is up."""

from lab.dom0 import exchange
from portfwd.api.status import Doors
from portfwd.client.forward_state import State
from tests.chain.test_known import look
from tests.chain.world import LAPTOP, SHUT, SYS_NET, SYS_NET6, Ask, World, says, wait_until

RULE = "forwardtype=external proto=tcp srcports=443 dstports=8443 srchost=any"
SLOW = 4.0


def test_f28_a_forward_to_a_qube_whose_agent_is_slow_is_not_called_open_before_the_agent_speaks(world: World) -> None:
    world.add("work", RULE)
    ask = Ask("laptop", SYS_NET, 443)
    world.expect({ask: says("work", 8443, LAPTOP)})
    world.stop("work")
    world.lab.slow("work", "agent", SLOW)
    try:
        world.start("work")
        (status,) = look(world, "work")
        assert (status.state, status.doors, status.silent) == (State.PENDING, Doors.UNKNOWN, ("work",))
        world.serve("work")
        world.expect({ask: SHUT})
        (status,) = look(world, "work")
        assert status.state is State.PENDING
    finally:
        world.lab.slow("work", "agent", 0)
    world.wait_applied("work")
    world.expect({ask: says("work", 8443, LAPTOP), Ask("laptop", SYS_NET6, 443): "work port 8443"})
    assert [status.state for status in look(world, "work")] == [State.OPEN]


def test_f28_a_forward_through_a_net_qube_whose_network_is_slow_opens_with_it(world: World) -> None:
    world.add("untrusted", RULE)
    world.stop("sys-disp")
    world.lab.slow("sys-disp", "network", SLOW)
    try:
        starting = world.lab.start_call("dom0", exchange, b"admin.vm.Start+ dom0 name sys-disp\0")
        wait_until(lambda: "sys-disp" in [m.name for m in world.lab.machines()], lambda: "sys-disp is there")
        world.expect({Ask("laptop", SYS_NET, 443): SHUT})
        assert starting.wait() == 0
    finally:
        world.lab.slow("sys-disp", "network", 0)
    world.wait_applied("untrusted")
    world.expect(
        {
            Ask("laptop", SYS_NET, 443): says("untrusted", 8443, LAPTOP),
            Ask("laptop", SYS_NET6, 443): "untrusted port 8443",
        }
    )
