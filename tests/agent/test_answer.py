# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""What a qube tells when dom0 asks: who came in, what is open, and that one of them has been ended."""

import pytest

from portfwd.agent.rules.counters import ElementCount, parse
from portfwd.agent.rules.skeleton import HITS, HITS_MAX, TABLE
from portfwd.kernel.conntrack import Flow
from portfwd.kernel.sockets import destroy
from portfwd.wire import limits
from portfwd.wire.answers.connections import Connection, Connections, Ended, parse_result
from portfwd.wire.answers.preview import Preview, format_request
from portfwd.wire.answers.report import AcceptReport, Listening, RelayReport, Report
from portfwd.wire.entry import Entry
from portfwd.wire.values import Family, PortRange, Proto, Side
from tests.agent.kernel_world import KernelWorld
from tests.agent.machine import Machine
from tests.agent.world import (
    LAPTOP,
    PHONE,
    SIBLING,
    STRANGER,
    TCP,
    UDP,
    V4,
    V6,
    WORK,
    Attempt,
    Life,
    Node,
    World,
    check,
    relay,
    through,
)


def report(world: World, node: Node) -> Report:
    return Report.parse(world.ask(node, limits.REPORT_SERVICE))


def relayed(world: World, entry: Entry) -> RelayReport:
    told = report(world, Node.HOP).relay(entry.key)
    assert told is not None
    return told


def accepted(world: World, entry: Entry) -> AcceptReport:
    told = report(world, Node.WORK).accept(entry.key)
    assert told is not None
    return told


def listed(world: World) -> list[tuple[str, Connection]]:
    found = Connections.parse(world.ask(Node.WORK, limits.CONNECTIONS_SERVICE))
    assert found.more == 0
    return list(found.listed)


def kill(world: World, connection: Connection) -> Ended:
    return parse_result(world.ask(Node.WORK, limits.KILL_SERVICE, f"{connection}\n"))


def come(world: World, *attempts: Attempt) -> None:
    assert None not in world.probe(attempts, len(attempts))


@pytest.mark.parametrize("family", list(Family))
@pytest.mark.parametrize("proto", list(Proto))
def test_connections_are_counted_where_they_come_in(world: World, proto: Proto, family: Family) -> None:
    one, one_target = through(relay(443, 8443, proto=proto, family=family))
    wide, wide_target = through(
        relay(
            "5000-5010", 80, proto=proto, family=family, source="192.168.7.0/24" if family is V4 else "2001:db8:7::/64"
        )
    )
    inside, _ = through(relay(22, 8443, proto=proto, family=family, side=Side.DOWNSTREAM))
    world.apply([one, one_target, wide, wide_target, inside])
    for entry in (one, wide, inside):
        assert relayed(world, entry) == RelayReport(0, None)
    come(world, *(Attempt(who, 443, proto, family) for who in (LAPTOP, PHONE, LAPTOP)))
    come(world, *(Attempt(LAPTOP, port, proto, family) for port in (5000, 5003, 5010, 5003)))
    come(world, Attempt(SIBLING, 22, proto, family))
    world.probe([Attempt(STRANGER, 5000, proto, family), Attempt(LAPTOP, 22, proto, family)], 0)
    assert [relayed(world, entry).hits for entry in (one, wide, inside)] == [3, 4, 1]
    for entry in (one, wide, inside):
        last = relayed(world, entry).last
        assert last is not None
        assert last < 10


def test_the_newest_connection_tells_how_long_ago(world: World) -> None:
    entry, target = through(relay("440-450", 443))
    world.apply([entry, target])
    come(world, Attempt(LAPTOP, 441))
    begin = world.now()
    world.wait_until(lambda: world.now() >= begin + 2.2)
    assert relayed(world, entry).last in (2, 3, 4)
    come(world, Attempt(LAPTOP, 442))
    assert relayed(world, entry).last in (0, 1)


def test_counted_connections_go_with_their_rule_and_no_others(world: World) -> None:
    gone, gone_target = through(relay("440-450", 443))
    kept, kept_target = through(relay(80))
    world.apply([gone, gone_target, kept, kept_target])
    come(world, Attempt(LAPTOP, 441), Attempt(LAPTOP, 80))
    world.apply([kept, kept_target])
    world.restart_agent()
    successor, _ = through(relay("440-450", 443))
    world.apply([successor, gone_target, kept, kept_target])
    assert (relayed(world, successor).hits, relayed(world, kept).hits) == (0, 1)


def test_a_successor_in_the_same_breath_begins_at_nothing(world: World) -> None:
    first, target = through(relay(443, source="192.168.7.0/24"))
    world.apply([first, target])
    come(world, Attempt(LAPTOP, 443))
    second, other = through(relay(443, 80, source="192.168.7.0/24"))
    world.apply([second, other])
    assert relayed(world, second).hits == 0


def test_when_nothing_more_can_be_counted_all_still_works(world: World) -> None:
    entry, target = through(relay("1-65535", 443))
    world.apply([entry, target])
    ports = list(range(10001, 10001 + HITS_MAX))
    for start in range(0, len(ports), 1024):
        keys = ", ".join(f"tcp . {port}" for port in ports[start : start + 1024])
        world.nft(Node.HOP, f"add element ip {TABLE} up-{HITS} {{ {keys} }}\n")
    check(world, {Attempt(LAPTOP, 9999): 443, Attempt(LAPTOP, 30000): 443})


def test_every_packet_of_a_client_counts_once(world: World) -> None:
    """The first ones pass the way of arrivals until the server answers; nothing answers here."""
    entry, target = through(relay(7000, proto=UDP))
    world.apply([entry, target])
    assert accepted(world, target) == AcceptReport(Listening.NO, 0, 0, 0)
    unanswered = Attempt(LAPTOP, 7000, UDP, source_port=45100)
    for number in (1, 2, 3):
        world.probe([unanswered], 0)
        assert accepted(world, target).packets == number
    entry, target = through(relay("9000-9010", proto=UDP))
    world.apply([entry, target])
    handle = world.open(Attempt(LAPTOP, 9003, UDP))
    before = accepted(world, target)
    assert before.packets is not None
    assert before.bytes is not None
    assert world.client_speaks(handle) is Life.ALIVE
    after = accepted(world, target)
    assert after.packets == before.packets + 1
    assert after.bytes is not None
    assert after.bytes > before.bytes


@pytest.mark.parametrize("family", list(Family))
@pytest.mark.parametrize("proto", list(Proto))
def test_open_connections_are_told_one_by_one(world: World, proto: Proto, family: Family) -> None:
    entry, target = through(relay(443, 8443, proto=proto, family=family))
    other, other_target = through(relay(80, proto=proto, family=family))
    world.apply([entry, target, other, other_target])
    assert listed(world) == []
    who = {LAPTOP: 45001, PHONE: 45002}
    for client, port in who.items():
        world.open(Attempt(client, 443, proto, family, source_port=port))
    assert sorted(listed(world), key=str) == [
        (target.key, Connection(family, proto, client.addresses[family], port, 8443)) for client, port in who.items()
    ]
    assert (accepted(world, target).connections, accepted(world, other_target).connections) == (2, 0)
    assert b"connections=0" in world.ask(Node.HOP, limits.CONNECTIONS_SERVICE)


def test_entries_that_share_a_door_share_its_numbers(world: World) -> None:
    one, one_target = through(relay(443, 8443))
    two, two_target = through(relay(444, 8443))
    world.apply([one, one_target, two, two_target])
    world.open(Attempt(LAPTOP, 443, source_port=45003))
    assert sorted(key for key, _ in listed(world)) == sorted([one_target.key, two_target.key])
    assert accepted(world, one_target) == accepted(world, two_target)
    assert accepted(world, one_target).connections == 1
    assert (relayed(world, one).hits, relayed(world, two).hits) == (1, 0)


@pytest.mark.parametrize("family", list(Family))
def test_a_connection_is_ended_and_no_other(world: World, family: Family) -> None:
    entry, target = through(relay(443, 8443, family=family))
    world.apply([entry, target])
    doomed, spared = (world.open(Attempt(LAPTOP, 443, TCP, family, port)) for port in (45004, 45005))
    ends = Connection(family, TCP, LAPTOP.addresses[family], 45004, 8443)
    assert kill(world, ends) is Ended.ENDED
    assert world.server_speaks(doomed) is Life.RESET
    assert world.client_speaks(doomed) is Life.RESET
    assert world.client_speaks(spared) is Life.ALIVE
    assert kill(world, ends) is Ended.NONE
    assert [connection.port for _, connection in listed(world)] == [45005]
    check(world, {Attempt(LAPTOP, 443, TCP, family): 8443})


@pytest.mark.parametrize("family", list(Family))
def test_over_udp_the_server_is_no_longer_heard_until_the_client_comes_again(world: World, family: Family) -> None:
    entry, target = through(relay(443, proto=UDP, family=family))
    world.apply([entry, target])
    handle = world.open(Attempt(LAPTOP, 443, UDP, family, 45006))
    assert kill(world, Connection(family, UDP, LAPTOP.addresses[family], 45006, 443)) is Ended.ENDED
    assert world.server_speaks(handle) is Life.SILENT
    assert world.client_speaks(handle) is Life.ALIVE
    world.forget_connections()
    assert world.server_speaks(handle) is Life.ALIVE


def test_what_is_not_ours_is_not_ended(world: World) -> None:
    entry, target = through(relay(443, 8443))
    world.apply([entry, target])
    world.open(Attempt(LAPTOP, 443, source_port=45007))
    right = Connection(V4, TCP, LAPTOP.addresses[V4], 45007, 8443)
    for wrong in (
        Connection(V4, TCP, LAPTOP.addresses[V4], 45008, 8443),
        Connection(V4, TCP, LAPTOP.addresses[V4], 45007, 443),
        Connection(V4, TCP, PHONE.addresses[V4], 45007, 8443),
        Connection(V4, UDP, LAPTOP.addresses[V4], 45007, 8443),
        Connection(V6, TCP, LAPTOP.addresses[V6], 45007, 8443),
    ):
        assert kill(world, wrong) is Ended.NONE
    for words in ("", "family=4", f"{right} more=1", f"{right}\n{right}", "x" * 5000, "\0"):
        assert parse_result(world.ask(Node.WORK, limits.KILL_SERVICE, words)) is Ended.REFUSED
    assert len(listed(world)) == 1


def test_a_preview_is_what_will_be_loaded_and_loads_nothing(world: World) -> None:
    standing = through(relay(22))
    entries = [
        relay(443, 8443),
        relay("5000-5003", "9000-9003", proto=UDP),
        relay(22, 80),
        relay(80, source="name:x.example.org"),
    ]
    world.apply(standing)
    before = world.ruleset(Node.HOP)
    told = Preview.parse(world.ask(Node.HOP, limits.PREVIEW_SERVICE, format_request(entries)))
    assert world.ruleset(Node.HOP) == before
    world.apply(entries)
    assert told.more == 0
    ports = {
        text.partition(" { ")[2].partition(" comment")[0] for text in told.elements if text.startswith("ip up-port")
    }
    assert ports == {"tcp . 443", "tcp . 22"}
    assert "ip up-to { udp . 5003 : " + f"{WORK[V4]} . 9003" + " }" in told.elements
    for text in told.elements:
        place, _, element = text.partition(" { ")
        family, name = place.split(" ")
        # Adding what stands there is no change, and something else would be refused.
        world.nft(Node.HOP, f"add element {family} {TABLE} {name} {{ {element}\n")
    assert world.ask(Node.HOP, limits.PREVIEW_SERVICE, "nonsense\n") == b""


def test_no_other_service_is_answered(world: World) -> None:
    assert world.ask(Node.HOP, "qubes.Other") == b""


def test_a_closed_connection_is_not_an_open_one(kernel: KernelWorld) -> None:
    kernel.reset()
    entry, target = through(relay(443))
    kernel.apply([entry, target])
    come(kernel, Attempt(LAPTOP, 443))
    kernel.wait_until(lambda: listed(kernel) == [])
    assert kernel.marks(Node.WORK) != []


def destroy_one(_machine: Machine, flow: Flow) -> bool:
    """Command: end a connection by its socket."""
    return destroy(flow)


def test_a_server_is_not_ended_for_a_connection_that_it_does_not_have(kernel: KernelWorld) -> None:
    kernel.reset()
    work = kernel.machine("work")
    for family in Family:
        client, server = LAPTOP.addresses[family], WORK[family]
        flow = Flow(family, TCP, client, 443, server, 443, 0, client_port=45009)
        assert work.call(destroy_one, flow) is False
        assert work.call(destroy_one, flow._replace(proto=UDP)) is False
    kernel.apply(through(relay(443)))
    check(kernel, {Attempt(LAPTOP, 443): 443})


def test_both_sides_are_reset_at_once(kernel: KernelWorld) -> None:
    kernel.reset()
    entry, target = through(relay(443, 8443))
    kernel.apply([entry, target])
    kernel.open(Attempt(LAPTOP, 443, source_port=45010))
    assert kill(kernel, Connection(V4, TCP, LAPTOP.addresses[V4], 45010, 8443)) is Ended.ENDED
    kernel.wait_until(lambda: kernel.machine("work").call(lost_by_server))


def lost_by_server(machine: Machine) -> bool:
    """Command: whether the program has noticed that its only connection is gone, without saying anything."""
    return list(machine.kept["accepted"].values()) == [None]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("tcp . 443", ElementCount(TCP, PortRange(443, 443), 0, 0, 0)),
        ("6 . 443 counter packets 3 bytes 9", ElementCount(TCP, PortRange(443, 443), 3, 9, 0)),
        (
            "5-9 . udp counter packets 1 bytes 2 timeout 1h expires 59m1s5ms : goto x",
            ElementCount(UDP, PortRange(5, 9), 1, 2, 3541.005),
        ),
        (
            'tcp . 1 timeout 2s expires 1s counter packets 7 bytes 8 comment "ab cd" : goto y',
            ElementCount(TCP, PortRange(1, 1), 7, 8, 1),
        ),
        ("tcp . 30 expires 29d23h59m59s", ElementCount(TCP, PortRange(30, 30), 0, 0, 30 * 86400 - 1)),
    ],
)
def test_elements_as_versions_of_nft_list_them(text: str, count: ElementCount) -> None:
    elements = f"elements = {{ {text},\n\t\t\t     junk . 9,  }}"
    listing = f"table ip t {{\n\tset s {{\n\t\ttype inet_proto . inet_service\n\t\t{elements}\n\t}}\n}}\n"
    assert parse(listing) == [count]
    assert parse(listing.replace("elements", "others")) == []
