# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Internal forwards: from the qubes behind the same net qube, and from nowhere else."""

import contextlib
from collections.abc import Iterator

import pytest

from tests.chain.world import LAPTOP, SHUT, SYS_NET, SYS_NET6, Ask, World, says

SSH = "forwardtype=internal proto=tcp srcports=2222 dstports=22"


def test_c22_sibling_yes_upstream_no(world: World) -> None:
    """Mistake: internal rules that match the uplink, thus never a sibling, but perhaps the LAN."""
    world.add("work", SSH)
    gateway, gateway6 = world.ip["sys-firewall"], world.ip6["sys-firewall"]
    world.expect(
        {
            Ask("personal", gateway, 2222): says("work", 22, world.ip["personal"]),
            Ask("personal", gateway6, 2222): says("work", 22, world.ip6["personal"]),
            Ask("personal", gateway, 22): SHUT,
            Ask("personal", gateway, 2222, "udp"): SHUT,
            Ask("personal", world.ip["work"], 22): SHUT,
            Ask("personal", SYS_NET, 2222): SHUT,
            Ask("laptop", SYS_NET, 2222): SHUT,
            Ask("laptop", SYS_NET6, 2222): SHUT,
            Ask("laptop", SYS_NET, 22): SHUT,
            Ask("sys-net", gateway, 2222): SHUT,
        }
    )
    world.delete("work", SSH)
    world.expect({Ask("personal", gateway, 2222): SHUT, Ask("personal", gateway6, 2222): SHUT})


def test_other_branches_of_the_network_do_not_get_in(world: World) -> None:
    world.add("work", f"{SSH} srchost=any")
    gateway = world.ip["sys-firewall"]
    world.expect(
        {
            Ask("personal", gateway, 2222): says("work", 22, world.ip["personal"]),
            Ask("untrusted", gateway, 2222): SHUT,
            Ask("dmz", gateway, 2222): SHUT,
            Ask("untrusted", world.ip["sys-disp"], 2222): SHUT,
            Ask("dmz", world.ip["sys-net"], 2222): SHUT,
        }
    )


def test_only_the_siblings_that_srchost_names(world: World) -> None:
    world.add("work", f"{SSH} srchost={world.ip['personal']}")
    gateway = world.ip["sys-firewall"]
    world.expect(
        {
            Ask("personal", gateway, 2222): says("work", 22, world.ip["personal"]),
            Ask("this-qube-has-31-letters-in-all", gateway, 2222): SHUT,
        }
    )


def test_ranges_and_both_protocols(world: World) -> None:
    world.add("work", "forwardtype=internal srcports=7000-7002 dstports=5000-5002")
    gateway, personal = world.ip["sys-firewall"], world.ip["personal"]
    world.expect(
        {
            Ask("personal", gateway, 7001): says("work", 5001, personal),
            Ask("personal", gateway, 7002, "udp"): says("work", 5002, personal),
            Ask("personal", gateway, 7003): SHUT,
        }
    )


def test_behind_a_disposable_and_directly_on_sys_net(world: World) -> None:
    world.add("dmz", SSH)
    world.expect(
        {
            Ask("sys-firewall", world.ip["sys-net"], 2222): says("dmz", 22, world.ip["sys-firewall"]),
            Ask("laptop", SYS_NET, 2222): SHUT,
        }
    )


def test_external_port_is_not_open_from_a_siblings_side(world: World) -> None:
    world.add("work", "forwardtype=external proto=tcp srcports=443 dstports=8443 srchost=any")
    world.expect(
        {
            Ask("laptop", SYS_NET, 443): says("work", 8443, LAPTOP),
            Ask("personal", world.ip["sys-firewall"], 443): SHUT,
            Ask("personal", world.ip["work"], 8443): SHUT,
            Ask("dmz", world.ip["sys-net"], 443): SHUT,
            Ask("personal", SYS_NET, 443): SHUT,
        }
    )


def test_same_port_internal_and_external_lead_to_different_qubes(world: World) -> None:
    world.add("work", "forwardtype=external proto=tcp srcports=443 dstports=8443")
    world.add("personal", "forwardtype=internal proto=tcp srcports=443 dstports=22")
    media = world.ip["sys-proxy"]
    world.expect(
        {
            Ask("laptop", SYS_NET, 443): says("work", 8443, LAPTOP),
            Ask("sys-proxy", world.ip["sys-firewall"], 443): says("personal", 22, media),
        }
    )


@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_sibling_whose_outbound_rules_drop_is_refused(world: World, proto: str) -> None:
    world.add("work", "forwardtype=internal srcports=2222 dstports=5000")
    gateway = world.ip["sys-firewall"]
    ask, other = Ask("personal", gateway, 2222, proto), Ask("sys-proxy", gateway, 2222, proto)
    wanted = {ask: says("work", 5000, world.ip["personal"]), other: says("work", 5000, world.ip["sys-proxy"])}
    world.expect(wanted)
    with outbound_drop(world, "personal"):
        world.expect(wanted | {ask: SHUT})
    world.expect(wanted)


@contextlib.contextmanager
def outbound_drop(world: World, qube: str) -> Iterator[None]:
    """What the stock firewall agent, which does not run in the laboratory, makes of `drop` as the only rule."""
    table = f"""
table ip qubes-firewall {{
	chain qbs {{ reject with icmp type admin-prohibited; }}
	chain qubes-forward {{ ip saddr {world.ip[qube]} jump qbs; ip saddr {world.ip["sys-proxy"]} accept; }}
	chain forward {{
		type filter hook forward priority filter; policy drop;
		ct state established,related accept
		iifname != "vif*" accept
		jump qubes-forward
	}}
}}
"""
    world.lab.run("sys-firewall", ["nft", "-f", "-"], input=table, text=True, check=True)
    try:
        yield
    finally:
        world.output("sys-firewall", "nft", "delete table ip qubes-firewall")
