# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""External forwards behind two net qubes: ports, protocols, ranges, sources, both families, and what stays shut."""

import pytest

from tests.chain.world import (
    LAPTOP,
    LAPTOP6,
    PHONE,
    ROUTER,
    SERVER,
    SERVER6,
    SHUT,
    SYS_NET,
    SYS_NET6,
    SYS_NET_GUEST,
    SYS_NET_GUEST6,
    VISITOR,
    VISITOR6,
    Ask,
    World,
    router_forwards,
    says,
)

WEB = "forwardtype=external proto=tcp srcports=443-443 dstports=8443-8443"


def test_port_is_open_from_add_to_del_and_the_server_sees_the_client(world: World) -> None:
    laptop, own_port = Ask("laptop", SYS_NET, 443), Ask("laptop", SYS_NET, 8443)
    world.expect({laptop: SHUT, own_port: SHUT})
    world.add("work", WEB)
    world.expect({laptop: says("work", 8443, LAPTOP), Ask("phone", SYS_NET, 443): says("work", 8443, PHONE)})
    world.delete("work", WEB)
    world.expect({laptop: SHUT, own_port: SHUT})


def test_only_the_port_of_the_rule_is_open(world: World) -> None:
    world.add("work", WEB)
    shut = [442, 444, 22, 631, 8443, 5000]
    wanted = {Ask("laptop", SYS_NET, port): SHUT for port in shut}
    wanted |= {Ask("laptop", SYS_NET, 443, "udp"): SHUT, Ask("laptop", SYS_NET, 8443, "udp"): SHUT}
    world.expect(wanted | {Ask("laptop", SYS_NET, 443): says("work", 8443, LAPTOP)})


def test_two_qubes_with_several_rules_each_behind_one_firewall(world: World) -> None:
    world.add("work", WEB)
    world.add("work", "forwardtype=external proto=udp srcports=443 dstports=5001")
    world.add("work", "forwardtype=external proto=tcp srcports=2022 dstports=22")
    world.add("personal", "forwardtype=external proto=tcp srcports=444 dstports=8443")
    world.add("personal", "forwardtype=external srcports=6000-6002 dstports=5000-5002")
    wanted = {
        Ask("laptop", SYS_NET, 443): says("work", 8443, LAPTOP),
        Ask("laptop", SYS_NET, 443, "udp"): says("work", 5001, LAPTOP),
        Ask("laptop", SYS_NET, 2022): says("work", 22, LAPTOP),
        Ask("phone", SYS_NET, 444): says("personal", 8443, PHONE),
        Ask("phone", SYS_NET, 6001): says("personal", 5001, PHONE),
        Ask("laptop", SYS_NET, 6002, "udp"): says("personal", 5002, LAPTOP),
        Ask("laptop", SYS_NET, 444, "udp"): SHUT,
        Ask("laptop", SYS_NET, 6003): SHUT,
    }
    world.expect(wanted)
    world.delete("work", WEB)
    world.expect(wanted | {Ask("laptop", SYS_NET, 443): SHUT})


@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_one_protocol_only(world: World, proto: str) -> None:
    world.add("work", f"forwardtype=external proto={proto} srcports=5005")
    other = "udp" if proto == "tcp" else "tcp"
    wanted = {Ask("laptop", SYS_NET, 5005, proto): says("work", 5005, LAPTOP)}
    world.expect(wanted | {Ask("laptop", SYS_NET, 5005, other): SHUT})


def test_ranges_same_shifted_and_to_one_port(world: World) -> None:
    world.add("work", "forwardtype=external srcports=5003-5005")
    world.add("work", "forwardtype=external srcports=7000-7003 dstports=5001-5004")
    world.add("personal", "forwardtype=external srcports=7100-7200 dstports=8443")
    wanted: dict[Ask, str] = {}
    for proto in ("tcp", "udp"):
        wanted |= {Ask("laptop", SYS_NET, p, proto): says("work", p, LAPTOP) for p in (5003, 5004, 5005)}
        wanted |= {Ask("laptop", SYS_NET, p, proto): says("work", p - 1999, LAPTOP) for p in range(7000, 7004)}
        wanted |= {Ask("laptop", SYS_NET, p, proto): says("personal", 8443, LAPTOP) for p in (7100, 7150, 7200)}
        wanted |= {Ask("laptop", SYS_NET, p, proto): SHUT for p in (5002, 5006, 6999, 7004, 7099, 7201)}
    world.expect(wanted)


def test_ipv6_as_ipv4(world: World) -> None:
    world.add("work", "forwardtype=external srcports=7000-7002 dstports=5000-5002")
    world.expect(
        {
            Ask("laptop", SYS_NET6, 7001): says("work", 5001, LAPTOP6),
            Ask("laptop", SYS_NET6, 7002, "udp"): says("work", 5002, LAPTOP6),
            Ask("visitor", SYS_NET_GUEST6, 7000): says("work", 5000, VISITOR6),
            Ask("laptop", SYS_NET, 7001): says("work", 5001, LAPTOP),
            Ask("laptop", SYS_NET6, 5001): SHUT,
            Ask("server", SYS_NET6, 7001): SHUT,
        }
    )


def test_without_srchost_the_neighbours_on_every_uplink_and_nobody_else(world: World) -> None:
    with router_forwards(world, 443):
        world.add("work", WEB)
        world.expect(
            {
                Ask("laptop", SYS_NET, 443): says("work", 8443, LAPTOP),
                Ask("visitor", SYS_NET_GUEST, 443): says("work", 8443, VISITOR),
                Ask("server", ROUTER, 443): SHUT,
                Ask("server", SYS_NET6, 443): SHUT,
            }
        )


def test_any_is_the_internet_too(world: World) -> None:
    with router_forwards(world, 443):
        world.add("work", f"{WEB} srchost=any")
        world.expect(
            {
                Ask("laptop", SYS_NET, 443): says("work", 8443, LAPTOP),
                Ask("server", ROUTER, 443): says("work", 8443, SERVER),
                Ask("server", SYS_NET6, 443): says("work", 8443, SERVER6),
            }
        )


def test_host_of_the_internet_by_address(world: World) -> None:
    with router_forwards(world, 443):
        world.add("work", f"{WEB} srchost={SERVER}")
        world.expect(
            {
                Ask("server", ROUTER, 443): says("work", 8443, SERVER),
                Ask("laptop", SYS_NET, 443): SHUT,
                Ask("server", SYS_NET6, 443): SHUT,
            }
        )


@pytest.mark.parametrize(
    ("srchost", "laptop", "phone", "visitor", "laptop6"),
    [
        (LAPTOP, True, False, False, False),
        ("192.168.1.16/28", True, True, False, False),
        ("192.168.77.0/24", False, False, True, False),
        ("0.0.0.0/0", True, True, True, False),
        (LAPTOP6, False, False, False, True),
        ("2001:db8:1::/64", False, False, False, True),
        ("::/0", False, False, False, True),
        ("laptop", True, False, False, True),
    ],
)
def test_source(world: World, srchost: str, laptop: bool, phone: bool, visitor: bool, laptop6: bool) -> None:
    world.add("work", f"{WEB} srchost={srchost}")
    world.expect(
        {
            Ask("laptop", SYS_NET, 443): says("work", 8443, LAPTOP) if laptop else SHUT,
            Ask("phone", SYS_NET, 443): says("work", 8443, PHONE) if phone else SHUT,
            Ask("visitor", SYS_NET_GUEST, 443): says("work", 8443, VISITOR) if visitor else SHUT,
            Ask("laptop", SYS_NET6, 443): says("work", 8443, LAPTOP6) if laptop6 else SHUT,
        }
    )
