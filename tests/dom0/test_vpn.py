# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""A VPN qube on the path: what its agent says decides whether an external forward is opened."""

from pathlib import Path

import pytest

from portfwd.dom0.service import ForwardService
from portfwd.wire import limits
from tests.fakes.app import FakeApp, FakeVM

WEB = "action=forward forwardtype=external proto=tcp srcports=443\n"
NEAR = "action=forward forwardtype=internal proto=tcp srcports=444\n"
WAY_OUT = limits.STATUS + "way-out"


@pytest.fixture
def app(tmp_path: Path) -> FakeApp:
    return FakeApp(tmp_path)


@pytest.fixture
def service(app: FakeApp) -> ForwardService:
    made = ForwardService(app, "boot-1", lambda: 1_000_000.0)
    made.set(app.work, WEB + NEAR)
    made.refresh()
    return made


def open_hops(app: FakeApp) -> list[int]:
    return [len(vm.database.list(limits.ENTRIES)) for vm in (app.net, app.firewall, app.work)]


def test_c28_an_external_forward_does_not_cross_a_vpn_qube(app: FakeApp, service: ForwardService) -> None:
    assert open_hops(app) == [1, 2, 2]
    app.firewall.database.write(WAY_OUT, "tunnel")
    service.refresh()
    assert open_hops(app) == [0, 1, 1], "what comes from the tunnel itself or from behind the qube is another matter"
    assert "state=problem reason=vpn text='sys-firewall'" in service.view(app.work, "plan")
    app.firewall.database.write(WAY_OUT, "uplink")
    service.refresh()
    assert open_hops(app) == [1, 2, 2]


def test_c28_the_feature_lets_it_cross(app: FakeApp, service: ForwardService) -> None:
    app.firewall.database.write(WAY_OUT, "tunnel")
    app.firewall.features[limits.FEATURE_TRANSIT] = "1"
    service.refresh()
    assert open_hops(app) == [1, 2, 2]


@pytest.mark.parametrize("word", [b"", b"tunnel\n", b"TUNNEL", b"\xff" * 3071, b"uplink tunnel"])
def test_any_other_word_means_nothing(app: FakeApp, service: ForwardService, word: bytes) -> None:
    app.firewall.database.write(WAY_OUT, word)
    service.refresh()
    assert open_hops(app) == [1, 2, 2]


def test_what_an_ordinary_qube_says_of_itself_is_not_asked_for(app: FakeApp, service: ForwardService) -> None:
    ordinary: FakeVM = app.work
    ordinary.provides_network = False
    ordinary.database.write(WAY_OUT, "tunnel")
    service.refresh()
    assert open_hops(app) == [1, 2, 2]
