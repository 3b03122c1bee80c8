# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""What dom0 reads of qubesd's objects, and what becomes of those that cannot be read."""

import pytest

from portfwd.dom0.planning.snapshot import Qube, Snapshot, may_run, reports_way_out, session_of, take_snapshot
from portfwd.wire import limits
from portfwd.wire.values import Family, QubeName
from tests.fakes.app import FakeApp, FakeVM

WORK = QubeName("work")


def work(app: FakeApp, **more: tuple[str, ...]) -> Qube:
    return take_snapshot(app, 1000, "boot-1", **more).qubes[WORK]


def test_a_qube_with_a_faked_address_has_no_ipv6(app: FakeApp) -> None:
    app.work.ip6 = "fd09:24ef:4179::6"  # type: ignore[assignment]
    assert str(work(app).address(Family.V6)) == "fd09:24ef:4179::6"
    app.work.features["net.fake-ip"] = "192.168.1.128"
    assert work(app).address(Family.V6) is None
    assert str(work(app).address(Family.V4)) == "10.137.0.6"


def test_the_way_out_is_told_from_the_own_net_qube_to_the_outermost(app: FakeApp) -> None:
    snapshot = take_snapshot(app, 1000, "boot-1")
    assert [qube.name for qube in snapshot.path(WORK)] == ["sys-firewall", "sys-net"]
    app.net.netvm = app.firewall
    looping = take_snapshot(app, 1000, "boot-1")
    assert [qube.name for qube in looping.path(WORK)] == ["sys-firewall", "sys-net"]


def test_one_qube_that_cannot_be_read_leaves_the_others(app: FakeApp) -> None:
    app.personal.features = None  # type: ignore[assignment]
    snapshot = take_snapshot(app, 1000, "boot-1")
    assert snapshot.unread == ("personal",)
    assert set(snapshot.qubes) == {"sys-net", "sys-firewall", "work"}


def test_dom0_is_no_qube_of_the_plan(app: FakeApp) -> None:
    app.personal.klass = "AdminVM"
    assert "personal" not in take_snapshot(app, 1000, "boot-1").qubes


def test_features_and_tags_mean_what_they_say(app: FakeApp) -> None:
    found = work(app)
    assert (found.agent, found.denies, found.transit, found.tor_gateway) == (True, False, False, False)
    app.work.features.clear()
    app.work.features |= {limits.FEATURE_DENY: "1", limits.FEATURE_TRANSIT: "1"}
    app.work.tags.add(limits.TAG_TOR_GATEWAY)
    found = work(app)
    assert (found.agent, found.denies, found.transit, found.tor_gateway) == (False, True, True, True)


def test_a_net_qube_is_a_vpn_qube_when_its_agent_says_so_or_once_has(app: FakeApp) -> None:
    app.work.provides_network = True
    assert not work(app).tunnel
    assert work(app, tunnels=("work",)).tunnel
    app.work.features[limits.FEATURE_VPN] = "1"
    assert work(app).tunnel
    app.work.provides_network = False
    assert not work(app).tunnel
    app.work.features.clear()
    assert not work(app, tunnels=("work",)).tunnel, "without an agent nobody says anything"


def test_of_an_agent_that_does_not_tell_its_way_out_it_is_not_known(app: FakeApp) -> None:
    assert work(app, untold=("work",)).way_untold
    app.work.running = False
    assert not work(app, untold=("work",)).way_untold


def test_a_halted_qube_has_no_session_and_each_run_has_its_own(app: FakeApp) -> None:
    first = work(app).session
    app.work.xid, app.work.start_time = 2, 2.0
    assert work(app).session not in ("", first)
    assert session_of(app.work) == work(app).session
    app.work.running = False
    assert work(app).session == ""


def test_damaged_forwards_are_told_and_the_qube_stays_a_hop(app: FakeApp) -> None:
    app.firewall.firewall = None  # type: ignore[assignment]
    snapshot: Snapshot = take_snapshot(app, 1000, "boot-1")
    found = snapshot.qubes[QubeName("sys-firewall")]
    assert found.damage
    assert found.forwards == ()
    assert snapshot.path(WORK)[0] is found


def test_who_cannot_be_asked_may_run_and_reports_nothing(app: FakeApp, monkeypatch: pytest.MonkeyPatch) -> None:
    assert may_run(app.work)
    assert reports_way_out(app.net)
    assert not reports_way_out(app.work)

    def fails(_: FakeVM) -> bool:
        raise OSError("libvirt is away")

    monkeypatch.setattr(FakeVM, "is_running", fails)
    assert may_run(app.work)
    assert not reports_way_out(app.net)
