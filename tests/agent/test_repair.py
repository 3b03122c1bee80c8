# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""What others do to the ruleset, and what becomes of our part of it."""

import re

import pytest

from portfwd.agent.rules.skeleton import BASE_RULES, COMMENT, TABLE, nft_family, table
from portfwd.kernel.nft import LibNft
from portfwd.wire.acknowledgement import Result
from portfwd.wire.values import Family, Proto
from tests.agent.kernel_world import KernelWorld, bring, start_agent
from tests.agent.machine import Machine
from tests.agent.world import (
    LAPTOP,
    PHONE,
    STRANGER,
    TCP,
    UDP,
    V6,
    Attempt,
    Life,
    Node,
    World,
    check,
    relay,
    through,
)

SHUT = [Attempt(LAPTOP, 443), Attempt(LAPTOP, 9005)]
OPEN = {Attempt(LAPTOP, 443): 443, Attempt(LAPTOP, 9005): 9005}


def test_applying_again_and_again_changes_nothing(world: World) -> None:
    entries = [*through(relay(443, source="neighbours")), *through(relay("9000-9010", source="192.168.7.0/24"))]
    world.apply(entries)
    before = [world.ruleset(node) for node in Node]
    for turn in range(100):
        if turn % 25 == 10:
            world.restart_agent()
        if turn % 25 == 20:
            world.forget()
        world.apply(entries)
    assert [world.ruleset(node) for node in Node] == before
    assert before[0].count(COMMENT) > 0
    check(world, OPEN)


def test_adding_and_removing_leaves_nothing(world: World) -> None:
    world.apply([])
    before = [world.ruleset(node) for node in Node]
    for _ in range(10):
        world.apply([*through(relay(443)), *through(relay("7000-7010", "9000-9010", source="192.168.7.2"))])
        world.apply([])
    assert [world.ruleset(node) for node in Node] == before


def test_u12_the_users_rules_stay_and_come_first(world: World) -> None:
    world.nft(Node.HOP, "add rule ip qubes custom-forward ip saddr 192.168.7.3 drop")
    world.nft(Node.WORK, "add rule ip qubes custom-input ip saddr 203.0.113.9 drop")
    world.apply(through(relay(443)))
    check(world, {Attempt(LAPTOP, 443): 443}, [Attempt(PHONE, 443), Attempt(STRANGER, 443)])
    world.apply([])
    assert "ip saddr 192.168.7.3 drop" in world.ruleset(Node.HOP)
    assert "ip saddr 203.0.113.9 drop" in world.ruleset(Node.WORK)


def test_u12_a_users_rule_added_later_stays(world: World) -> None:
    world.apply(through(relay(443)))
    world.nft(Node.HOP, "add rule ip qubes custom-forward ip saddr 10.0.0.1 accept")
    for _ in range(3):
        world.apply(through(relay(443)))
    listed = world.nft(Node.HOP, "list chain ip qubes custom-forward")
    assert listed.count("ip saddr 10.0.0.1 accept") == 1
    assert listed.count(COMMENT) == 1


def test_our_rule_standing_twice_or_altered_is_put_right(world: World) -> None:
    world.apply(through(relay(443)))
    world.nft(Node.HOP, f"add rule ip qubes custom-forward {BASE_RULES['custom-forward']}")
    world.nft(Node.WORK, "flush chain ip qubes custom-input")
    world.nft(Node.WORK, f'add rule ip qubes custom-input tcp dport 1 drop comment "{COMMENT}"')
    world.apply(through(relay(443)))
    assert world.nft(Node.HOP, "list chain ip qubes custom-forward").count(COMMENT) == 1
    listed = world.nft(Node.WORK, "list chain ip qubes custom-input")
    assert listed.count(COMMENT) == 1
    assert "dport 1" not in listed
    check(world, {Attempt(LAPTOP, 443): 443})


@pytest.mark.parametrize(
    "text",
    [
        "flush chain ip qubes custom-forward",
        f"delete table ip {TABLE}",
        f"flush table ip {TABLE}",
        f"flush chain ip {TABLE} entrance",
        f"flush chain ip {TABLE} up-go",
        f"flush map ip {TABLE} up-port",
        f"flush map ip {TABLE} up-to",
        f"flush map ip {TABLE} up-range",
        f"flush map ip {TABLE} up-port\nflush chain ip {TABLE} entrance\n"
        f"delete chain ip {TABLE} entrance\nadd chain ip {TABLE} entrance",
    ],
    ids=lambda text: text.partition("\n")[0],
)
def test_what_others_remove_is_repaired(world: World, text: str) -> None:
    entries = [*through(relay(443)), *through(relay("9000-9010"))]
    world.apply(entries)
    before = world.ruleset(Node.HOP)
    lives = world.open(Attempt(LAPTOP, 443))
    if "delete chain" in text:
        text = f"flush chain ip {TABLE} prerouting\n" + text
    world.nft(Node.HOP, text)
    assert world.ruleset(Node.HOP) != before
    world.forget()
    applied = world.apply(entries)
    assert set(applied.hop.values()) == {Result.OK}
    check(world, OPEN, [Attempt(LAPTOP, 444)])
    assert world.client_speaks(lives) is Life.ALIVE
    world.apply([])
    assert world.client_speaks(lives) is Life.RESET
    check(world, shut=SHUT)


@pytest.mark.parametrize(
    "text",
    [
        f"delete table ip {TABLE}",
        f"flush table ip {TABLE}",
        f"flush chain ip {TABLE} up-go",
        f"flush chain ip {TABLE} entrance",
        f"flush map ip {TABLE} up-to",
        f"flush chain ip {TABLE} up-any\nadd rule ip {TABLE} up-any drop",
    ],
)
def test_what_others_do_while_the_agent_is_dead_is_repaired(world: World, text: str) -> None:
    entries = [*through(relay(443)), *through(relay("9000-9010"))]
    world.apply(entries)
    handle = world.open(Attempt(LAPTOP, 443))
    world.nft(Node.HOP, text)
    world.restart_agent()
    world.apply(entries)
    check(world, OPEN, [Attempt(LAPTOP, 444)])
    assert world.client_speaks(handle) is Life.ALIVE


def test_every_chain_is_filled_anew_at_the_start(world: World) -> None:
    entries = [*through(relay(443)), *through(relay("9000-9010"))]
    world.apply(entries)
    before = [world.ruleset(node) for node in Node]
    for node in Node:
        for family in Family:
            chains = re.findall(r"chain (\S+) {", table(family))
            world.nft(node, "".join(f"flush chain {nft_family(family)} {TABLE} {chain}\n" for chain in chains))
    world.restart_agent()
    world.apply(entries)
    assert [world.ruleset(node) for node in Node] == before


def test_a_restart_of_the_agent_costs_no_packet(kernel: KernelWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """UDP repeats nothing, so a packet that is lost is missed; the agent starts while it is on its way."""
    kernel.reset()
    monkeypatch.setattr(kernel, "patience", 5.0)
    entries = through(relay(443, proto=UDP))
    kernel.apply(entries)
    handle = kernel.open(Attempt(LAPTOP, 443, UDP))
    hop = kernel.machine("hop")
    for _ in range(20):
        hop.call(start_agent)
        hop.begin(bring, [entries[0]], kernel.now(), {})
        for _ in range(3):
            assert kernel.client_speaks(handle) is Life.ALIVE
        assert set(hop.finish().values()) == {Result.OK}


def test_what_others_add_is_removed(world: World) -> None:
    world.apply(through(relay(443)))
    world.nft(
        Node.HOP,
        f"add element ip {TABLE} up-port {{ tcp . 80 : goto up-any }}\n"
        f"add element ip {TABLE} up-to {{ tcp . 80 : 10.137.0.20 . 443 }}",
    )
    check(world, {Attempt(LAPTOP, 80): 443})
    world.forget()
    world.apply(through(relay(443)))
    check(world, shut=[Attempt(LAPTOP, 80)])


def test_a_removed_forwards_guard_survives_a_repair(world: World) -> None:
    world.apply(through(relay(443)))
    handle = world.open(Attempt(LAPTOP, 443))
    world.apply([])
    world.nft(Node.HOP, f"flush chain ip {TABLE} entrance")
    world.forget()
    world.apply([])
    assert world.server_speaks(handle) is Life.RESET
    assert world.client_speaks(handle) is Life.RESET


def test_without_base_firewall_nothing_opens_and_it_says_so(world: World) -> None:
    entries = [*through(relay(443)), *through(relay("9000-9010"))]
    world.apply(entries)
    world.nft(Node.HOP, "flush ruleset")
    world.forget()
    applied = world.apply(entries)
    assert set(applied.hop.values()) == {Result.NO_BASE}
    check(world, shut=SHUT)


def test_the_base_firewall_may_come_back(world: World) -> None:
    entries = through(relay(443))
    world.apply(entries)
    world.nft(Node.WORK, "delete table ip qubes")
    world.forget()
    assert set(world.apply(entries).work.values()) == {Result.NO_BASE}
    world.nft(
        Node.WORK,
        "table ip qubes { chain custom-input {\n}\nchain custom-forward {\n}\n"
        "chain input { type filter hook input priority filter; policy drop;\n"
        "jump custom-input\nct state related,established accept\n}\n}",
    )
    assert set(world.apply(entries).work.values()) == {Result.OK}
    check(world, {Attempt(LAPTOP, 443): 443})


def test_one_family_without_base_firewall_does_not_hurt_the_other(world: World) -> None:
    world.nft(Node.HOP, "delete table ip6 qubes")
    four, six = through(relay(443)), through(relay(443, family=V6))
    applied = world.apply([*four, *six])
    assert applied.hop == {four[0].key: Result.OK, six[0].key: Result.NO_BASE}
    check(world, {Attempt(LAPTOP, 443): 443}, [Attempt(LAPTOP, 443, TCP, V6)])


@pytest.mark.parametrize("word", ["9000-9010", "add element", "flush map"])
def test_when_nft_fails_everything_is_shut(world: World, word: str) -> None:
    """nft refuses this entry, then all elements, then our tables: they are removed."""
    first, second = through(relay(443, 8443)), through(relay("9000-9010"))
    world.apply(first)
    handle = world.open(Attempt(LAPTOP, 443))
    if word == "flush map":
        world.restart_agent()
    with world.refuse(Node.HOP, word):
        applied = world.apply([*first, *second])
        assert set(applied.hop.values()) == {Result.FAILED}
        check(world, shut=SHUT)
        assert world.client_speaks(handle) is not Life.ALIVE
    applied = world.apply([*first, *second])
    assert set(applied.hop.values()) == {Result.OK}
    check(world, {Attempt(LAPTOP, 443): 8443, Attempt(LAPTOP, 9005): 9005})


@pytest.mark.parametrize("first", ["client", "server"])
@pytest.mark.parametrize("node", list(Node))
@pytest.mark.parametrize("proto", list(Proto))
def test_what_is_shut_since_nft_fails_ends_its_connections(world: World, proto: Proto, node: Node, first: str) -> None:
    """And they do not come back, neither now nor when nft works again."""
    entries, more = through(relay(443, proto=proto)), through(relay("9000-9010", proto=proto))
    world.apply(entries)
    handle = world.open(Attempt(LAPTOP, 443, proto))
    cut = Life.RESET if proto is TCP else Life.SILENT
    speakers = [world.client_speaks, world.server_speaks]
    with world.refuse(node, "9000-9010"):
        world.apply([*entries, *more])
        for speak in speakers if first == "client" else speakers[::-1]:
            assert speak(handle) is cut
    world.apply(more)
    for speak in speakers:
        assert speak(handle) is cut
    check(world, {Attempt(LAPTOP, 9005, proto): 9005}, [Attempt(LAPTOP, 443, proto)])


def test_the_cost_of_a_packet_does_not_grow_with_the_forwards(world: World) -> None:
    """Rules never come from entries; only elements do."""
    world.apply([*through(relay(443)), *through(relay("9000-9010"))])
    few = _rules(world)
    world.apply([relay(port, 443, source="192.168.7.0/24") for port in range(10000, 10200)])
    assert _rules(world) == few


def _rules(world: World) -> list[str]:
    return re.findall(r"\tchain .*?\n\t}", world.ruleset(Node.HOP), re.DOTALL)


def test_anyone_is_never_the_default(world: World) -> None:
    """Neighbours and prefixes are looked up; only the word any lets everybody in."""
    world.apply(through(relay(443, source="neighbours")))
    assert not re.findall(r"(?:443|tcp)[^\n]*goto up-any[^\n]*443", world.ruleset(Node.HOP))
    check(world, {Attempt(LAPTOP, 443): 443}, [Attempt(STRANGER, 443)])


def change_during(_machine: Machine, text: str) -> list[int]:
    """Command: somebody else commits while an agent's nft runs a text; what the agent takes for its own."""
    mine, other = LibNft(), LibNft()
    look = mine._generation

    def first_look() -> int:
        mine._generation = look  # type: ignore[method-assign]
        found = look()
        other.run("add table ip meanwhile")
        return found

    mine._generation = first_look  # type: ignore[method-assign]
    mine.run(text)
    other.run("delete table ip meanwhile")
    return list(mine.generations)


@pytest.mark.parametrize("text", ["list tables", "add table ip own"])
def test_a_change_that_comes_while_the_agent_looks_is_not_taken_for_its_own(kernel: KernelWorld, text: str) -> None:
    """Mistake: it is never repaired."""
    kernel.reset()
    assert kernel.machine("hop").call(change_during, text) == []
