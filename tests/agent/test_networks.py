# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Which interfaces are uplinks, which networks have neighbours, and where the addresses of a network come in."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portfwd.agent.network.networks import is_attachable, networks_of, without
from portfwd.agent.network.uplinks import Link, links_of
from portfwd.agent.rules.elements import Network, Surroundings
from portfwd.agent.rules.kinds import build
from portfwd.kernel.links import Address, Device
from portfwd.kernel.routes import MAIN, Route
from portfwd.wire.acknowledgement import IGNORED_MAX, Ignored, Why
from portfwd.wire.errors import RefusedError
from portfwd.wire.values import Family, IPNetwork
from tests.agent.world import relay

UP = 1
ENS6 = Link(2, "ens6", uplink=True, tunnel=False)
WLS7 = Link(3, "wls7", uplink=True, tunnel=False)
TUN0 = Link(4, "tun0", uplink=False, tunnel=True)
VIF = Link(5, "vif1.0", uplink=False, tunnel=False, downstream=True)


def device(kind: str, index: int = 2, name: str = "x0", group: int = 0, below: int = 0, master: int = 0) -> Device:
    return Device(index, name, UP, group, kind, below, master)


def role(found: list[Link], name: str = "x0") -> str:
    (link,) = (link for link in found if link.name == name)
    return "uplink" if link.uplink else "tunnel" if link.tunnel else f"{link.why}:{link.what}"


@pytest.mark.parametrize("kind", ["", "veth", "bridge", "bond", "team", "wwan", "rmnet"])
def test_f2_network_cards_are_uplinks(kind: str) -> None:
    assert role(links_of([device(kind)])) == "uplink"


@pytest.mark.parametrize("kind", ["tun", "wireguard", "ppp", "xfrm", "gre", "sit"])
def test_f2_known_tunnels_are_tunnels(kind: str) -> None:
    assert role(links_of([device(kind)])) == "tunnel"


@pytest.mark.parametrize("kind", ["vxlan", "geneve", "gretap", "batadv", "bareudp", "dummy", "vrf", "netkit", "new"])
def test_f2_every_other_kind_is_shut(kind: str) -> None:
    assert role(links_of([device(kind)])) == f"kind:{kind}"


@pytest.mark.parametrize("kind", ["vlan", "macvlan", "ipvlan", "macsec"])
def test_f2_what_stands_on_one_interface_is_what_that_is(kind: str) -> None:
    top = device(kind, 3, below=2)
    assert role(links_of([device("", name="ens6"), top])) == "uplink"
    assert role(links_of([device("vxlan", name="over0"), top])) == "below:over0"
    assert role(links_of([device("tun", name="tun0"), top])) == "below:tun0"
    assert role(links_of([device("", name="vif1.0", group=2), top])) == "below:vif1.0"
    assert role(links_of([top])) == f"below:{kind}", "in another namespace, or gone"


@pytest.mark.parametrize("kind", ["bridge", "bond", "team"])
def test_f2_what_stands_on_ports_is_what_all_of_them_are(kind: str) -> None:
    top, card = device(kind, 9), device("", name="ens6", master=9)
    assert role(links_of([top, card])) == "uplink"
    assert role(links_of([top, card, device("geneve", 3, "over0", master=9)])) == "below:over0"
    assert role(links_of([top, card, device("veth", 3, "vif1.0", group=2, master=9)])) == "below:vif1.0"
    deep = [device("vlan", 4, "v4", below=9), device("vxlan", 3, "over0", master=9)]
    assert role(links_of([top, *deep]), "v4") == "below:x0"


def test_f2_interfaces_that_stand_on_each_other_are_shut() -> None:
    assert role(links_of([device("vlan", 2, below=3), device("vlan", 3, "x1", below=2)])).startswith("below")


def test_f2_a_name_that_no_rule_can_hold_is_shut() -> None:
    assert role(links_of([device("", name='a"b')]), 'a"b').startswith("name")


WIDE = [
    "0.0.0.0/0",
    "0.0.0.0/1",
    "128.0.0.0/1",
    "8.0.0.0/7",
    "8.0.0.0/15",
    "10.0.0.0/7",
    "192.168.0.0/15",
    "100.0.0.0/8",
]
NO_HOSTS = ["127.0.0.0/8", "127.0.0.0/24", "169.254.0.0/16", "224.0.0.0/4", "239.1.2.0/24", "240.0.0.0/8", "0.0.0.0/24"]
WIDE6 = ["::/0", "::/1", "2000::/3", "2001:db8::/32", "2001:db8::/63", "fd00::/8"]
NO_HOSTS6 = ["::/64", "::/96", "::ffff:192.168.1.0/120", "fe80::/64", "ff02::/64", "64:ff9b::/96", "4000::/64"]


@pytest.mark.parametrize("text", WIDE + NO_HOSTS + WIDE6 + NO_HOSTS6)
def test_f2_a_prefix_that_is_no_network_of_hosts_has_no_neighbours(text: str) -> None:
    prefix = ipaddress.ip_network(text)
    assert not is_attachable(prefix)
    own = ipaddress.ip_interface((prefix.network_address + 1, prefix.prefixlen))
    found = networks_of([ENS6], [Address(2, own, prefix)], ())
    assert found.near == found.home == ()
    if not prefix.is_link_local:
        assert found.ignored == (Ignored.parse(f"ens6:network:{prefix}"),)


@pytest.mark.parametrize(
    "text",
    [
        *("192.168.1.0/24", "192.168.0.0/16", "10.0.0.0/8", "172.16.0.0/12", "100.64.0.0/10", "198.51.0.0/16"),
        *("203.0.113.0/31", "2001:db8:7::/64", "2001:db8::/120", "fd12:3456::/64"),
    ],
)
def test_f2_a_network_of_hosts_has_neighbours(text: str) -> None:
    prefix = ipaddress.ip_network(text)
    found = networks_of([ENS6], [Address(2, ipaddress.ip_interface(text), prefix)], ())
    assert found.near == found.home == (Network("ens6", prefix),)
    assert found.ignored == ()


def homes(*stated: tuple[Link, str], routes: tuple[tuple[Link, str], ...] = ()) -> set[tuple[str, str]]:
    addresses = [Address(link.index, ipaddress.ip_interface(t), ipaddress.ip_network(t)) for link, t in stated]
    found = [(link, ipaddress.ip_network(text)) for link, text in routes]
    given = [Route(Family(p.version), MAIN, p, link.index, None) for link, p in found]
    return {(n.interface, str(n.prefix)) for n in networks_of([ENS6, WLS7, TUN0, VIF], addresses, given).home}


def test_f1_networks_of_the_same_prefix_are_at_home_at_both() -> None:
    assert homes((ENS6, "192.168.1.0/24"), (WLS7, "192.168.1.0/24")) == {
        ("ens6", "192.168.1.0/24"),
        ("wls7", "192.168.1.0/24"),
    }


def test_f1_the_longer_prefix_is_taken_out_of_the_shorter() -> None:
    assert homes((ENS6, "192.168.0.0/23"), (WLS7, "192.168.1.0/24"), (TUN0, "192.168.0.128/25")) == {
        ("ens6", "192.168.0.0/25"),
        ("tun0", "192.168.0.128/25"),
        ("wls7", "192.168.1.0/24"),
    }


def test_f1_an_interface_keeps_what_it_has_inside_itself() -> None:
    both = homes((ENS6, "10.0.0.0/8"), (ENS6, "10.1.0.0/16"), (WLS7, "10.1.0.0/16"))
    assert both >= {("ens6", "10.0.0.0/8"), ("wls7", "10.1.0.0/16")}


def test_f1_a_network_that_only_a_route_names_is_attached_too() -> None:
    """As with DHCPv6, which gives an address without a network; but no route takes what an address has."""
    routes = ((ENS6, "2001:db8:7::/64"), (WLS7, "192.168.1.0/25"), (TUN0, "10.0.0.0/8"), (VIF, "10.137.0.6/32"))
    assert homes((ENS6, "192.168.1.0/24"), (ENS6, "2001:db8:7::5/128"), routes=routes) == {
        ("ens6", "192.168.1.0/24"),
        ("ens6", "2001:db8:7::5/128"),
        *(("ens6", str(p)) for p in without(ipaddress.ip_network("2001:db8:7::/64"), [P128])),
    }


P128 = ipaddress.ip_network("2001:db8:7::5/128")
SMALL = st.builds(
    lambda n, bits: ipaddress.ip_network((0x0A000000 + n, bits), strict=False), st.integers(0, 255), st.integers(26, 32)
)


@given(SMALL, st.lists(SMALL, max_size=5))
def test_f1_what_is_left_of_a_prefix_is_every_address_that_nobody_takes(
    prefix: IPNetwork, others: list[IPNetwork]
) -> None:
    left = [address for piece in without(prefix, others) for address in piece]
    assert sorted(left) == [a for a in prefix if not any(a in other for other in others)]


def test_f1_the_cost_does_not_grow_with_the_number_of_forwards() -> None:
    near = (
        Network("ens6", ipaddress.ip_network("192.168.1.0/24")),
        Network("ens7", ipaddress.ip_network("10.0.0.0/8")),
    )
    sizes = set()
    for number in (1, 1000):
        elements, _ = build([relay(port + 1) for port in range(number)], Surroundings(0, near, home=near))
        sizes.add(tuple(len(elements[Family.V4, name]) for name in ("home", "attached")))
    assert sizes == {(2, 2)}


@pytest.mark.parametrize(
    "untrusted",
    ["", "ens6", "ens6:kind", "ens6:kind:", "ens6:else:x", "a b:kind:x", "ens6:kind:%s", f"{'e' * 16}:kind:x"],
)
def test_f2_dom0_takes_only_words_of_that_form(untrusted: str) -> None:
    with pytest.raises(RefusedError):
        Ignored.parse(untrusted)


def test_f2_as_much_is_told_as_fits_into_a_value() -> None:
    links = [Link(n, f"x{'y' * 10}{n}", uplink=False, tunnel=False, why=Why.KIND, what="z" * 15) for n in range(99)]
    own = ipaddress.ip_interface("10.0.0.1/8")
    many = [Address(link.index, own, own.network) for link in links]
    found = networks_of(links, many, ())
    assert len(found.ignored_text.split(" ")) == IGNORED_MAX
    assert len(found.ignored_text) < 3000
    assert [str(Ignored.parse(word)) for word in found.ignored_text.split(" ")] == found.ignored_text.split(" ")
