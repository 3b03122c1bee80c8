# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""A client that says nothing learns through the whole chain that its time is over."""

import pytest

from tests.chain.world import SYS_NET, SYS_NET6, World, wait_until

HOLD = "forwardtype=external proto=tcp srcports=443 dstports=9001"
HOPS = ("sys-net", "sys-firewall", "work")


@pytest.mark.parametrize("end", ["expire", "delete"])
def test_f29_a_client_that_only_receives_is_reset(world: World, end: str) -> None:
    world.add("work", f"{HOLD} expire=+5" if end == "expire" else HOLD)
    held, held6 = (world.hold("laptop", host, 443, "work", 9001) for host in (SYS_NET, SYS_NET6))
    if end == "expire":
        wait_until(lambda: not world.forwards("work"), lambda: "the end of the rule")
    else:
        world.delete("work", HOLD)
    assert (held.client.waits(), held6.client.waits()) == ("reset", "reset")
    assert (held.server.speaks(), held6.server.speaks()) == ("reset", "reset")


def test_f29_with_all_agents_dead_the_kernel_of_the_target_tells_both_ends(world: World) -> None:
    """As soon as the server sends something: what the client acknowledges is answered with a reset."""
    world.add("work", f"{HOLD} expire=+8")
    held = world.hold("laptop", SYS_NET, 443, "work", 9001)
    for hop in HOPS:
        world.lab.agent(hop, "stop")
    try:
        wait_until(lambda: not world.forwards("work"), lambda: "the end of the rule")
        wait_until(lambda: held.server.speaks() == "reset", lambda: "the server is told")
        assert held.client.waits() == "reset"
    finally:
        for hop in HOPS:
            world.lab.agent(hop, "start")
        world.settle()
