# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Which uplinks get a way of their own, and when a qube's way out is a tunnel."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portfwd.agent.network.uplinks import Link
from portfwd.agent.network.ways import TABLES, Ways, leaves_by_tunnel, plan_ways
from portfwd.kernel.routes import MAIN, Route, RoutingRule
from portfwd.wire.values import Family

V4, V6 = Family.V4, Family.V6
ENS6 = Link(2, "ens6", uplink=True, tunnel=False)
WLS7 = Link(3, "wls7", uplink=True, tunnel=False)
ETH0 = Link(4, "eth0", uplink=True, tunnel=False, xen=True)
VIF = Link(5, "vif1.0", uplink=False, tunnel=False)
TUN0 = Link(6, "tun0", uplink=False, tunnel=True)
STOCK = [RoutingRule(family, priority, table) for family in Family for priority, table in ((0, 255), (32766, 254))]


def route(prefix: str, link: Link, gateway: str = "", metric: int = 0, table: int = MAIN) -> Route:
    network = ipaddress.ip_network(prefix)
    found = ipaddress.ip_address(gateway) if gateway else None
    return Route(Family(network.version), table, network, link.index, found, metric)


LAN = [route("192.168.1.0/24", ENS6), route("0.0.0.0/0", ENS6, "192.168.1.1", 100)]
WLAN = [route("192.168.1.0/24", WLS7, metric=600), route("0.0.0.0/0", WLS7, "192.168.1.254", 600)]
QUBE = [route("10.137.0.5/32", VIF, metric=32751), route("fe80::/64", VIF)]


def ways(links: list[Link], routes: list[Route], **more: object) -> Ways:
    given = {"rules": STOCK, "families": {V4}, "gateways": {}, "held": {}} | more
    return plan_ways(links, [*routes, *QUBE], **given)  # type: ignore[arg-type]


def test_one_way_out_needs_nothing() -> None:
    assert ways([ENS6, VIF], LAN) == Ways({})
    assert ways([ENS6, WLS7, VIF], [*LAN, route("fe80::/64", WLS7)]) == Ways({}), "a card without a network"


def test_nothing_that_may_come_in_needs_nothing() -> None:
    assert ways([ENS6, WLS7], LAN + WLAN, families=set()) == Ways({})


def test_two_cards_in_networks_of_the_same_prefix_have_each_its_own_routes() -> None:
    made = ways([ENS6, WLS7, VIF], LAN + WLAN)
    tables = {TABLES + number for number in made.numbers.values()}
    assert made.numbers.keys() == {ENS6.index, WLS7.index}
    assert {r.table for r in made.routes} == {r.table for r in made.rules} == tables
    for link, there in ((ENS6, LAN), (WLS7, WLAN)):
        mine = {(r.prefix, r.gateway) for r in made.routes if r.table == TABLES + made.numbers[link.index]}
        assert mine == {(r.prefix, r.gateway) for r in there}


def test_of_two_routes_to_one_place_the_better_is_taken() -> None:
    worse = route("0.0.0.0/0", ENS6, "192.168.1.7", 900)
    made = ways([ENS6, TUN0], [worse, *LAN, route("10.8.0.0/24", TUN0)])
    assert {str(r.gateway) for r in made.routes if r.prefix.prefixlen == 0} == {"192.168.1.1"}


def test_a_tunnel_or_a_rule_of_others_is_another_way_out() -> None:
    assert ways([ENS6, TUN0], [*LAN, route("10.8.0.0/24", TUN0)]).numbers.keys() == {ENS6.index}
    mesh = RoutingRule(V4, 5270, 52)
    assert ways([ENS6], LAN, rules=[*STOCK, mesh]).numbers.keys() == {ENS6.index}


def test_only_the_uplink_to_a_net_qube_has_the_gateway_of_dom0() -> None:
    gateways = {V4: ipaddress.ip_address("10.137.0.1")}
    bare = [route("10.137.0.1/32", ETH0), route("172.16.0.0/12", WLS7), route("0.0.0.0/0", TUN0)]
    made = ways([ETH0, WLS7, TUN0], bare, gateways=gateways)
    defaults = {(r.link, r.gateway) for r in made.routes if r.prefix.prefixlen == 0}
    assert defaults == {(ETH0.index, gateways[V4])}
    kept = ways([ETH0, TUN0], [route("0.0.0.0/0", ETH0, "10.137.0.9"), *bare], gateways=gateways)
    assert {str(r.gateway) for r in kept.routes if r.prefix.prefixlen == 0} == {"10.137.0.9"}


@given(st.sets(st.integers(1, 400), min_size=2, max_size=20), st.dictionaries(st.integers(1, 400), st.integers(1, 15)))
def test_numbers_are_different_and_kept(cards: set[int], before: dict[int, int]) -> None:
    held = {index: number for number, index in {n: i for i, n in before.items()}.items()}
    links = [Link(index, f"ens{index}", uplink=True, tunnel=False) for index in sorted(cards)]
    routes = [route(f"10.{link.index // 256}.{link.index % 256}.0/24", link) for link in links]
    made = ways(links, routes, held=held)
    assert len(set(made.numbers.values())) == len(made.numbers)
    assert all(1 <= number <= 15 for number in made.numbers.values())
    assert all(made.numbers[index] == held[index] for index in cards & held.keys())
    free = 15 - len(held.keys() - cards)
    assert len(made.numbers) == min(len(cards), free), "as many as there are numbers"
    again = ways(links, [*routes, *made.routes], held=held | dict(made.numbers))
    assert again == made, "what stands already asks for no change"


@pytest.mark.parametrize(
    ("routes", "rules", "tunnel"),
    [
        (LAN, [], False),
        ([*LAN, route("10.8.0.0/24", TUN0)], [], False),
        ([*LAN, route("0.0.0.0/0", TUN0, metric=50)], [], True),
        ([*LAN, route("0.0.0.0/0", TUN0, metric=200)], [], False),
        ([*LAN, route("0.0.0.0/1", TUN0), route("128.0.0.0/1", TUN0)], [], True),
        ([*LAN, route("2000::/4", TUN0), route("3000::/4", TUN0)], [], True),
        ([route("0.0.0.0/0", TUN0)], [], True),
        ([*LAN, route("0.0.0.0/0", TUN0, table=51820)], [], False),
        ([*LAN, route("0.0.0.0/0", TUN0, table=51820)], [RoutingRule(V4, 32764, 51820)], True),
        ([*LAN, route("100.64.0.0/10", TUN0, table=52)], [RoutingRule(V4, 5270, 52)], False),
        ([*LAN, route("0.0.0.0/0", VIF, metric=1)], [], False),
    ],
)
def test_whether_the_way_out_is_a_tunnel(routes: list[Route], rules: list[RoutingRule], tunnel: bool) -> None:
    links = [ENS6, WLS7, VIF, TUN0]
    assert leaves_by_tunnel(links, routes, [*STOCK, *rules]) is tunnel
