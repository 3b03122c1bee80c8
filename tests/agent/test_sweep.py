# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Which connections must end: exactly those that no entry would let in now."""

from hypothesis import given, settings
from hypothesis import strategies as st

from portfwd.agent.rules.elements import Surroundings
from portfwd.agent.rules.skeleton import MARK_DOWN, MARK_IN, MARK_UP, guard, table
from portfwd.agent.rules.sweep import divide, guard_elements
from portfwd.kernel.conntrack import Flow
from portfwd.wire.entry import Accept, Entry, Relay
from portfwd.wire.values import Family, Proto, Side
from tests.agent.strategies import CLIENTS, NAMES, NOW, TARGETS, entry_sets
from tests.agent.test_elements import NEAR, lets_in
from tests.fakes.nft import FakeNft

GUARDED = FakeNft()
GUARDED.run("".join(table(family) + guard(family) for family in Family))
AROUND = Surroundings(NOW, NEAR, NAMES)


@st.composite
def flows(draw: st.DrawFn) -> Flow:
    family = draw(st.sampled_from(Family))
    mark = draw(st.sampled_from((MARK_UP, MARK_DOWN, MARK_IN, 0x51230000 | MARK_UP, 0x50230000)))
    port = draw(st.integers(1, 13))
    server_port = draw(st.sampled_from((port, port + 3, 8000)))
    client, server = draw(st.sampled_from(CLIENTS[family])), draw(st.sampled_from(TARGETS[family]))
    return Flow(family, draw(st.sampled_from(Proto)), client, port, server, server_port, mark)


def allowed(entry: Entry, flow: Flow) -> bool:
    side = MARK_IN if isinstance(entry, Accept) else MARK_DOWN if entry.side is Side.DOWNSTREAM else MARK_UP
    if (entry.family, entry.proto, side) != (flow.family, flow.proto, flow.mark & 0x07000000):
        return False
    if flow.port not in entry.listen:
        return False
    if isinstance(entry, Relay) and (entry.to, entry.maps_to(flow.port)) != (flow.server, flow.server_port):
        return False
    by_class = entry.side is Side.DOWNSTREAM and entry.source == "neighbours"
    return by_class or lets_in(entry, flow.client)


@settings(max_examples=50, deadline=None)
@given(st.lists(flows(), max_size=20), entry_sets)
def test_exactly_what_no_entry_allows(found: list[Flow], entries: list[Entry]) -> None:
    kept, lost = divide(found, entries, AROUND)
    for flow in found:
        sides = (flow.mark,) if flow.mark & 0x07000000 else (MARK_UP, MARK_DOWN)
        lives = any(allowed(entry, flow._replace(mark=side)) for entry in entries for side in sides)
        assert (flow in kept, flow in lost) == (lives, not lives)


@settings(max_examples=50, deadline=None)
@given(st.lists(flows(), min_size=1, max_size=20))
def test_the_guards_elements_load_together(found: list[Flow]) -> None:
    nft = FakeNft(lambda: NOW)
    nft.ruleset = {place: held.copy() for place, held in GUARDED.ruleset.items()}
    for _ in range(2):
        nft.run(guard_elements(found))
    text = nft.run("list ruleset")
    for flow in found:
        assert f"{flow.proto.value} . {flow.client} . {flow.port}" in text


def test_nothing_is_lost_when_nothing_is_there() -> None:
    assert divide([], [], AROUND) == ([], [])
    assert guard_elements([]) == ""
