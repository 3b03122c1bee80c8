# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""How far dom0 says that an entry has come, by what stands in the databases of qubes."""

import pytest

from portfwd.api.status import HopState
from portfwd.base.qubesdb_client import Error
from portfwd.dom0.planning.plan import Plan
from portfwd.dom0.publishing.publish import Publisher
from portfwd.dom0.views.look import Look, confirmed, look_at, standing
from portfwd.wire import limits
from portfwd.wire.acknowledgement import IGNORED, UPLINKS
from portfwd.wire.entry import Commit, Entry
from portfwd.wire.values import Family, QubeName
from tests.agent.world import accept, relay
from tests.fakes.qubesdb import FakeConnection, FakeQubesDB

HOP, TARGET = QubeName("sys-net"), QubeName("work")
WEB, SSH = relay(443), relay(22)
DOOR = accept(8443, rule=WEB.rule)


@pytest.fixture
def database() -> FakeConnection:
    """A database in which WEB and SSH stand, committed."""
    made = FakeQubesDB().connect()
    Publisher().publish(HOP, made, [WEB, SSH])
    return made


def look(database: FakeConnection, *entries: Entry, unwritten: str = "") -> Look:
    """A look at the path of the first entry's rule, which leads on to a qube that cannot be asked."""
    planned = Plan({HOP: entries, TARGET: (DOOR,)}, {WEB.rule: ((HOP, entries[0]), (TARGET, DOOR))}, ())
    failures = {HOP: unwritten} if unwritten else {}
    return look_at([WEB.rule], planned, {HOP: database}, {}, failures)


def acknowledge(database: FakeConnection, state: str = "applied", **words: str) -> None:
    generation = Commit.parse((database.read(limits.BASE) or b"").decode()).generation
    for key, word in words.items():
        database.write(limits.STATUS + key, word)
    database.write(limits.STATUS_BASE, f"version=1 generation={generation} state={state}")


def test_from_planned_to_applied(database: FakeConnection) -> None:
    assert look(FakeQubesDB().connect(), WEB, SSH).state(HOP, WEB) is HopState.PLANNED
    assert look(database, WEB, SSH).state(HOP, WEB) is HopState.WRITTEN
    acknowledge(database, **{WEB.key: "ok"})
    assert look(database, WEB, SSH).state(HOP, WEB) is HopState.APPLIED
    acknowledge(database, "failed")
    assert look(database, WEB, SSH).state(HOP, WEB) is HopState.FAILED


def test_an_entry_that_is_not_as_planned_is_not_applied_whatever_the_qube_says(database: FakeConnection) -> None:
    acknowledge(database, **{WEB.key: "ok"})
    moved = relay(443, 8080, rule=WEB.rule)
    assert moved.key == WEB.key
    assert look(database, moved, SSH).state(HOP, moved) is not HopState.APPLIED


def test_a_qube_that_spoils_what_is_not_asked_about_changes_nothing(database: FakeConnection) -> None:
    acknowledge(database, **{WEB.key: "ok"})
    database.write(limits.STATUS + SSH.key, "spoilt")
    assert look(database, WEB, SSH).state(HOP, WEB) is HopState.APPLIED


def test_what_could_not_be_written_is_not_open_yet_and_of_what_was_open_it_is_not_known(
    database: FakeConnection,
) -> None:
    assert look(database, WEB, SSH, unwritten="no room").state(HOP, WEB) is HopState.PLANNED
    acknowledge(database, **{WEB.key: "ok"})
    assert look(database, WEB, SSH, unwritten="no room").state(HOP, WEB) is HopState.UNKNOWN


def test_words_that_are_no_words_are_unclear(database: FakeConnection) -> None:
    acknowledge(database, **{WEB.key: "splendid"})
    assert look(database, WEB, SSH).state(HOP, WEB) is HopState.UNCLEAR
    database.write(limits.STATUS_BASE, "splendid")
    assert look(database, WEB, SSH).state(HOP, WEB) is HopState.UNCLEAR


def test_of_a_database_that_cannot_be_read_nothing_is_known(
    database: FakeConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dead(_: str) -> bytes:
        raise Error("no daemon")

    monkeypatch.setattr(database, "read", dead)
    assert look(database, WEB, SSH).state(HOP, WEB) is HopState.UNKNOWN
    assert confirmed(database, [WEB]) is False
    held = standing(database, [], heard=True)
    assert held is not None
    assert held([WEB.key])


def test_an_entrance_tells_its_uplinks_and_what_it_ignores_and_nonsense_is_passed_over(
    database: FakeConnection,
) -> None:
    acknowledge(database, **{WEB.key: "ok"})
    database.write(limits.STATUS + UPLINKS, "192.168.1.10/24 fd00::10/64")
    assert [str(found) for found in look(database, WEB, SSH).uplinks[HOP]] == ["192.168.1.10/24", "fd00::10/64"]
    database.write(limits.STATUS + UPLINKS, "192.168.1.10/24 nonsense")
    database.write(limits.STATUS + IGNORED, "nonsense " * 50)
    found = look(database, WEB, SSH)
    assert HOP not in found.uplinks
    assert found.ignored[HOP] == ()


def test_a_target_that_runs_with_its_old_address_waits_for_a_restart(database: FakeConnection) -> None:
    target = FakeQubesDB().connect()
    Publisher().publish(TARGET, target, [DOOR])
    target.write("/qubes-ip", "10.137.0.6")
    planned = Plan({HOP: (WEB, SSH), TARGET: (DOOR,)}, {WEB.rule: ((HOP, WEB), (TARGET, DOOR))}, ())
    for qube, key in ((database, WEB.key), (target, DOOR.key)):
        acknowledge(qube, **{key: "ok"})
    databases = {HOP: database, TARGET: target}
    same = look_at([WEB.rule], planned, databases, {TARGET: {Family.V4: "10.137.0.6"}})
    moved = look_at([WEB.rule], planned, databases, {TARGET: {Family.V4: "10.137.0.9"}})
    assert same.state(TARGET, DOOR) is HopState.APPLIED
    assert moved.state(TARGET, DOOR) is HopState.RESTART
    assert moved.state(HOP, WEB) is HopState.APPLIED


def test_a_hop_confirms_only_the_commit_that_covers_what_is_wanted(database: FakeConnection) -> None:
    assert confirmed(database, [WEB, SSH]) is False
    acknowledge(database)
    assert confirmed(database, [WEB, SSH]) is True
    assert confirmed(database, [WEB]) is False, "it may still hold the other one"
    acknowledge(database, "failed")
    assert confirmed(database, [WEB, SSH]) is False
    assert confirmed(FakeQubesDB().connect(), []) is None


def test_what_dom0_does_not_want_any_more_may_stand_until_the_qube_has_said_otherwise(
    database: FakeConnection,
) -> None:
    acknowledge(database, **{WEB.key: "ok"})
    assert standing(database, [WEB, SSH], heard=True) is None
    Publisher(lambda: 2e9).publish(HOP, database, [SSH])
    held = standing(database, [SSH], heard=True)
    assert held is not None
    assert held([WEB.key])
    assert not held([SSH.key])
    assert standing(FakeQubesDB().connect(), [], heard=True) is None
