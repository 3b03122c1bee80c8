# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""What dom0 writes into a qube's database, in which order, and what it does when it cannot."""

import pytest

from portfwd.base.qubesdb_client import Error
from portfwd.dom0.publishing.publish import Publisher
from portfwd.wire import limits
from portfwd.wire.entry import Commit, Entry
from portfwd.wire.values import QubeName
from tests.agent.world import accept, relay
from tests.fakes.qubesdb import FakeConnection, FakeQubesDB

WORK = QubeName("work")
WEB, HTTP = relay(443), relay(80)


class Noting:
    """A database that notes every change, and refuses the commands that it is told to refuse."""

    def __init__(self) -> None:
        self.database: FakeConnection = FakeQubesDB().connect()
        self.changes: list[str] = []
        self.refused: set[str] = set()

    def read(self, path: str) -> bytes | None:
        return self.database.read(path)

    def multiread(self, path: str) -> dict[str, bytes]:
        return self.database.multiread(path)

    def write(self, path: str, value: str | bytes) -> None:
        if path in self.refused:
            raise Error("no room")
        self.changes.append(path)
        self.database.write(path, value)

    def rm(self, path: str) -> None:
        self.changes.append(f"rm {path}")
        self.database.rm(path)

    def commit(self) -> Commit:
        return Commit.parse((self.read(limits.BASE) or b"").decode())

    def entries(self) -> dict[str, str]:
        found = self.multiread(limits.ENTRIES)
        return {path.removeprefix(limits.ENTRIES): value.decode() for path, value in found.items()}


@pytest.fixture
def noting() -> Noting:
    return Noting()


def told(*entries: Entry) -> dict[str, str]:
    return {entry.key: entry.value for entry in entries}


def test_the_commit_comes_after_everything_that_it_covers(noting: Noting) -> None:
    publisher, web, ssh, door = Publisher(), relay(443), relay(22), accept(8443)
    assert publisher.publish(WORK, noting, [web, ssh]) == ""
    assert noting.changes[-1] == limits.BASE
    assert {web.path, ssh.path} < set(noting.changes[:-1])
    noting.changes.clear()
    assert publisher.publish(WORK, noting, [web, door]) == ""
    assert noting.changes == [f"rm {ssh.path}", door.path, limits.BASE]
    assert noting.entries() == told(web, door)
    assert noting.commit().covers(told(web, door))


def test_what_is_there_already_is_not_written_again_unless_asked(noting: Noting) -> None:
    publisher = Publisher()
    publisher.publish(WORK, noting, [WEB])
    noting.changes.clear()
    publisher.publish(WORK, noting, [WEB])
    assert noting.changes == []
    publisher.publish(WORK, noting, [WEB], again=True)
    assert noting.changes == [limits.BASE]


def test_a_qube_without_forwards_is_left_alone(noting: Noting) -> None:
    Publisher().publish(WORK, noting, [])
    assert noting.changes == []


def test_what_a_qube_has_changed_itself_is_put_right(noting: Noting) -> None:
    publisher, web = Publisher(), relay(443)
    publisher.publish(WORK, noting, [web])
    noting.database.write(web.path, "spoilt")
    noting.database.write(limits.ENTRIES + relay(80).key, relay(80).value)
    publisher.publish(WORK, noting, [web])
    assert noting.entries() == told(web)
    noting.database.write(limits.BASE, "spoilt")
    publisher.publish(WORK, noting, [web])
    assert noting.commit().covers(told(web))


def test_the_last_forward_of_a_qube_leaves_an_empty_committed_set(noting: Noting) -> None:
    publisher = Publisher()
    publisher.publish(WORK, noting, [relay(443)])
    publisher.publish(WORK, noting, [])
    assert noting.entries() == {}
    assert noting.commit().covers({})
    assert noting.changes[-1] == limits.BASE


def test_each_commit_is_newer_than_all_before_also_when_the_clock_is_set_back(noting: Noting) -> None:
    times = iter([1000.0, 1000.0, 10.0])
    publisher = Publisher(lambda: next(times))
    generations = []
    for port in (80, 81, 82):
        publisher.publish(WORK, noting, [relay(port)])
        generations.append(noting.commit().generation)
    assert generations == [1_000_000, 1_000_001, 1_000_002]


def test_a_write_that_fails_is_told_commits_nothing_and_is_made_up_for(noting: Noting) -> None:
    publisher, web, ssh = Publisher(), relay(443), relay(22)
    publisher.publish(WORK, noting, [web])
    before = noting.commit()
    noting.refused = {ssh.path}
    failure = publisher.publish(WORK, noting, [web, ssh])
    assert "QubesDB of 'work' cannot be written" in failure
    assert "no room" in failure
    assert noting.commit() == before
    noting.refused = set()
    assert publisher.publish(WORK, noting, [web, ssh]) == ""
    assert noting.entries() == told(web, ssh)


def test_what_a_qube_may_still_hold_is_for_whom_it_was_told_until_it_confirms(noting: Noting) -> None:
    publisher, other, third = Publisher(), QubeName("other"), QubeName("third")
    publisher.publish(WORK, noting, [relay(443)], [other])
    assert publisher.may_hold(WORK, third), "what it was told before is not known"
    publisher.confirmed(WORK, [other])
    assert publisher.may_hold(WORK, other)
    assert not publisher.may_hold(WORK, third)
    publisher.publish(WORK, noting, [], [])
    assert publisher.may_hold(WORK, other)
    publisher.confirmed(WORK, [])
    assert not publisher.may_hold(WORK, other)
    publisher.publish(WORK, noting, [relay(443)], [other])
    publisher.ended(WORK)
    assert not publisher.may_hold(WORK, other)


def test_which_entries_a_qube_knows_is_remembered(noting: Noting) -> None:
    publisher = Publisher()
    assert publisher.may_know(WORK, WEB.key)
    publisher.publish(WORK, noting, [WEB])
    assert publisher.may_know(WORK, WEB.key)
    assert not publisher.may_know(WORK, HTTP.key)
    publisher.ended(WORK)
    assert not publisher.may_know(WORK, WEB.key)
