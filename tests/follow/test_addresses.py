# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Addresses change: ip and ip6 of a qube and of a net qube, net.fake-ip, IPv6 on and off, provides_network."""

import dataclasses

import pytest

from tests.follow.world import FORWARDS, PATHS, World

ALL = tuple(PATHS)


def test_c6_new_address_works_after_the_restart_that_qubes_asks_for(world: World) -> None:
    """Mistake: a rule that is written for an address and not for the qube."""
    old = world.lab.api("work", "admin.vm.property.Get", "ip").rpartition(" ")[2]

    def move() -> None:
        world.lab.set("work", "ip", "10.137.0.77")
        world.lab.set("work", "ip6", "fd09:24ef:4179::a89:77")
        world.lab.restart("work")

    world.after("ip and ip6 of a qube, and its restart", move, PATHS)
    inherit(world, old)
    for name in ("ip", "ip6"):
        world.lab.reset("work", name)
    world.after("and back", lambda: world.lab.restart("work"), PATHS)


def inherit(world: World, address: str) -> None:
    """C7, U6, U14: the old address now belongs to another qube; nothing leads to that one."""
    world.lab.create("heir", "sys-firewall")
    world.lab.set("heir", "ip", address)
    world.after("another qube gets the old address", lambda: world.lab.start("heir"), PATHS)
    world.lab.kill("heir")
    world.lab.remove("heir")


@pytest.mark.parametrize("restarted", [True, False])
def test_c7_rules_deleted_after_the_address_changed_leave_nothing_behind(world: World, restarted: bool) -> None:
    """Mistake: what is taken away is looked for by the new address, and the lines with the old one stay."""
    old = {name: world.lab.api("work", "admin.vm.property.Get", name).rpartition(" ")[2] for name in ("ip", "ip6")}
    world.lab.set("work", "ip", "10.137.0.77")
    world.lab.set("work", "ip6", "fd09:24ef:4179::a89:77")
    if restarted:
        world.lab.restart("work")
    world.see(PATHS, packets=restarted)
    world.allow("work")
    world.after("rules of a qube with a new address deleted", lambda: None, PATHS | {"work": ()})
    if not restarted:
        # Two running qubes cannot have one address.
        world.lab.stop("work")
    world.lab.create("heir", "sys-firewall")
    for name, address in old.items():
        world.lab.set("heir", name, address)
    world.lab.start("heir")
    world.serve("heir")
    world.see(PATHS | {"work": ()})
    for qube in ("sys-net", "sys-firewall", "heir"):
        ours = "".join(world.ours(qube))
        assert [address for address in old.values() if address in ours] == []
    world.lab.kill("heir")
    world.lab.remove("heir")
    for name in old:
        world.lab.reset("work", name)
    if restarted:
        world.lab.stop("work")
    world.lab.start("work")
    world.restore()
    world.see(PATHS)


def test_u6_address_of_a_running_qube(world: World) -> None:
    """Until its restart the qube keeps the old address (so does Qubes); nothing may lead to whoever gets that one."""
    world.after("ip of a running qube", lambda: world.lab.set("work", "ip", "10.137.0.77"), PATHS, packets=False)
    world.after("and back", lambda: world.lab.reset("work", "ip"), PATHS)


def test_address_of_a_net_qube(world: World) -> None:
    def move() -> None:
        world.lab.set("sys-firewall", "ip", "10.137.0.88")
        for qube in ("work", "personal", "sys-vpn", "sys-firewall"):
            world.lab.stop(qube, force=True)
        for qube in ("work", "personal", "sys-vpn"):
            world.lab.start(qube)

    world.after("ip of a net qube, and restart of all behind it", move, PATHS)
    world.lab.reset("sys-firewall", "ip")
    for qube in ("work", "personal", "sys-vpn", "sys-firewall"):
        world.lab.stop(qube, force=True)
    world.lab.start("sys-vpn")
    world.lab.start("personal")
    world.after("and back", lambda: world.lab.start("work"), PATHS)


@pytest.mark.parametrize(
    ("qube", "without"), [("sys-net", ALL), ("work", ("work",)), ("sys-firewall", ("work", "personal"))]
)
def test_c14_ipv6_goes_and_comes(world: World, qube: str, without: tuple[str, ...]) -> None:
    """Mistake: the pass over one family removes or forgets what belongs to the other."""
    world.after(f"ipv6 of {qube} off", lambda: world.lab.feature(qube, "ipv6", ""), PATHS, only4=without)
    on = "1" if qube == "sys-net" else None
    world.after("and on", lambda: world.lab.feature(qube, "ipv6", on), PATHS)


def test_c29_fake_ip_of_the_target(world: World) -> None:
    """Mistake: an input rule for the address that qubesd knows; the qube sees another one."""
    world.lab.feature("work", "net.fake-ip", "192.168.200.5")
    world.lab.feature("work", "net.fake-gateway", "192.168.200.1")
    world.after("fake-ip, and restart", lambda: world.lab.restart("work"), PATHS, only4=("work",))
    seen = world.lab.run(
        "work", ["ip", "-4", "-brief", "address", "show", "eth0"], capture_output=True, text=True
    ).stdout
    assert "192.168.200.5/32" in seen
    for name in ("net.fake-ip", "net.fake-gateway"):
        world.lab.feature("work", name, None)
    world.after("and back", lambda: world.lab.restart("work"), PATHS)


def test_c29_fake_ip_of_a_net_qube(world: World) -> None:
    world.lab.feature("sys-disp", "net.fake-ip", "192.168.201.5")
    world.after(
        "fake-ip of a net qube", lambda: world.lab.restart("sys-disp"), PATHS, only4=("untrusted",), packets=False
    )
    world.lab.restart("untrusted")
    world.see(PATHS, only4=("untrusted",))
    world.lab.feature("sys-disp", "net.fake-ip", None)
    world.lab.restart("sys-disp")
    world.after("and back", lambda: world.lab.restart("untrusted"), PATHS)


def test_qube_begins_and_ends_to_provide_network(world: World) -> None:
    def become_net_qube() -> None:
        world.lab.set("personal", "provides_network", "True")
        world.lab.restart("personal")
        world.lab.set("untrusted", "netvm", "personal")

    path = ("sys-net", "sys-firewall", "personal")
    world.after("provides_network", become_net_qube, PATHS | {"untrusted": path})
    world.lab.set("untrusted", "netvm", "sys-disp")
    world.lab.set("personal", "provides_network", "False")
    world.after("and back", lambda: world.lab.restart("personal"), PATHS)


def test_one_family_rule_keeps_to_it(world: World) -> None:
    """C15: a rule for one family beside rules for both."""
    six = dataclasses.replace(FORWARDS[0], entrance=444, rest="srchost=2001:db8:1::/64")
    world.allow("work", *(f for f in FORWARDS if f.qube == "work"), six)
    world.lab.converge()
    assert world.ask("laptop", "2001:db8:1::a", 444).startswith("work port 8443")
    assert world.ask("laptop", "192.168.1.10", 444) in ("timeout", "refused")
    world.lab.feature("work", "ipv6", "")
    world.lab.converge()
    assert "reason=no-address" in world.lab.api("work", "admin.vm.firewall.Get", "forward.status")
    assert world.ask("laptop", "2001:db8:1::a", 444) in ("timeout", "refused")
    world.lab.feature("work", "ipv6", None)
    world.lab.converge()
    assert world.ask("laptop", "2001:db8:1::a", 444).startswith("work port 8443")
