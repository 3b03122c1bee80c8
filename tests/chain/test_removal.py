# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""What ends a forward ends it on every hop, and the connections that came through it, and no others."""

import sys

import pytest

from tests.chain.world import LAPTOP, SHUT, SYS_NET, SYS_NET6, Ask, World, says, wait_until

HOLD = "forwardtype=external proto=tcp srcports=443 dstports=9001"
OTHER = "forwardtype=external proto=tcp srcports=444 dstports=9002"
WEB = "forwardtype=external proto=tcp srcports=445 dstports=8443"


def test_deletion_cuts_the_connections_of_this_rule_and_only_those(world: World) -> None:
    world.add("work", HOLD)
    world.add("work", OTHER)
    world.add("personal", HOLD.replace("443", "446"))
    mine = world.hold("laptop", SYS_NET, 443, "work", 9001)
    same_qube = world.hold("laptop", SYS_NET, 444, "work", 9002)
    other_qube = world.hold("phone", SYS_NET, 446, "personal", 9001)
    outgoing = world.hold("work", "192.168.1.20", 9003, "laptop", 9003)
    world.delete("work", HOLD)
    assert mine.is_cut
    assert same_qube.lives
    assert other_qube.lives
    assert outgoing.lives


@pytest.mark.parametrize("end", ["delete", "pause", "expire"])
def test_c24_established_connection_does_not_survive(world: World, end: str) -> None:
    """Mistake: only new connections are refused, and who is in stays in."""
    world.add("work", WEB)
    world.add("work", f"{HOLD} expire=+4" if end == "expire" else HOLD)
    held, held6 = (world.hold("laptop", host, 443, "work", 9001) for host in (SYS_NET, SYS_NET6))
    if end == "delete":
        world.delete("work", HOLD)
    elif end == "pause":
        world.replace("work", WEB, f"{HOLD} enabled=no")
    else:
        wait_until(lambda: len(world.forwards("work")) == 1, lambda: "the end of the rule")
        world.settle()
    assert held.is_cut
    assert held6.is_cut
    shut = {Ask("laptop", SYS_NET, 443): SHUT, Ask("laptop", SYS_NET6, 443): SHUT}
    world.expect(shut | {Ask("laptop", SYS_NET, 445): says("work", 8443, LAPTOP)})


def test_c24_through_the_longest_chain(world: World) -> None:
    """Mistake: the connection is cut on one hop and picked up again on another."""
    world.add("deep", HOLD)
    held = world.hold("laptop", SYS_NET, 443, "deep", 9001)
    world.delete("deep", HOLD)
    assert held.is_cut


def test_c24_internal(world: World) -> None:
    """Mistake: only what came from outside is cut."""
    rule = HOLD.replace("external", "internal")
    world.add("work", rule)
    held = world.hold("personal", world.ip["sys-firewall"], 443, "work", 9001)
    world.delete("work", rule)
    assert held.is_cut


def test_c9_removed_rule_does_not_work_on_any_hop(world: World) -> None:
    """Mistake: a rule that is no longer written, but never taken out of the kernel either."""
    hops = ("sys-net", "sys-firewall", "work")
    before = {hop: world.ruleset(hop) for hop in hops}
    world.add("work", WEB)
    world.expect({Ask("laptop", SYS_NET, 445): says("work", 8443, LAPTOP)})
    assert all(world.ruleset(hop) != before[hop] for hop in hops)
    world.delete("work", WEB)
    world.expect({Ask("laptop", SYS_NET, 445): SHUT})
    assert not any(world.entries(hop) for hop in hops)
    assert {hop: world.ruleset(hop) for hop in hops} == before


def test_pause_shuts_and_unpause_opens_again(world: World) -> None:
    ask = Ask("laptop", SYS_NET, 445)
    world.replace("work", WEB)
    world.expect({ask: says("work", 8443, LAPTOP)})
    world.replace("work", f"{WEB} enabled=no")
    assert [words["state"] for words in world.status("work")] == ["paused"]
    world.expect({ask: SHUT})
    world.replace("work", WEB)
    world.expect({ask: says("work", 8443, LAPTOP)})


def test_narrower_source_cuts_those_who_are_out_and_keeps_those_who_are_in(world: World) -> None:
    world.replace("work", f"{HOLD} srchost=192.168.1.0/24", f"{OTHER} srchost=192.168.1.0/24")
    phone = world.hold("phone", SYS_NET, 443, "work", 9001)
    laptop = world.hold("laptop", SYS_NET, 444, "work", 9002)
    world.replace("work", f"{HOLD} srchost={LAPTOP}", f"{OTHER} srchost={LAPTOP}")
    assert phone.is_cut
    assert laptop.lives
    world.expect({Ask("phone", SYS_NET, 444): SHUT})


def test_connection_lives_through_changes_of_other_rules(world: World) -> None:
    world.add("work", HOLD)
    held = world.hold("laptop", SYS_NET, 443, "work", 9001)
    world.add("personal", OTHER)
    world.add("work", f"{WEB} srchost=any")
    world.delete("personal", OTHER)
    world.lab.api("work", "admin.vm.firewall.Reload")
    world.settle()
    assert held.lives


def test_udp_flow_ends_with_its_rule(world: World) -> None:
    world.add("work", "forwardtype=external proto=udp srcports=443 dstports=8443")
    world.add("work", "forwardtype=external proto=udp srcports=444 dstports=5000")
    first, second = Ask("laptop", SYS_NET, 443, "udp"), Ask("laptop", SYS_NET, 444, "udp")
    world.expect({first: says("work", 8443, LAPTOP), second: says("work", 5000, LAPTOP)})
    assert tracked(world, 443)
    assert tracked(world, 444)
    world.delete("work", "forwardtype=external proto=udp srcports=443 dstports=8443")
    assert not tracked(world, 443)
    assert tracked(world, 444)
    world.expect({first: SHUT, second: says("work", 5000, LAPTOP)})


def tracked(world: World, port: int) -> str:
    """sys-net's connections from the laptop to that port."""
    return world.output("sys-net", "conntrack", "-L", "-p", "udp", "-s", LAPTOP, "--dport", str(port))


def test_removed_package_leaves_no_port_open(world: World) -> None:
    """Mistake: in a running qube whose agent is removed, everything stays open until its next start."""
    world.add("work", HOLD)
    held = world.hold("laptop", SYS_NET, 443, "work", 9001)
    world.lab.agent("sys-net", "stop")
    try:
        world.output("sys-net", sys.executable, "-I", "-m", "portfwd.agent.remove")
        assert held.is_cut
        assert 'qubes-port-forward"' not in world.ruleset("sys-net")
        world.expect({Ask("laptop", SYS_NET, 443): SHUT})
        assert world.states("work", 443) == {"applied", "written"}
    finally:
        world.lab.agent("sys-net", "start")
    world.settle()
    assert world.states("work", 443) == {"applied"}
