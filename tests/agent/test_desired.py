# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""What dom0 wants, read all or nothing; and our word back."""

from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from portfwd.agent.desired import Desired, Reporter, read_desired
from portfwd.wire import limits
from portfwd.wire.acknowledgement import Acknowledgement, AgentState, Result
from portfwd.wire.entry import Commit, Entry
from tests.agent.strategies import entry_sets
from tests.agent.world import accept, relay
from tests.fakes.qubesdb import FakeConnection, FakeQubesDB


def publish(database: FakeConnection, entries: Iterable[Entry], generation: int = 1) -> None:
    found = {entry.key: entry.value for entry in entries}
    for key, value in found.items():
        database.write(limits.ENTRIES + key, value)
    database.write(limits.BASE, str(Commit.over(generation, found)))


def test_nothing_was_ever_written() -> None:
    assert read_desired(FakeQubesDB().connect()) == Desired()


@settings(max_examples=50, deadline=None)
@given(entry_sets)
def test_what_dom0_writes_is_what_we_want(entries: list[Entry]) -> None:
    database = FakeQubesDB().connect()
    publish(database, entries, 7)
    desired = read_desired(database)
    assert desired.complete
    assert desired.generation == 7
    assert sorted(desired.entries, key=lambda e: e.key) == sorted(entries, key=lambda e: e.key)
    assert desired.refused == ()


def test_entries_before_their_commit_are_half_a_set() -> None:
    database = FakeQubesDB().connect()
    database.write(relay(443).path, relay(443).value)
    assert not read_desired(database).complete


@pytest.mark.parametrize("change", ["value", "removed", "added"])
def test_a_set_that_the_commit_does_not_cover_is_half(change: str) -> None:
    database = FakeQubesDB().connect()
    first, second = relay(443), relay(80)
    publish(database, [first, second], 3)
    match change:
        case "value":
            database.write(first.path, relay(444).value)
        case "removed":
            database.rm(first.path)
        case "added":
            third = relay(22)
            database.write(third.path, third.value)
    desired = read_desired(database)
    assert not desired.complete
    assert desired.entries == ()
    assert desired.generation == 3


def test_an_entry_that_we_do_not_understand_is_refused_alone() -> None:
    database = FakeQubesDB().connect()
    good = relay(443)
    newer = {good.key: good.value, "ffffffffffffffff.4.tcp": "kind=relay side=uplink listen=1-1 colour=red"}
    for key, value in newer.items():
        database.write(limits.ENTRIES + key, value)
    database.write(limits.BASE, str(Commit.over(1, newer)))
    desired = read_desired(database)
    assert desired.complete
    assert desired.entries == (good,)
    assert desired.refused == ("ffffffffffffffff.4.tcp",)


@settings(max_examples=50, deadline=None)
@given(
    st.binary(max_size=100).filter(lambda value: 0 not in value), st.binary(max_size=60).filter(lambda v: 0 not in v)
)
def test_any_bytes_in_the_database(commit: bytes, value: bytes) -> None:
    database = FakeQubesDB().connect()
    database.write(limits.BASE, commit)
    database.write(relay(443).path, value)
    assert read_desired(database).entries == ()


def test_another_protocol_version_opens_nothing() -> None:
    database = FakeQubesDB().connect()
    publish(database, [relay(443)])
    text = (database.read(limits.BASE) or b"").decode()
    database.write(limits.BASE, text.replace("version=1", "version=2"))
    assert read_desired(database) == Desired(complete=False)


def test_the_status_is_written_entry_by_entry_and_acknowledged_last() -> None:
    fake = FakeQubesDB()
    qube, dom0 = fake.connect(), fake.connect()
    dom0.watch(limits.STATUS_BASE)
    first, second = accept(443), accept(80)
    reporter = Reporter(qube)
    reporter.report(4, AgentState.APPLIED, {first.key: Result.OK, second.key: Result.CLASH}, "192.168.1.2/24")
    assert dom0.read_watch() == limits.STATUS_BASE
    assert dom0.multiread(limits.STATUS) == {
        limits.STATUS + first.key: b"ok",
        limits.STATUS + second.key: b"clash",
        limits.STATUS + "uplinks": b"192.168.1.2/24",
        limits.STATUS + "way-out": b"uplink",
    }
    acknowledged = (dom0.read(limits.STATUS_BASE) or b"").decode()
    assert Acknowledgement.parse(acknowledged) == Acknowledgement(4, AgentState.APPLIED)


def test_the_status_of_what_is_gone_goes() -> None:
    database = FakeQubesDB().connect()
    first, second = accept(443), accept(80)
    reporter = Reporter(database)
    reporter.report(1, AgentState.APPLIED, {first.key: Result.OK, second.key: Result.OK}, "")
    reporter.report(2, AgentState.APPLIED, {second.key: Result.OK}, "")
    facts = [limits.STATUS + "uplinks", limits.STATUS + "way-out"]
    assert database.list(limits.STATUS) == sorted([limits.STATUS + second.key, *facts])
    # A new agent also removes what its predecessor has left, and nothing else.
    database.write("/qubes-other", "x")
    Reporter(database).report(3, AgentState.APPLIED, {}, "")
    assert database.list(limits.STATUS) == facts
    assert database.read("/qubes-other") == b"x"


def test_only_what_changed_is_written() -> None:
    fake = FakeQubesDB()
    database, watcher = fake.connect(), fake.connect()
    entry = accept(443)
    reporter = Reporter(database)
    reporter.report(1, AgentState.APPLIED, {entry.key: Result.OK}, "")
    watcher.watch(limits.STATUS)
    reporter.report(2, AgentState.APPLIED, {entry.key: Result.OK}, "")
    database.write(limits.STATUS + "marker", "end of what was written")
    assert watcher.read_watch() == limits.STATUS + "marker"
