# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""dom0's daemon is started anew, empty, while the qube runs on with what it was told before."""

import time

import pytest

from portfwd.agent.desired import Reporter, read_desired, remove_status
from portfwd.base.qubesdb_client import ANSWER_MAX
from portfwd.dom0.publishing.publish import Publisher
from portfwd.wire import limits
from portfwd.wire.acknowledgement import AgentState, Result
from portfwd.wire.values import QubeName
from tests.agent.world import relay
from tests.qubesdb.conftest import DaemonPair, eventually

pytestmark = pytest.mark.slow


def renew_dom0_end(daemons: DaemonPair) -> None:
    """Start dom0's end anew, empty, and wait until the qube's has found it."""
    daemons.dom0_end.stop()
    daemons.start_dom0_end()
    word = str(time.monotonic())
    daemons.dom0().write("/renewed", word)
    eventually(lambda: daemons.qube().read("/renewed") == word.encode())


def test_the_agent_removes_what_a_new_dom0_end_does_not_know_without_harm(daemons: DaemonPair) -> None:
    """The daemons themselves would both end: dom0's lacks the key, and the qube's is told so."""
    reporter = Reporter(daemons.qube())
    reporter.report(1, AgentState.APPLIED, {"0123456789abcdef.4.tcp": Result.OK}, "10.137.0.6/32")
    renew_dom0_end(daemons)
    reporter.report(2, AgentState.APPLIED, {}, "10.137.0.6/32")
    eventually(lambda: daemons.dom0().read(limits.STATUS_BASE) is not None)
    reporter.forget()
    reporter.report(2, AgentState.APPLIED, {}, "10.137.0.6/32")
    told = daemons.qube().multiread(limits.STATUS)
    assert set(told) == {limits.STATUS + "uplinks", limits.STATUS + "way-out"}
    eventually(lambda: daemons.dom0().multiread(limits.STATUS) == told)
    renew_dom0_end(daemons)
    remove_status(daemons.qube())
    daemons.qube().write("/later", "1")
    eventually(lambda: daemons.dom0().read("/later") == b"1")
    assert daemons.qube().list(limits.STATUS_BASE) == daemons.dom0().list(limits.STATUS_BASE) == []


def test_a_rule_that_is_deleted_while_dom0_has_no_end_does_not_stay(daemons: DaemonPair) -> None:
    """Mistake: where nothing is wanted and nothing stands, nothing is written, and the qube keeps what it has."""
    publisher, work = Publisher(), QubeName("work")
    assert publisher.publish(work, daemons.dom0(), (relay(443),)) == ""
    qube = daemons.qube()
    eventually(lambda: read_desired(qube).entries)
    daemons.dom0_end.stop()
    daemons.start_dom0_end()
    assert publisher.publish(work, daemons.dom0(), ()) == ""
    eventually(lambda: read_desired(qube).entries == ())
    commit = daemons.dom0().read(limits.BASE)
    assert publisher.publish(work, daemons.dom0(), ()) == ""
    assert daemons.dom0().read(limits.BASE) == commit


def test_a_new_dom0_end_takes_from_the_qube_what_is_no_longer_wanted(daemons: DaemonPair) -> None:
    work, (kept, dropped) = QubeName("work"), (relay(443), relay(80))
    assert Publisher().publish(work, daemons.dom0(), (kept, dropped)) == ""
    qube = daemons.qube()
    eventually(lambda: read_desired(qube).complete and len(read_desired(qube).entries) == 2)
    renew_dom0_end(daemons)
    assert Publisher().publish(work, daemons.dom0(), (kept,)) == ""
    eventually(lambda: read_desired(qube).complete and read_desired(qube).entries == (kept,))


def test_f19_a_database_that_its_qube_has_filled_is_emptied_and_written(daemons: DaemonPair) -> None:
    """More than dom0 reads stands there: nothing of ours may stay, and what is wanted must come."""
    publisher, work, (first, second) = Publisher(), QubeName("work"), (relay(443), relay(80))
    assert publisher.publish(work, daemons.dom0(), (first,)) == ""
    qube = daemons.qube()
    eventually(lambda: read_desired(qube).entries)
    for wanted in ((second,), ()):
        for number in range(ANSWER_MAX // 3000):
            qube.write(f"{limits.ENTRIES}filled-{number}", "x" * 3000)
        dom0 = daemons.dom0()
        eventually(lambda: dom0.read(f"{limits.ENTRIES}filled-{ANSWER_MAX // 3000 - 1}") is not None)  # noqa: B023
        assert publisher.publish(work, dom0, wanted) == ""
        eventually(lambda: read_desired(qube).complete and read_desired(qube).entries == wanted)  # noqa: B023
        assert len(dom0.list(limits.ENTRIES)) == len(wanted)
