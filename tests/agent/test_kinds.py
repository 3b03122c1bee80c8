# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
# ruff: noqa: ARG002 - what every kind is asked
"""What the agent does for the entries of a kind stands in one place, also for a kind that is new."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import pytest

from portfwd.agent.rules.elements import Element, Elements, Facts, Kind, Results, Surroundings
from portfwd.agent.rules.kinds import KINDS, build, by_kind, kind_of
from portfwd.agent.rules.skeleton import MARK_DOWN
from portfwd.agent.rules.sweep import divide
from portfwd.kernel.conntrack import Flow
from portfwd.wire import entry as entries
from portfwd.wire.acknowledgement import Result
from portfwd.wire.answers.report import EntryReport
from portfwd.wire.entry import Accept, Entry, Relay
from portfwd.wire.errors import RefusedError
from portfwd.wire.values import Family
from tests.agent.world import accept, relay

AROUND = Surroundings(0)
KEY = "00000000000000a1.4.tcp"
VALUE = "kind=mirror side=downstream listen=7-9 source=any count=3"


@dataclass(frozen=True, slots=True)
class Mirror(Entry):
    """A kind that there is not."""

    kind: ClassVar[str] = "mirror"
    own: ClassVar[Mapping[str, Callable[[str], object]]] = {"count": int}

    count: int

    __hash__ = Entry.__hash__


class Mirrors(Kind[Mirror]):
    chain = "custom-forward"

    def side(self, entry: Mirror) -> str:
        return "mirror"

    def mark(self, entry: Mirror) -> int:
        return MARK_DOWN

    def build(self, entries: Sequence[Mirror], around: Surroundings) -> tuple[Elements, Results]:
        keys = {str(entry.listen): Element(str(entry.count)) for entry in entries}
        return {(Family.V4, "mirror-port"): keys} if keys else {}, {entry.key: Result.OK for entry in entries}

    def leads(self, entry: Mirror, flow: Flow, interface: str | None, around: Surroundings) -> bool:
        return flow.port in entry.listen and flow.server_port == entry.count

    def report(self, entries: Sequence[Mirror], facts: Facts) -> dict[str, EntryReport]:
        return {}


@pytest.fixture
def mirrors(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lines that a third kind adds to the tables."""
    monkeypatch.setitem(entries.KINDS, "mirror", Mirror)  # type: ignore[arg-type]
    monkeypatch.setitem(KINDS, Mirror, Mirrors())  # type: ignore[arg-type]


def test_every_kind_that_can_be_read_is_served() -> None:
    assert set(KINDS) == set(entries.KINDS.values())
    assert {word: kind.kind for word, kind in entries.KINDS.items()} == {"relay": "relay", "accept": "accept"}


def test_entries_are_sorted_by_kind_and_keep_their_order() -> None:
    first, second, third = relay(1), accept(2), relay(3)
    found = by_kind([first, second, third])
    assert list(found.values()) == [[first, third], [second]]
    assert found[kind_of(first)] == [first, third]


@pytest.mark.usefixtures("mirrors")
def test_a_third_kind_is_one_class_one_module_and_a_line_in_a_table() -> None:
    mirror = Entry.decode(KEY, VALUE)
    assert isinstance(mirror, Mirror)
    assert (mirror.value, mirror.count, mirror.maps_to(8)) == (VALUE, 3, 8)
    both = [relay(1), accept(2)]
    known, _ = build(both, AROUND)
    elements, results = build([*both, mirror], AROUND)
    assert elements == known | {(Family.V4, "mirror-port"): {"7-9": Element("3")}}
    assert results == {entry.key: Result.OK for entry in (*both, mirror)}


@pytest.mark.usefixtures("mirrors")
def test_connections_are_held_against_a_third_kind() -> None:
    mirror = Entry.decode(KEY, VALUE)
    target = relay(1)
    assert isinstance(target, Relay)
    flows = [Flow(mirror.family, mirror.proto, target.to, 8, target.to, port, MARK_DOWN) for port in (3, 4)]
    assert divide(flows, [mirror], AROUND) == (flows[:1], flows[1:])


def test_without_it_its_entries_are_refused() -> None:
    with pytest.raises(RefusedError, match="is of no known kind"):
        Entry.decode(KEY, VALUE)


@pytest.mark.parametrize("kind", [Relay, Accept])
def test_an_entry_is_found_by_its_key(kind: type[Entry]) -> None:
    one = relay(1) if kind is Relay else accept(1)
    assert hash(one) == hash(one.key)
    assert Entry.decode(one.key, one.value) == one
