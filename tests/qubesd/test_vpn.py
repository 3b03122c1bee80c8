# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""A qube's word about its way out reaches the planner through qubesd's watch on its QubesDB, unasked."""

from portfwd.wire import limits
from tests.qubesd.test_forwards import SET, WEB, closed, opened
from tests.qubesd.world import World

WAY_OUT = "/qubes-port-forward-status/way-out"
HOPS = ("sys-net", "sys-firewall", "work")


def test_c28_a_vpn_that_comes_up_shuts_and_one_that_goes_down_stays_shut(world: World) -> None:
    world.api("work", f"{SET}+forward", WEB)
    opened(world, *HOPS)
    world.qdb("sys-firewall").write(WAY_OUT, "tunnel")
    closed(world, *HOPS)
    world.api("sys-firewall", "admin.vm.feature.Set+port-forward.allow-transit", "1")
    opened(world, *HOPS)
    world.api("sys-firewall", "admin.vm.feature.Remove+port-forward.allow-transit")
    closed(world, *HOPS)
    world.qdb("sys-firewall").write(WAY_OUT, "uplink")
    world.stop()
    world.start()
    closed(world, *HOPS)
    world.api("sys-firewall", "admin.vm.feature.Remove+port-forward.vpn")
    opened(world, *HOPS)


def test_f26_an_agent_that_is_at_work_and_does_not_tell_its_way_out_shuts(world: World) -> None:
    world.api("work", f"{SET}+forward", WEB)
    opened(world, *HOPS)
    world.qdb("sys-firewall").write(limits.STATUS_BASE, "version=1 generation=1 state=applied")
    closed(world, *HOPS)
    world.qdb("sys-firewall").write(WAY_OUT, "uplink")
    opened(world, *HOPS)


def test_the_watch_outlives_a_restart_of_qubesd_and_of_the_qube(world: World) -> None:
    world.api("work", f"{SET}+forward", WEB)
    opened(world, *HOPS)
    world.stop()
    world.start()
    world.qdb("sys-firewall").write(WAY_OUT, "tunnel")
    closed(world, *HOPS)
    world.api("work", "admin.vm.Kill")
    world.api("sys-firewall", "admin.vm.Kill")
    for name in ("sys-firewall", "work"):
        world.forget_qdb(name)
    world.api("sys-firewall", "admin.vm.feature.Remove+port-forward.vpn")
    world.api("work", "admin.vm.Start")
    world.running(*HOPS)
    opened(world, *HOPS)
    world.qdb("sys-firewall").write(WAY_OUT, "tunnel")
    closed(world, *HOPS)


def test_a_qube_that_writes_all_the_time_does_not_hold_up_qubesd(world: World) -> None:
    world.api("work", f"{SET}+forward", WEB)
    opened(world, *HOPS)
    for place in range(2000):
        world.qdb("sys-firewall").write(WAY_OUT, "tunnel" if place % 2 == 0 else "uplink")
    assert world.state("work") == "Running"
    world.qdb("sys-firewall").write(WAY_OUT, "tunnel")
    closed(world, *HOPS)
