# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""A VPN qube on the path: what its agent says decides whether an external forward is opened."""

import pytest

from portfwd.base.qubesdb_client import Error
from portfwd.dom0.planning.tunnels import ABSENT_SECONDS, WayReport
from portfwd.wire import limits
from portfwd.wire.values import QubeName
from tests.dom0.asking import apply, plan
from tests.fakes.app import FakeApp, FakeVM
from tests.fakes.qubesdb import FakeQubesDB
from tests.fakes.service import Service

WEB = "action=forward forwardtype=external proto=tcp srcports=443\n"
NEAR = "action=forward forwardtype=internal proto=tcp srcports=444\n"
WAY_OUT = limits.STATUS + "way-out"


class Clock:
    """Seconds since the start of the host."""

    seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def service(app: FakeApp, clock: Clock) -> Service:
    made = Service(app, "boot-1", lambda: 1_000_000.0, clock)
    made.set(app.work, WEB + NEAR)
    made.refresh()
    return made


def open_hops(app: FakeApp) -> list[int]:
    return [len(vm.database.list(limits.ENTRIES)) for vm in (app.net, app.firewall, app.work)]


def test_c28_an_external_forward_does_not_cross_a_vpn_qube(app: FakeApp, service: Service) -> None:
    assert open_hops(app) == [1, 2, 2]
    app.firewall.database.write(WAY_OUT, "tunnel")
    service.refresh()
    assert open_hops(app) == [0, 1, 1], "what comes from the tunnel itself or from behind the qube is another matter"
    assert "state=problem reason=vpn text='sys-firewall'" in plan(app, service, app.work)[0]


def test_c28_a_tunnel_that_goes_down_opens_nothing(app: FakeApp, service: Service, clock: Clock) -> None:
    app.firewall.database.write(WAY_OUT, "tunnel")
    service.refresh()
    app.firewall.database.write(WAY_OUT, "uplink")
    service.refresh()
    clock.seconds += 60
    service.refresh()
    assert open_hops(app) == [0, 1, 1]
    app.firewall.running = False
    service.refresh()
    app.firewall.running = True
    app.firewall.database.rm(limits.STATUS)
    again = Service(app, "boot-1", lambda: 1_000_000.0)
    again.refresh()
    assert open_hops(app) == [0, 1, 1], "neither before its tunnel is up at the next start, nor after one of qubesd"
    assert (app.firewall.features[limits.FEATURE_VPN], app.saves) == ("1", 1)
    del app.firewall.features[limits.FEATURE_VPN]
    service.refresh()
    assert open_hops(app) == [1, 2, 2]


def test_c28_the_user_may_know_it_before_and_may_know_better(app: FakeApp, service: Service, clock: Clock) -> None:
    app.firewall.features[limits.FEATURE_VPN] = "1"
    service.refresh()
    assert open_hops(app) == [0, 1, 1]
    app.firewall.features[limits.FEATURE_VPN] = ""
    app.firewall.database.write(WAY_OUT, "tunnel")
    service.refresh()
    assert open_hops(app) == [0, 1, 1]
    app.firewall.database.write(WAY_OUT, "uplink")
    service.refresh()
    clock.seconds += ABSENT_SECONDS
    service.refresh()
    assert open_hops(app) == [1, 2, 2]
    assert app.firewall.features[limits.FEATURE_VPN] == ""


def test_f20_a_word_that_flips_keeps_the_way_through_a_vpn_shut(app: FakeApp, service: Service, clock: Clock) -> None:
    """Each "uplink" opened the port, each "tunnel" shut it again: a plan and all QubesDB writes for each word."""
    app.firewall.features[limits.FEATURE_VPN] = ""
    for _ in range(20):
        for word in ("tunnel", "uplink"):
            app.firewall.database.write(WAY_OUT, word)
            service.refresh()
            assert open_hops(app) == [0, 1, 1]
            clock.seconds += ABSENT_SECONDS / 2
    clock.seconds += ABSENT_SECONDS
    service.refresh()
    assert open_hops(app) == [1, 2, 2], "nothing but uplink was said for long enough"


def test_c28_a_vpn_qube_that_falls_silent_stays_one(
    app: FakeApp, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mistake: no answer is taken for a no, and the way through it opens."""

    def silent(path: str) -> bytes | None:
        raise Error(f"no answer for {path}")

    app.firewall.features[limits.FEATURE_VPN] = ""
    app.firewall.database.write(WAY_OUT, "tunnel")
    service.refresh()
    monkeypatch.setattr(app.firewall.database, "read", silent)
    service.refresh()
    assert open_hops(app)[0] == 0


def test_c28_a_vpn_qube_is_one_when_another_qube_cannot_be_asked_and_stays_one_when_it_cannot_itself(
    app: FakeApp, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> bool:
        raise OSError("no libvirt")

    app.firewall.features[limits.FEATURE_VPN] = ""
    monkeypatch.setattr(app.personal, "is_running", broken)
    service.refresh()
    assert open_hops(app) == [1, 2, 2]
    app.firewall.database.write(WAY_OUT, "tunnel")
    service.refresh()
    assert open_hops(app) == [0, 1, 1], "the others are heard and told all the same"
    monkeypatch.setattr(app.firewall, "is_running", broken)
    service.refresh()
    assert open_hops(app)[0] == 0


def test_f26_where_the_agent_does_not_say_its_way_out_an_external_forward_does_not_cross(
    app: FakeApp, service: Service
) -> None:
    """It holds its entries, but cannot read its routes: whether they lead into a tunnel is not known."""
    apply(app.firewall, way_out="")
    service.refresh()
    assert open_hops(app) == [0, 1, 1], "what comes from behind the qube is another matter"
    assert "state=problem reason=way-unknown text='sys-firewall'" in plan(app, service, app.work)[0]
    assert limits.FEATURE_VPN not in app.firewall.features, "that is no tunnel to remember"
    apply(app.firewall, way_out="")
    service.refresh()
    assert open_hops(app) == [0, 1, 1]
    app.firewall.features[limits.FEATURE_TRANSIT] = "1"
    service.refresh()
    assert open_hops(app) == [1, 2, 2], "the user may know it"
    del app.firewall.features[limits.FEATURE_TRANSIT]
    service.refresh()
    apply(app.firewall)
    service.refresh()
    assert open_hops(app) == [1, 2, 2]


@pytest.mark.parametrize("untold", [None, b"", b"UPLINK"])
@pytest.mark.parametrize(("word", "hops"), [(b"uplink", [1, 2, 2]), (b"tunnel", [0, 1, 1])])
def test_f26_of_a_way_out_that_is_not_told_any_more_the_last_word_counts_on(
    app: FakeApp, service: Service, clock: Clock, word: bytes, hops: list[int], untold: bytes | None
) -> None:
    app.firewall.features[limits.FEATURE_VPN] = ""
    apply(app.firewall, way_out=word.decode())
    service.refresh()
    assert open_hops(app) == hops
    if untold is None:
        app.firewall.database.rm(WAY_OUT)
    else:
        app.firewall.database.write(WAY_OUT, untold)
    for _ in range(3):
        service.refresh()
        clock.seconds += ABSENT_SECONDS
        assert open_hops(app) == hops


def test_f26_an_agent_that_has_acknowledged_nothing_yet_is_just_starting(app: FakeApp, service: Service) -> None:
    app.firewall.database.write(limits.STATUS_BASE, "version=1 generation=0 state=applied")
    service.refresh()
    assert open_hops(app) == [1, 2, 2]


def test_c28_what_cannot_be_remembered_is_shut_all_the_same(
    app: FakeApp, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(app, "save", full)
    app.firewall.database.write(WAY_OUT, "tunnel")
    assert service.refresh() is not None
    assert open_hops(app) == [0, 1, 1]


def test_c28_the_feature_lets_it_cross(app: FakeApp, service: Service) -> None:
    app.firewall.database.write(WAY_OUT, "tunnel")
    app.firewall.features[limits.FEATURE_TRANSIT] = "1"
    service.refresh()
    assert open_hops(app) == [1, 2, 2]


@pytest.mark.parametrize("word", [b"", b"tunnel\n", b"TUNNEL", b"\xff" * 3071, b"uplink tunnel"])
def test_any_other_word_means_nothing(app: FakeApp, service: Service, word: bytes) -> None:
    app.firewall.database.write(WAY_OUT, word)
    service.refresh()
    assert open_hops(app) == [1, 2, 2]


def test_what_an_ordinary_qube_says_of_itself_is_not_asked_for(app: FakeApp, service: Service) -> None:
    ordinary: FakeVM = app.work
    ordinary.provides_network = False
    ordinary.database.write(WAY_OUT, "tunnel")
    service.refresh()
    assert open_hops(app) == [1, 2, 2]


def test_f26_what_a_run_said_that_ended_while_it_was_asked_is_not_held_against_the_next_one(
    app: FakeApp, service: Service
) -> None:
    """The answer arrives after the end of the qube, and after the user has taken the memory of the tunnel away."""
    app.firewall.database.write(WAY_OUT, "tunnel")
    asked, said = service.reporting(), {QubeName("sys-firewall"): WayReport.TUNNEL}
    service.stopped(app.firewall)
    app.firewall.xid, app.firewall.database = 7, FakeQubesDB().connect()
    service.record(said, asked)
    service.refresh()
    assert limits.FEATURE_VPN not in app.firewall.features
    assert open_hops(app) == [1, 2, 2]
