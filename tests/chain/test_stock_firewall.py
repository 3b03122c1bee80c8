# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Forwards as users have them: beside the stock firewall agent, which enforces each qube's own outbound rules."""

from collections.abc import Iterator

import pytest

from tests.chain.world import LAPTOP, SERVER, SHUT, SYS_NET, SYS_NET6, Ask, World, says, wait_until

NET_QUBES = ("sys-net", "sys-firewall", "sys-proxy")
INTERNAL = "forwardtype=internal proto=tcp srcports=2222 dstports=22"
EXTERNAL = "forwardtype=external proto=tcp srcports=443 dstports=8443"
DENIED = "action=drop"
ONLY_WORK = "action=accept dst4={work}/32 proto=tcp dstports=22-22\naction=drop"


@pytest.fixture
def enforced(world: World) -> Iterator[World]:
    """The stand-in for the stock agent runs in the net qubes."""
    for qube in NET_QUBES:
        world.lab.stock_firewall(qube, "on")
    yield world
    for qube in NET_QUBES:
        world.lab.stock_firewall(qube, "off")
    for qube in ("personal", "work", "sys-firewall"):
        world.lab.api(qube, "admin.vm.firewall.Set", "", "action=accept\n")


def _allow(world: World, qube: str, lines: str) -> None:
    """Set a qube's ordinary rules, and wait until its net qube enforces them."""
    address, netvm = world.ip[qube], world.lab.api(qube, "admin.vm.property.Get", "netvm").split()[-1]
    path = f"/qubes-firewall-handled/{address}"
    before = world.output(netvm, "qubesdb-read", path)
    world.lab.api(qube, "admin.vm.firewall.Set", "", lines + "\n")
    wait_until(lambda: world.output(netvm, "qubesdb-read", path) != before, lambda: f"the rules of {qube}")


def test_f28_an_internal_forward_is_blocked_by_the_client_s_own_outbound_rules(enforced: World) -> None:
    """Judged after the translation, thus by the qube's address and port, as the stock agent does."""
    world, gateway = enforced, enforced.ip["sys-firewall"]
    world.add("work", INTERNAL)
    ask = Ask("personal", gateway, 2222)
    world.expect({ask: says("work", 22, world.ip["personal"])})
    _allow(world, "personal", DENIED)
    world.expect({ask: SHUT})
    _allow(world, "personal", ONLY_WORK.format(work=world.ip["work"]))
    world.expect({ask: says("work", 22, world.ip["personal"]), Ask("personal", SERVER, 80): SHUT})
    _allow(world, "personal", f"action=accept dst4={gateway}/32 proto=tcp dstports=2222-2222\naction=drop")
    world.expect({ask: SHUT})


def test_f28_external_forwards_work_beside_the_stock_firewall(enforced: World) -> None:
    """What comes from outside is none of its business, whatever the qube itself may send."""
    world = enforced
    for qube in ("work", "sys-firewall"):
        _allow(world, qube, DENIED)
    world.add("work", EXTERNAL)
    world.add("media", EXTERNAL.replace("=443", "=444"))
    world.expect(
        {
            Ask("laptop", SYS_NET, 443): says("work", 8443, LAPTOP),
            Ask("laptop", SYS_NET, 444): says("media", 8443, LAPTOP),
        }
    )
    world.delete("work", EXTERNAL)
    world.expect({Ask("laptop", SYS_NET, 443): SHUT, Ask("laptop", SYS_NET6, 443): SHUT})


def test_f28_a_restart_of_the_stock_firewall_leaves_forwards_alone(enforced: World) -> None:
    world = enforced
    world.add("work", EXTERNAL.replace("443 dstports=8443", "444 dstports=9001"))
    world.add("work", EXTERNAL)
    held = world.hold("laptop", SYS_NET, 444, "work", 9001)
    for qube in NET_QUBES:
        world.lab.service(qube, "qubes-firewall", "restart")
    assert held.lives
    world.expect({Ask("laptop", SYS_NET, 443): says("work", 8443, LAPTOP)})
