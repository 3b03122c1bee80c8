# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""What is open, and for whom: each case on the fake and on the kernel."""

import os

import pytest

from portfwd.wire.acknowledgement import Result
from portfwd.wire.values import Family, HostName, Proto, Side
from tests.agent.kernel_world import KernelWorld
from tests.agent.world import (
    EVERYONE,
    LAPTOP,
    OUTSIDE,
    PHONE,
    SIBLING,
    STRANGER,
    TCP,
    TUNNEL,
    UDP,
    UPSTREAM,
    V4,
    V6,
    Attempt,
    Node,
    World,
    accept,
    check,
    relay,
    rule_id,
    through,
)


@pytest.mark.parametrize("family", list(Family))
@pytest.mark.parametrize("proto", list(Proto))
def test_one_port(world: World, proto: Proto, family: Family) -> None:
    applied = world.apply(through(relay(443, 8443, proto=proto, family=family)))
    assert set(applied.hop.values()) == set(applied.work.values()) == {Result.OK}
    other = UDP if proto is TCP else TCP
    check(
        world,
        {Attempt(client, 443, proto, family): 8443 for client in OUTSIDE},
        [
            Attempt(LAPTOP, 443, other, family),
            Attempt(LAPTOP, 442, proto, family),
            Attempt(LAPTOP, 8443, proto, family),
        ],
    )


def test_both_protocols_of_both_families(world: World) -> None:
    rule = rule_id()
    kinds = [(proto, family) for proto in Proto for family in Family]
    relays = [relay(443, 8443, proto=proto, family=family, rule=rule) for proto, family in kinds]
    world.apply([entry for found in relays for entry in through(found)])
    # Two uplinks, two protocols, two families: every combination, not only the last one written.
    check(world, {Attempt(client, 443, *kind): 8443 for kind in kinds for client in (LAPTOP, UPSTREAM)})


def test_without_forwards_nothing_is_open(world: World) -> None:
    world.apply([])
    check(
        world, shut=[Attempt(client, 443, proto) for client in EVERYONE for proto in Proto if _present(world, client)]
    )


def test_relay_alone_does_not_open_the_target(world: World) -> None:
    world.apply([relay(443, 8443)])
    check(world, shut=[Attempt(LAPTOP, 443)])


def test_accept_alone_does_not_open_the_hop(world: World) -> None:
    world.apply([accept(8443)])
    check(world, shut=[Attempt(LAPTOP, 8443), Attempt(SIBLING, 8443)])


@pytest.mark.parametrize("family", list(Family))
@pytest.mark.parametrize(
    ("listen", "ports", "pairs"),
    [
        ("9000-9010", None, {9000: 9000, 9005: 9005, 9010: 9010}),
        ("7000-7010", "9000-9010", {7000: 9000, 7005: 9005, 7010: 9010}),
        ("9005-9015", "9000-9010", {9005: 9000, 9010: 9005, 9015: 9010}),
        ("7000-7010", "8443", {7000: 8443, 7005: 8443, 7010: 8443}),
        ("1-65535", "443", {1: 443, 32768: 443, 65535: 443}),
    ],
    ids=["kept", "shifted", "shifted into itself", "to one", "every port"],
)
def test_ranges(world: World, listen: str, ports: str | None, pairs: dict[int, int], family: Family) -> None:
    world.apply(through(relay(listen, ports, family=family)))
    first, last = min(pairs), max(pairs)
    shut = [port for port in (first - 1, last + 1) if 0 < port < 65536]
    check(
        world,
        {Attempt(LAPTOP, listened, TCP, family): reached for listened, reached in pairs.items()},
        [Attempt(LAPTOP, port, TCP, family) for port in shut],
    )


def test_an_exact_port_beside_ranges(world: World) -> None:
    entries = [relay(8080, 80), relay("8000-8079", 443), relay("8081-8090", 22), relay(8080, 53, proto=UDP)]
    world.apply([entry for found in entries for entry in through(found)])
    check(
        world,
        {
            Attempt(LAPTOP, 8080): 80,
            Attempt(LAPTOP, 8079): 443,
            Attempt(LAPTOP, 8081): 22,
            Attempt(LAPTOP, 8080, UDP): 53,
        },
        [Attempt(LAPTOP, 7999), Attempt(LAPTOP, 8091), Attempt(LAPTOP, 8079, UDP)],
    )


@pytest.mark.parametrize("family", list(Family))
@pytest.mark.parametrize("proto", list(Proto))
def test_source_prefix(world: World, proto: Proto, family: Family) -> None:
    address = PHONE.addresses[family]
    world.apply(through(relay(443, proto=proto, family=family, source=str(address))))
    shut = [Attempt(client, 443, proto, family) for client in (LAPTOP, STRANGER, UPSTREAM)]
    check(world, {Attempt(PHONE, 443, proto, family): 443}, shut)


def test_source_prefix_for_a_range(world: World) -> None:
    world.apply(through(relay("9000-9010", source="192.168.7.0/24")))
    check(
        world,
        {Attempt(LAPTOP, 9000): 9000, Attempt(PHONE, 9010): 9010},
        [Attempt(STRANGER, 9000), Attempt(LAPTOP, 9011), Attempt(UPSTREAM, 9005)],
    )


@pytest.mark.parametrize("family", list(Family))
def test_neighbours_are_the_attached_network(world: World, family: Family) -> None:
    world.apply(through(relay(443, family=family, source="neighbours")))
    check(
        world,
        {Attempt(LAPTOP, 443, TCP, family): 443, Attempt(PHONE, 443, TCP, family): 443},
        [Attempt(STRANGER, 443, TCP, family), Attempt(UPSTREAM, 443, TCP, family), Attempt(SIBLING, 443, TCP, family)],
    )


def test_each_family_has_its_own_source(world: World) -> None:
    everyone = relay(443, source="0.0.0.0/0")
    nobody_yet = relay(443, family=V6, source="2001:db8:7::3/128")
    world.apply([*through(everyone), *through(nobody_yet)])
    check(
        world,
        {Attempt(STRANGER, 443): 443, Attempt(PHONE, 443, TCP, V6): 443},
        [Attempt(STRANGER, 443, TCP, V6), Attempt(LAPTOP, 443, TCP, V6)],
    )


def test_source_name_means_what_it_resolves_to(world: World) -> None:
    name = HostName("phone.example.org")
    entries = through(relay(443, source=f"name:{name}"))
    applied = world.apply(entries)
    assert set(applied.hop.values()) == set(applied.work.values()) == {Result.UNRESOLVED}
    check(world, shut=[Attempt(PHONE, 443)])
    applied = world.apply(entries, names={name: (PHONE.addresses[V4], PHONE.addresses[V6])})
    assert set(applied.hop.values()) == {Result.OK}
    check(world, {Attempt(PHONE, 443): 443}, [Attempt(LAPTOP, 443), Attempt(PHONE, 443, TCP, V6)])
    world.apply(entries, names={name: (LAPTOP.addresses[V4],)})
    check(world, {Attempt(LAPTOP, 443): 443}, [Attempt(PHONE, 443)])


@pytest.mark.parametrize("family", list(Family))
def test_internal_is_for_qubes_and_never_for_the_uplink(world: World, family: Family) -> None:
    world.apply(through(relay(443, 8443, family=family, side=Side.DOWNSTREAM, source="neighbours")))
    shut = [Attempt(client, 443, TCP, family) for client in OUTSIDE]
    check(world, {Attempt(SIBLING, 443, TCP, family): 8443}, shut)


def test_external_is_not_for_qubes_behind(world: World) -> None:
    world.apply(through(relay(443, 8443)))
    check(world, {Attempt(UPSTREAM, 443): 8443}, [Attempt(SIBLING, 443)])


def test_one_port_may_lead_elsewhere_on_each_side(world: World) -> None:
    world.apply([*through(relay(443, 8443)), *through(relay(443, 80, side=Side.DOWNSTREAM))])
    check(world, {Attempt(LAPTOP, 443): 8443, Attempt(SIBLING, 443): 80})


def test_internal_source_prefix(world: World) -> None:
    world.apply(through(relay(443, side=Side.DOWNSTREAM, source="10.137.0.21")))
    check(world, {Attempt(SIBLING, 443): 443})
    world.apply(through(relay(443, side=Side.DOWNSTREAM, source="10.137.0.22")))
    check(world, shut=[Attempt(SIBLING, 443)])


@pytest.mark.parametrize("family", list(Family))
def test_a_tunnel_counts_as_downstream(world: World, family: Family) -> None:
    if not _present(world, TUNNEL):
        pytest.skip("no right to make a tun device")
    internal = relay(443, 8443, family=family, side=Side.DOWNSTREAM)
    world.apply([*through(internal), *through(relay(80, family=family))])
    check(world, {Attempt(TUNNEL, 443, TCP, family): 8443}, [Attempt(TUNNEL, 80, TCP, family)])


def test_a_tunnel_is_no_neighbour(world: World) -> None:
    if not _present(world, TUNNEL):
        pytest.skip("no right to make a tun device")
    entries = [relay(443, side=Side.DOWNSTREAM, source="neighbours"), relay(80, source="neighbours")]
    world.apply([entry for found in entries for entry in through(found)])
    check(world, {Attempt(SIBLING, 443): 443}, [Attempt(TUNNEL, 443), Attempt(TUNNEL, 80)])


def test_the_target_checks_the_source_again(world: World) -> None:
    world.apply([relay(443), accept(443, source="192.168.7.2")])
    check(world, {Attempt(LAPTOP, 443): 443}, [Attempt(PHONE, 443), Attempt(STRANGER, 443)])


def test_doors_of_several_rules_overlap_at_the_target(world: World) -> None:
    world.apply(
        [
            relay("9000-9020"),
            accept("9000-9010", source="192.168.7.2"),
            accept("9005-9020", source="192.168.7.0/24"),
            accept(9007, source="203.0.113.9"),
            accept("9015-9020"),
        ]
    )
    check(
        world,
        {
            Attempt(LAPTOP, 9000): 9000,
            Attempt(PHONE, 9005): 9005,
            Attempt(LAPTOP, 9007): 9007,
            Attempt(STRANGER, 9007): 9007,
            Attempt(PHONE, 9012): 9012,
            Attempt(STRANGER, 9015): 9015,
            Attempt(UPSTREAM, 9020): 9020,
        },
        [Attempt(PHONE, 9004), Attempt(STRANGER, 9006), Attempt(STRANGER, 9014), Attempt(UPSTREAM, 9007)],
    )


def test_a_qube_behind_the_target_finds_no_door(world: World) -> None:
    """What an accept opens is for what comes from the net qube: not for a vif or a network card of the target."""
    world.apply([accept(443)])
    assert "iifgroup 1 meta l4proto { tcp, udp } ct state new jump arrival" in world.ruleset(Node.WORK)


@pytest.mark.parametrize("source", ["any", "0.0.0.0/1", "128.0.0.0/1"])
def test_an_inner_hop_takes_nothing_from_a_card_of_its_own(world: World, source: str) -> None:
    """Only who has passed the entrance may come in further in; a card there leads to people who have not."""
    comes = (int(UPSTREAM.addresses[V4]) >> 31) == (source == "128.0.0.0/1") or source == "any"
    world.apply([relay(443, side=Side.INNER, source=source), accept(443)])
    allowed = {Attempt(UPSTREAM, 443): 443} if comes else {}
    check(world, allowed, [Attempt(c, 443) for c in (LAPTOP, STRANGER, SIBLING, *(() if comes else (UPSTREAM,)))])


def test_clash_keeps_the_one_and_says_so(world: World) -> None:
    first, second = relay("8000-8100", 443), relay(8080, 80)
    applied = world.apply([*through(first), *through(second)])
    assert applied.hop == {first.key: Result.OK, second.key: Result.CLASH}
    check(world, {Attempt(LAPTOP, 8080): 443})


def test_expired_entry_opens_nothing(world: World) -> None:
    applied = world.apply(through(relay(443, expire=int(world.now()) - 1)))
    assert set(applied.hop.values()) == set(applied.work.values()) == {Result.EXPIRED}
    check(world, shut=[Attempt(LAPTOP, 443)])


@pytest.mark.parametrize("family", list(Family))
@pytest.mark.parametrize("proto", list(Proto))
def test_f17_a_shifted_range_that_is_too_wide_is_refused_alone(world: World, proto: Proto, family: Family) -> None:
    wide = relay("1001-2025", "8001-9025", proto=proto, family=family)
    free = [
        relay("2026-3049", "8001-9024", proto=proto, family=family),
        relay("9001-9020", proto=proto, family=family),
        relay("10000-60000", 443, proto=proto, family=family),
    ]
    door = accept("1-65535", proto=proto, family=family)
    applied = world.apply([wide, *free, door])
    assert applied.hop == {wide.key: Result.REFUSED} | dict.fromkeys((entry.key for entry in free), Result.OK)
    reached = {2105: 8080, 9003: 9003, 33333: 443}
    check(
        world,
        {Attempt(LAPTOP, port, proto, family): there for port, there in reached.items()},
        [Attempt(LAPTOP, port, proto, family) for port in (1001, 1080, 2025)],
    )


def test_f17_shifted_ranges_beyond_the_room_of_a_qube_are_refused_and_harm_no_other(world: World) -> None:
    if isinstance(world, KernelWorld) and os.geteuid() != 0:
        pytest.skip("root of a user namespace may send no netlink message beyond net.core.wmem_max, an agent may")
    ranges = [relay(f"{1 + 1024 * n}-{1024 + 1024 * n}", "8000-9023") for n in range(17)]
    plain = relay(60000, 443)
    applied = world.apply([*ranges, plain, accept("1-65535")])
    refused = [entry for entry in ranges if applied.hop[entry.key] is Result.REFUSED]
    assert len(refused) == 1
    assert {r for key, r in applied.hop.items() if key != refused[0].key} == {Result.OK}
    kept = next(entry for entry in ranges if entry not in refused)
    opens = {Attempt(LAPTOP, kept.listen.first + 80): 8080, Attempt(LAPTOP, 60000): 443}
    check(world, opens, [Attempt(LAPTOP, refused[0].listen.first + 80)])


def test_many_forwards(world: World) -> None:
    many = [relay(port, 443) for port in range(10000, 11200)]
    world.apply([*many, accept(443)])
    check(world, {Attempt(LAPTOP, port): 443 for port in (10000, 10599, 11199)}, [Attempt(LAPTOP, 11200)])
    world.apply([*many[:-1], accept(443)])
    check(world, {Attempt(LAPTOP, 11198): 443}, [Attempt(LAPTOP, 11199)])


def _present(world: World, client: object) -> bool:
    return not (client is TUNNEL and isinstance(world, KernelWorld) and not world.has_tunnel)
