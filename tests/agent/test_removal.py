# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Removal is real: the port shuts, the connections of that rule end, and nobody else's do."""

import dataclasses

import pytest

from portfwd.agent.rules.skeleton import MARK_OURS
from portfwd.agent.rules.sweep import GUARD_SECONDS
from portfwd.wire.acknowledgement import Result
from portfwd.wire.values import Family, HostName, IPAddress, Proto, Side, parse_source
from tests.agent.world import (
    LAPTOP,
    PHONE,
    SIBLING,
    STRANGER,
    TCP,
    UDP,
    UPSTREAM,
    V4,
    V6,
    Attempt,
    Life,
    Node,
    World,
    accept,
    check,
    relay,
    through,
)

CUT = {TCP: Life.RESET, UDP: Life.SILENT}


@pytest.mark.parametrize(
    ("proto", "family", "first"),
    [(TCP, V4, "client"), (TCP, V4, "server"), (TCP, V6, "server"), (UDP, V4, "client"), (UDP, V6, "server")],
)
def test_removal_shuts_and_cuts(world: World, proto: Proto, family: Family, first: str) -> None:
    """Whoever speaks first afterwards. With the same port inside, conntrack would pick the connection up again."""
    attempt = Attempt(LAPTOP, 443, proto, family)
    world.apply(through(relay(443, proto=proto, family=family)))
    handle = world.open(attempt)
    assert world.client_speaks(handle) is Life.ALIVE
    world.apply([])
    assert world.marks(Node.HOP) == world.marks(Node.WORK) == []
    speakers = [world.client_speaks, world.server_speaks]
    for speak in speakers if first == "client" else speakers[::-1]:
        assert speak(handle) is CUT[proto]
    for speak in speakers:
        assert speak(handle) is CUT[proto]
    check(world, shut=[attempt])


def test_only_the_removed_rules_connections_are_cut(world: World) -> None:
    gone = [*through(relay(443, 8443)), *through(relay(53, proto=UDP))]
    kept = [*through(relay(80)), *through(relay(22, proto=UDP)), *through(relay(8080, side=Side.DOWNSTREAM))]
    world.apply([*gone, *kept])
    ends = [world.open(Attempt(LAPTOP, 443)), world.open(Attempt(PHONE, 443)), world.open(Attempt(LAPTOP, 53, UDP))]
    lives = [world.open(Attempt(LAPTOP, 80)), world.open(Attempt(LAPTOP, 22, UDP)), world.open(Attempt(SIBLING, 8080))]
    world.apply(kept)
    assert [world.client_speaks(handle) for handle in lives] == [Life.ALIVE] * 3
    assert [world.server_speaks(handle) for handle in lives] == [Life.ALIVE] * 3
    assert [world.client_speaks(handle) for handle in ends] == [Life.RESET, Life.RESET, Life.SILENT]


def test_foreign_connections_are_left_alone(world: World) -> None:
    """A forward that the user has made by hand in the base table is none of ours."""
    for node in Node:
        world.nft(node, "add rule ip qubes custom-forward accept\nadd rule ip qubes custom-input accept")
    world.nft(
        Node.HOP,
        "table ip mine { chain pre { type nat hook prerouting priority dstnat; policy accept;\n"
        "iif ens6 tcp dport 2222 dnat to 10.137.0.20:22\n}\n}",
    )
    world.apply(through(relay(443)))
    by_hand, ours = world.open(Attempt(LAPTOP, 2222)), world.open(Attempt(LAPTOP, 443))
    world.apply([])
    assert world.client_speaks(by_hand) is Life.ALIVE
    assert world.client_speaks(ours) is Life.RESET


@pytest.mark.parametrize("proto", list(Proto))
def test_narrowing_the_source_cuts_those_outside(world: World, proto: Proto) -> None:
    entries = through(relay(443, proto=proto))
    world.apply(entries)
    inside, outside = world.open(Attempt(LAPTOP, 443, proto)), world.open(Attempt(STRANGER, 443, proto))
    narrow = parse_source("192.168.7.0/24")
    world.apply([dataclasses.replace(entry, source=narrow) for entry in entries])
    assert world.client_speaks(inside) is Life.ALIVE
    assert world.client_speaks(outside) is CUT[proto]
    assert world.server_speaks(outside) is CUT[proto]
    check(world, {Attempt(LAPTOP, 443, proto): 443}, [Attempt(STRANGER, 443, proto)])


def test_widening_the_source_cuts_nobody(world: World) -> None:
    entries = through(relay(443, source="192.168.7.2"))
    world.apply(entries)
    handle = world.open(Attempt(LAPTOP, 443))
    world.apply([dataclasses.replace(entry, source=parse_source("any")) for entry in entries])
    assert world.client_speaks(handle) is Life.ALIVE


def test_another_rule_takes_over_a_connection_that_it_allows(world: World) -> None:
    first, second = relay(443, 8443), relay("400-499", "8400-8499")
    world.apply(through(first))
    handle = world.open(Attempt(LAPTOP, 443))
    world.apply(through(second))
    assert world.client_speaks(handle) is Life.ALIVE


def test_a_change_of_destination_cuts(world: World) -> None:
    world.apply([relay(443, 8443), accept(8443), accept(80)])
    handle = world.open(Attempt(LAPTOP, 443))
    world.apply([relay(443, 80), accept(8443), accept(80)])
    assert world.client_speaks(handle) is Life.RESET
    check(world, {Attempt(LAPTOP, 443): 80})


def test_a_name_that_moves_cuts_its_old_address(world: World) -> None:
    name = HostName("phone.example.org")
    entries = through(relay(443, source=f"name:{name}"))
    before: tuple[IPAddress, ...] = (PHONE.addresses[V4],)
    world.apply(entries, names={name: before})
    handle = world.open(Attempt(PHONE, 443))
    world.apply(entries, names={name: (LAPTOP.addresses[V4],)})
    assert world.client_speaks(handle) is Life.RESET


@pytest.mark.parametrize("first", ["client", "server"])
@pytest.mark.parametrize("proto", list(Proto))
def test_the_target_alone_cuts_too(world: World, proto: Proto, first: str) -> None:
    """Its net qube may be slower, or its agent dead."""
    opened, through_hop = accept(443, proto=proto), relay(443, proto=proto)
    world.apply([through_hop, opened])
    handle = world.open(Attempt(LAPTOP, 443, proto))
    world.apply([through_hop])
    speakers = [world.client_speaks, world.server_speaks]
    for speak in speakers if first == "client" else speakers[::-1]:
        assert speak(handle) is CUT[proto]
    assert world.client_speaks(handle) is CUT[proto]


@pytest.mark.parametrize("first", ["client", "server"])
@pytest.mark.parametrize("proto", list(Proto))
def test_the_hop_alone_cuts_too(world: World, proto: Proto, first: str) -> None:
    """The target may be without agent: its user has opened the port by hand."""
    opened, through_hop = accept(443, proto=proto), relay(443, proto=proto)
    world.apply([through_hop, opened])
    handle = world.open(Attempt(LAPTOP, 443, proto))
    world.apply([opened])
    speakers = [world.client_speaks, world.server_speaks]
    for speak in speakers if first == "client" else speakers[::-1]:
        assert speak(handle) is CUT[proto]
    assert world.client_speaks(handle) is CUT[proto]


@pytest.mark.parametrize("proto", list(Proto))
def test_adding_again_works_at_once(world: World, proto: Proto) -> None:
    entries = through(relay(443, 8443, proto=proto))
    for _ in range(3):
        world.apply(entries)
        handle = world.open(Attempt(LAPTOP, 443, proto))
        assert world.client_speaks(handle) is Life.ALIVE
        world.apply([])
        assert world.client_speaks(handle) is CUT[proto]
    world.apply(entries)
    check(world, {Attempt(LAPTOP, 443, proto): 8443})


@pytest.mark.parametrize("ports", ["443-443", "8443-8443"])
@pytest.mark.parametrize("proto", list(Proto))
def test_a_guard_spares_a_new_connection_from_the_very_same_port(world: World, proto: Proto, ports: str) -> None:
    """The old one is watched for, by its address and port; a new rule lets the same client in at once."""
    attempt = Attempt(LAPTOP, 443, proto, V4, 41000)
    world.apply(through(relay(443, ports, proto=proto)))
    old = world.open(attempt)
    world.apply([])
    for speak in (world.server_speaks, world.client_speaks):
        assert speak(old) is CUT[proto]
    world.apply(through(relay(443, ports, proto=proto)))
    # Over UDP there is no connection to be opened: what the client says next is a new one.
    new = world.open(attempt) if proto is TCP else old
    for speak in (world.client_speaks, world.server_speaks, world.client_speaks):
        assert speak(new) is Life.ALIVE


def test_removal_by_an_agent_that_has_just_started(world: World) -> None:
    gone, kept = through(relay(443)), through(relay(80))
    world.apply([*gone, *kept])
    ends, lives = world.open(Attempt(LAPTOP, 443)), world.open(Attempt(LAPTOP, 80))
    world.restart_agent()
    world.apply(kept)
    assert world.client_speaks(lives) is Life.ALIVE
    assert world.client_speaks(ends) is Life.RESET
    check(world, {Attempt(LAPTOP, 80): 80}, [Attempt(LAPTOP, 443)])


def test_guards_stand_only_as_long_as_needed(world: World) -> None:
    world.apply(through(relay(443)))
    quiet = world.ruleset(Node.HOP)
    handle = world.open(Attempt(LAPTOP, 443))
    assert world.tend(Node.HOP, world.now()) is None
    world.apply([])
    assert "guard-forward" in world.ruleset(Node.HOP)
    again = world.tend(Node.HOP, world.now())
    assert again is not None
    assert world.now() < again <= world.now() + GUARD_SECONDS
    assert world.client_speaks(handle) is Life.RESET
    assert world.tend(Node.HOP, again) is None
    assert "guard-forward" not in world.ruleset(Node.HOP)
    assert "guard-forward" not in quiet


def test_guards_are_found_again_after_a_restart(world: World) -> None:
    world.apply(through(relay(443)))
    handle = world.open(Attempt(LAPTOP, 443))
    world.apply([])
    world.restart_agent()
    world.apply([])
    assert world.client_speaks(handle) is Life.RESET
    again = world.tend(Node.HOP, world.now())
    assert again is not None
    assert world.tend(Node.HOP, again) is None
    assert "guard-forward" not in world.ruleset(Node.HOP)


def test_the_guard_of_one_client_spares_the_other(world: World) -> None:
    """A revoked client and an allowed one at the same port: only the revoked one is guarded against."""
    entries = through(relay(443))
    world.apply(entries)
    world.open(Attempt(STRANGER, 443))
    lives = world.open(Attempt(LAPTOP, 443))
    world.apply([dataclasses.replace(entry, source=parse_source("192.168.7.0/24")) for entry in entries])
    assert world.server_speaks(lives) is Life.ALIVE
    check(world, {Attempt(LAPTOP, 443): 443, Attempt(PHONE, 443): 443}, [Attempt(STRANGER, 443)])


def test_other_users_of_the_connection_mark_keep_their_bits(world: World) -> None:
    world.nft(
        Node.HOP,
        "table ip vpn { chain pre { type filter hook prerouting priority mangle; policy accept;\n"
        "iif ens6 ct state new ct mark set 0x00001234\n}\n}",
    )
    world.apply(through(relay(443)))
    handle = world.open(Attempt(LAPTOP, 443))
    assert world.marks(Node.HOP) == [0x1234 | MARK_OURS]
    assert world.client_speaks(handle) is Life.ALIVE


@pytest.mark.parametrize("first", ["client", "server"])
@pytest.mark.parametrize("proto", list(Proto))
def test_connections_whose_mark_was_overwritten_are_cut_too(world: World, proto: Proto, first: str) -> None:
    """A script that sets the whole mark hides our connections; the user's own forward of that port lives on."""
    world.nft(
        Node.HOP,
        "add rule ip qubes custom-forward ct status dnat accept\n"
        "table ip mine { chain post { type filter hook postrouting priority mangle; policy accept;\n"
        "ct mark set 0x00000001\n}\n"
        "chain pre { type nat hook prerouting priority dstnat; policy accept;\n"
        "ip saddr 203.0.113.9 tcp dport 443 dnat to 10.137.0.20:443\n"
        "ip saddr 203.0.113.9 udp dport 443 dnat to 10.137.0.20:443\n}\n}",
    )
    world.nft(Node.WORK, "add rule ip qubes custom-input accept")
    near, other = relay(443, source="192.168.7.0/24", proto=proto), relay(80, proto=proto)
    world.apply([near, other])
    handle, by_hand = world.open(Attempt(LAPTOP, 443, proto)), world.open(Attempt(STRANGER, 443, proto))
    stays = world.open(Attempt(LAPTOP, 80, proto))
    assert not any(mark & MARK_OURS for mark in world.marks(Node.HOP))
    world.apply([other])
    speakers = [world.client_speaks, world.server_speaks]
    for speak in speakers if first == "client" else speakers[::-1]:
        assert speak(handle) is CUT[proto]
        assert speak(by_hand) is speak(stays) is Life.ALIVE


def test_neighbours_that_move_away_are_cut(world: World) -> None:
    """The name stands for the network of the moment; here the class shrinks by an edit from any to neighbours."""
    entry, opened = through(relay(443))
    world.apply([entry, opened])
    near, far = world.open(Attempt(LAPTOP, 443)), world.open(Attempt(UPSTREAM, 443))
    world.apply([dataclasses.replace(entry, source=parse_source("neighbours")), opened])
    assert world.client_speaks(near) is Life.ALIVE
    assert world.client_speaks(far) is Life.RESET


def test_one_family_goes_the_other_stays(world: World) -> None:
    four, six = through(relay(443)), through(relay(443, family=V6))
    world.apply([*four, *six])
    ends, lives = world.open(Attempt(LAPTOP, 443)), world.open(Attempt(LAPTOP, 443, TCP, V6))
    applied = world.apply(six)
    assert set(applied.hop.values()) == {Result.OK}
    assert world.client_speaks(lives) is Life.ALIVE
    assert world.client_speaks(ends) is Life.RESET


@pytest.mark.parametrize("family", list(Family))
def test_a_server_is_heard_again_once_its_client_may_come_back(world: World, family: Family) -> None:
    """Over UDP nothing but its ends tells a new flow from one that was revoked: the guard must let go of them."""
    rule = through(relay(443, proto=UDP, family=family))
    world.apply(rule)
    handle = world.open(Attempt(LAPTOP, 443, UDP, family))
    world.apply([])
    assert world.server_speaks(handle) is Life.SILENT
    world.apply(rule)
    assert world.server_speaks(handle) is Life.SILENT, "still the revoked one"
    assert world.client_speaks(handle) is Life.ALIVE
    world.forget_connections()
    assert world.server_speaks(handle) is Life.ALIVE


def test_removed_agent_leaves_nothing_behind(world: World) -> None:
    """Mistake: without agent nobody closes the port of a rule that is deleted afterwards."""
    before = [world.ruleset(node) for node in Node]
    world.nft(Node.HOP, "add rule ip qubes custom-forward ip saddr 192.168.7.3 drop")
    entries = [*through(relay(443)), *through(relay(443, family=V6)), *through(relay(9005, proto=UDP))]
    world.apply(entries)
    world.leave()
    attempts = [Attempt(LAPTOP, 443), Attempt(LAPTOP, 443, TCP, V6), Attempt(LAPTOP, 9005, UDP)]
    check(world, shut=attempts)
    after = [world.ruleset(node) for node in Node]
    assert after[1] == before[1]
    assert after[0].count("\n") == before[0].count("\n") + 1
    assert "192.168.7.3" in after[0]


@pytest.mark.parametrize("speaks", ["client", "server"])
def test_removed_agent_ends_connections_for_good(world: World, speaks: str) -> None:
    """Mistake: what its programs say next has the connection taken up again."""
    world.apply(through(relay(443)))
    handle = world.open(Attempt(LAPTOP, 443))
    world.leave()
    for speak in [world.client_speaks, world.server_speaks][:: 1 if speaks == "client" else -1]:
        assert speak(handle) is not Life.ALIVE
    assert world.marks(Node.HOP) == world.marks(Node.WORK) == []
    check(world, shut=[Attempt(LAPTOP, 443)])


def test_agent_that_was_removed_can_come_back(world: World) -> None:
    world.apply(through(relay(443)))
    world.open(Attempt(LAPTOP, 443))
    world.leave()
    world.restart_agent()
    world.apply(through(relay(443)))
    check(world, {Attempt(LAPTOP, 443): 443})
