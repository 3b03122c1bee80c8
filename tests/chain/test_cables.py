# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""A hop without an interface to what is behind it: as while a vif comes up, and after its script has failed."""

import contextlib
import time
from collections.abc import Iterator

import pytest

from tests.chain.world import LAPTOP, SHUT, SYS_NET, SYS_NET6, Ask, World, says, wait_until

RULE = "forwardtype=external proto=tcp srcports=443 dstports=8443 srchost=any"


@pytest.fixture
def impostor(world: World) -> Iterator[None]:
    """The home router takes itself for work: it has work's addresses, and servers."""
    addresses = [f"{world.ip['work']}/32", f"{world.ip6['work']}/128"]
    with contextlib.ExitStack() as stack:
        for address in addresses:
            world.output("router", "ip", "address", "add", address, "dev", "lan")
            stack.callback(world.output, "router", "ip", "address", "del", address, "dev", "lan")
        world.serve("router", words=("--tcp", "8443", "--udp", "8443"), stack=stack)
        yield


@pytest.mark.usefixtures("impostor")
@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_f28_clients_of_a_qube_without_interface_are_not_sent_to_the_lan(world: World, proto: str) -> None:
    """The packet left by the default route, towards whoever in the LAN takes itself for the qube."""
    world.add("work", RULE.replace("tcp", proto))
    world.lab.ask("detach", name="work")
    try:
        world.expect({Ask("laptop", SYS_NET, 443, proto): SHUT, Ask("laptop", SYS_NET6, 443, proto): SHUT})
    finally:
        world.lab.set("work", "netvm", "sys-firewall")


def test_f28_a_vif_comes_in_steps_and_is_no_way_before_its_script_has_run(world: World) -> None:
    world.add("work", RULE)
    world.lab.slow("sys-firewall", "vif", 2)
    try:
        world.lab.set("work", "netvm", "sys-firewall")
        (vif,) = [line for line in _vifs(world) if " group 2 " not in line]
        assert " state DOWN " in vif
        assert " group default " in vif
        assert world.ip["work"] not in world.output("sys-firewall", "ip", "route")
        assert f"inet {world.ip['work']}/32" in world.output("work", "ip", "address", "show", "dev", "eth0", "up")
    finally:
        world.lab.slow("sys-firewall", "vif", 0)
    world.settle()
    world.expect({Ask("laptop", SYS_NET, 443): says("work", 8443, LAPTOP)})


def test_f28_a_vif_whose_script_fails_stays_as_it_was(world: World) -> None:
    tables = world.output("sys-firewall", "nft", "list", "table", "ip", "qubes")
    world.output("sys-firewall", "nft", "delete", "table", "ip", "qubes")
    try:
        world.lab.set("work", "netvm", "sys-firewall")
        world.lab.ask("settle")
        (vif,) = [line for line in _vifs(world) if " group 2 " not in line]
        assert " state DOWN " in vif
    finally:
        world.lab.run("sys-firewall", ["nft", "-f", "-"], input=tables.encode(), check=True)
        world.lab.set("work", "netvm", "sys-firewall")
        world.lab.ask("settle")
    assert all(" group 2 " in line for line in _vifs(world))


def test_f28_the_index_of_a_vif_is_not_always_0(world: World) -> None:
    world.add("work", RULE)
    world.lab.ask("detach", name="work", abandon=True)
    world.lab.set("work", "netvm", "sys-firewall")
    world.settle()
    assert [line for line in _vifs(world) if ".1@" in line.split()[1]]
    world.expect({Ask("laptop", SYS_NET, 443): says("work", 8443, LAPTOP)})


def _vifs(world: World) -> list[str]:
    lines = world.output("sys-firewall", "ip", "-oneline", "link").splitlines()
    return [line for line in lines if line.split()[1].startswith("vif")]


def test_f28_the_time_of_a_forward_goes_on_in_a_paused_entrance(world: World) -> None:
    """As on Xen, where a paused qube's clocks leap when it goes on."""
    end = int(time.time()) + 8
    world.add("work", f"{RULE.replace('8443', '9001')} expire={end}")
    held = world.hold("laptop", SYS_NET, 443, "work", 9001)
    world.lab.pause("sys-net")
    try:
        wait_until(lambda: time.time() > end + 1, lambda: "the end of the rule")
    finally:
        world.lab.unpause("sys-net")
    world.expect({Ask("laptop", SYS_NET, 443): SHUT})
    assert not held.lives
