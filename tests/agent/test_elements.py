# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""From entries to elements, and from one set of elements to another: for any entries, by what a packet meets."""

import ipaddress
import itertools
from collections.abc import Callable, Iterable

from hypothesis import given, settings
from hypothesis import strategies as st

from portfwd.agent.rules import skeleton
from portfwd.agent.rules.diff import difference, differing, everything, settle
from portfwd.agent.rules.elements import Element, Elements, Network, Surroundings, addresses_of, collapse
from portfwd.agent.rules.kinds import build
from portfwd.agent.rules.relays import _relay
from portfwd.wire.acknowledgement import Result
from portfwd.wire.entry import Entry, Relay
from portfwd.wire.values import Family, IPAddress, IPNetwork, Proto, Side, SourceWord
from tests.agent.strategies import CLIENTS, NAMES, NOW, TARGETS, accept_sets, entry_sets, relay_sets
from tests.fakes.base import base_tables
from tests.fakes.nft import FakeNft
from tests.fakes.nft_trace import FakeHost, Interface
from tests.fakes.packets import SYN, Fate, Packet

OWN = {Family.V4: ipaddress.ip_interface("192.0.2.129/26"), Family.V6: ipaddress.ip_interface("2001:db8::c9/126")}
NEAR = tuple(Network("ens6", address.network) for address in OWN.values())
AROUND = Surroundings(NOW, NEAR, NAMES)
TABLES = "".join(base_tables(family) + skeleton.table(family) for family in Family)
RULES = "".join(
    f"add rule {ip} qubes {chain} {rule}\n" for ip in ("ip", "ip6") for chain, rule in skeleton.BASE_RULES.items()
)


BASE = FakeNft()
BASE.run(TABLES + RULES)


def fresh_nft(clock: Callable[[], float]) -> FakeNft:
    nft = FakeNft(clock)
    nft.ruleset = {place: table.copy() for place, table in BASE.ruleset.items()}
    return nft


class Clock:
    def __init__(self) -> None:
        self.now = float(NOW)

    def __call__(self) -> float:
        return self.now


def host_with(elements: Elements, clock: Clock | None = None) -> FakeHost:
    nft = fresh_nft(clock or Clock())
    nft.run(everything(elements, tuple(Family), NOW))
    routes: list[tuple[IPNetwork, str]] = [(ipaddress.ip_network(t), "vif1.0") for f in Family for t in TARGETS[f]]
    routes += [(family.everything, "ens6") for family in Family]
    own = tuple(OWN.values())
    interfaces = [Interface(name, group, "veth", own) for name, group in (("ens6", 0), ("eth0", 1), ("vif1.0", 2))]
    return FakeHost(nft, interfaces, routes)


def packets(family: Family, proto: Proto) -> Iterable[Packet]:
    flags = SYN if proto is Proto.TCP else frozenset[str]()
    for client, port in itertools.product(CLIENTS[family], range(1, 14)):
        yield Packet(proto, client, 1024, OWN[family].ip, port, flags)


def lets_in(entry: Entry, client: IPAddress) -> bool:
    if entry.source is SourceWord.ANYONE:
        return True
    if entry.source is SourceWord.NEIGHBOURS:
        return any(client in network.prefix for network in NEAR)
    return any(client in prefix for prefix in addresses_of(entry, AROUND))


def wants(entry: Entry, packet: Packet) -> bool:
    if entry.expire is not None and entry.expire <= NOW:
        return False
    return (
        (entry.family, entry.proto) == (packet.family, packet.proto)
        and packet.target_port in entry.listen
        and lets_in(entry, packet.source)
    )


def enters(entry: Entry, uplink: str) -> bool:
    """By ens6, a card, or eth0, the uplink to a net qube, to which no network is attached."""
    if uplink == "ens6":
        return entry.side is Side.UPLINK
    return entry.side is not Side.DOWNSTREAM and entry.source is not SourceWord.NEIGHBOURS


@settings(max_examples=25, deadline=None)
@given(accept_sets)
def test_a_port_is_open_exactly_when_some_entry_says_so(entries: list[Entry]) -> None:
    elements, results = build(entries, AROUND)
    assert set(results) == {entry.key for entry in entries}
    host = host_with(elements)
    for family, proto in itertools.product(Family, Proto):
        for packet in packets(family, proto):
            open_now = host.receive(packet, "eth0").fate is Fate.LOCAL
            host.connections.clear()
            assert open_now == any(wants(entry, packet) for entry in entries), packet


@settings(max_examples=25, deadline=None)
@given(relay_sets)
def test_a_relay_leads_exactly_where_its_entry_says(entries: list[Entry]) -> None:
    elements, results = build(entries, AROUND)
    host = host_with(elements)
    for uplink, family, proto in itertools.product(("ens6", "eth0"), Family, Proto):
        winners = [e for e in entries if results[e.key] is Result.OK and enters(e, uplink)]
        for packet in packets(family, proto):
            outcome = host.receive(packet, uplink)
            host.connections.clear()
            found = [entry for entry in winners if wants(entry, packet)]
            assert len(found) <= 1
            if not found:
                assert outcome.fate is Fate.DROPPED
                continue
            assert outcome.fate is Fate.FORWARDED
            reached = (outcome.packet.target, outcome.packet.target_port)
            assert reached == (found[0].to, found[0].maps_to(packet.target_port))
            assert outcome.packet.source == packet.source


@settings(max_examples=40, deadline=None)
@given(entry_sets)
def test_every_entry_gets_a_word(entries: list[Entry]) -> None:
    _, results = build(entries, AROUND)
    for entry in entries:
        match results[entry.key]:
            case Result.EXPIRED:
                assert entry.expire is not None
                assert entry.expire <= NOW
            case Result.UNRESOLVED:
                assert not addresses_of(entry, AROUND)
            case Result.CLASH:
                rivals = [e for e in entries if e.key != entry.key and results[e.key] is Result.OK]
                place = (entry.kind, entry.family, entry.proto, skeleton.RELAY_SIDES[entry.side])
                assert isinstance(entry, Relay)
                assert any(
                    (e.kind, e.family, e.proto, skeleton.RELAY_SIDES[e.side]) == place
                    and e.listen.overlaps(entry.listen)
                    for e in rivals
                )
            case result:
                assert result is Result.OK


@settings(max_examples=40, deadline=None)
@given(entry_sets, entry_sets)
def test_the_difference_leads_where_everything_leads(before: list[Entry], after: list[Entry]) -> None:
    old, new = build(before, AROUND)[0], build(after, AROUND)[0]
    by_difference, anew = host_with(old).nft, host_with(new).nft
    by_difference.run(difference(old, new, NOW))
    assert standing(by_difference) == standing(anew)
    assert difference(new, new, NOW) == ""


@settings(max_examples=40, deadline=None)
@given(entry_sets, entry_sets, st.sampled_from((0.0, 1.0, 1.5, 3.0)), st.sampled_from((0.0, 0.5, 1.0, 1.5, 3.0)))
def test_the_difference_holds_whatever_the_two_clocks_say(
    before: list[Entry], after: list[Entry], ours: float, kernels: float
) -> None:
    """The kernel's clock may be behind ours (suspend): what is over by ours is removed although its timer runs."""
    clock = Clock()
    old, new = build(before, AROUND)[0], build(after, Surroundings(NOW + ours, NEAR, NAMES))[0]
    host = host_with(old, clock)
    clock.now = NOW + min(ours, kernels)
    host.nft.run(difference(old, new, NOW + ours))
    anew = fresh_nft(clock)
    anew.run(everything(new, tuple(Family), NOW + ours))
    places = {place: set(keys) for place, keys in standing(host.nft).items()}
    assert places == {place: set(keys) for place, keys in standing(anew).items()}


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(entry_sets, st.sampled_from((0.0, 1.5, 100.0))), min_size=2, max_size=4))
def test_what_is_remembered_of_earlier_entries_makes_no_difference(steps: list[tuple[list[Entry], float]]) -> None:
    """Each set gives what it gives from scratch, whichever sets came before it: their rule ids are the same."""
    for entries, later in steps:
        around = Surroundings(NOW + later, NEAR, NAMES if later else {})
        remembered = build(entries, around)
        _relay.cache_clear()
        assert build(entries, around) == remembered


@settings(max_examples=60, deadline=None)
@given(entry_sets, entry_sets, st.sampled_from((0.0, 0.2, 1.5)))
def test_the_difference_over_what_stands_is_the_plain_one(
    before: list[Entry], after: list[Entry], later: float
) -> None:
    """Elements that are the same object, or equal ones made anew, give the same text."""
    old = build(before, AROUND)[0]
    new = settle(old, build(after, Surroundings(NOW + later, NEAR, NAMES))[0])
    copied = {place: {key: Element(*element) for key, element in keys.items()} for place, keys in new.items()}
    assert difference(old, new, NOW + later) == difference(old, copied, NOW + later)
    for place in old.keys() | new.keys():
        one, other = old.get(place, {}), new.get(place, {})
        assert set(differing(one, other)) == {key for key in one if one[key] != other.get(key)}


Standing = dict[tuple[str, str], dict[str, tuple[object, float | None, str]]]


def standing(nft: FakeNft) -> Standing:
    found: Standing = {}
    for (family, name), table in nft.ruleset.items():
        for member, held in table.sets.items() if name == skeleton.TABLE else ():
            live = held.live(nft.now).values()
            found[family, member] = {e.text: (e.data, e.expires, e.comment) for e in live}
    return found


prefixes = st.lists(
    st.builds(
        lambda number, bits: ipaddress.ip_network((number, bits), strict=False),
        st.integers(0, 2**32 - 1).map(lambda n: n & 0xC000003F),
        st.integers(0, 32),
    ),
    max_size=8,
)


@given(prefixes)
def test_collapsed_prefixes_hold_the_same_and_do_not_overlap(found: list[IPNetwork]) -> None:
    collapsed = collapse(found)
    for one, other in itertools.combinations(collapsed, 2):
        assert not one.overlaps(other)
    edges = [edge for network in [*found, *collapsed] for edge in (network[0], network[-1])]
    for address in edges:
        assert any(address in n for n in found) == any(address in n for n in collapsed)


def test_a_name_cannot_fill_the_kernel_with_networks_of_the_other_family() -> None:
    assert collapse([ipaddress.ip_network("::/0"), ipaddress.ip_network("10.0.0.0/8")]) == [
        ipaddress.ip_network("10.0.0.0/8"),
        ipaddress.ip_network("::/0"),
    ]
