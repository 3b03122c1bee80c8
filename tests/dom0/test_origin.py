# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Who changed the forwards of which qube, and why, stands in the journal of qubesd, whatever made the change."""

import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from portfwd.dom0.storage.forwards import UnstoredError
from portfwd.dom0.storage.store import StoreError
from portfwd.dom0.usecases.caller import DOM0, Caller
from tests.dom0.test_service import SSH, WEB
from tests.fakes.app import FakeApp
from tests.fakes.service import Service

MANAGER = Caller("mgmt", lambda _qube, _argument: True)
Told = Callable[[], list[str]]


@pytest.fixture
def app(tmp_path: Path) -> FakeApp:
    return FakeApp(tmp_path)


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Told:
    caplog.set_level(logging.INFO)

    def lines() -> list[str]:
        found = [r.getMessage() for r in caplog.records if "forwards of " in r.getMessage()]
        caplog.clear()
        return found

    return lines


def test_a_call_is_told_with_who_made_it(app: FakeApp, told: Told) -> None:
    service = Service(app, "boot-1")
    service.set(app.work, WEB, caller=MANAGER)
    assert told() == ["port forwarding: forwards of work: 1 added (asked for, by mgmt)"]
    service.set(app.work, SSH + WEB.replace("\n", " enabled=no\n"))
    assert told() == ["port forwarding: forwards of work: 1 added, 1 changed (asked for, by dom0)"]
    service.set(app.work, WEB.replace("\n", " enabled=no\n") + SSH)
    assert told() == ["port forwarding: forwards of work: in another order (asked for, by dom0)"]
    service.set(app.work, "", caller=MANAGER)
    assert told() == ["port forwarding: forwards of work: 2 removed (asked for, by mgmt)"]


def test_what_is_refused_is_no_change(app: FakeApp, told: Told) -> None:
    service = Service(app, "boot-1")
    service.set(app.work, WEB)
    told()
    with pytest.raises(ValueError, match="taken"):
        service.set(app.personal, WEB, caller=MANAGER)
    assert told() == []


def test_timers_and_events_act_for_dom0(app: FakeApp, told: Told) -> None:
    now = [1_700_000_000.0]
    service = Service(app, "boot-1", now=lambda: now[0], boot=lambda: now[0])
    service.set(app.work, WEB.replace("\n", " expire=1700000060\n") + SSH.replace("\n", " expire=shutdown\n"))
    told()
    now[0] += 61
    service.refresh()
    assert told() == ["port forwarding: forwards of work: 1 removed (their time is over, by dom0)"]
    service.stopped(app.work)
    assert told() == ["port forwarding: forwards of work: 1 removed (the qube has shut down, by dom0)"]


def test_a_forward_without_a_date_gets_one_from_dom0(app: FakeApp, told: Told) -> None:
    path = app.work.firewall.path
    Service(app, "boot-1").set(app.work, WEB)
    text = path.read_text()
    path.write_text(text[: text.index(' added="')] + text[text.index('"', text.index(' added="') + 8) + 1 :])
    told()
    Service(app, "boot-1").refresh()
    assert told() == ["port forwarding: forwards of work: 1 changed (their time has begun, by dom0)"]


def test_a_file_that_is_begun_anew_is_told_as_that(app: FakeApp, told: Told) -> None:
    service = Service(app, "boot-1")
    service.set(app.work, WEB)
    path = app.work.firewall.path
    path.write_text(path.read_text().replace("8443", "99999"))
    told()
    change = service.asked_anew(app.work, SSH, MANAGER)
    answer = service.store(app.work, change, change.settled())
    assert answer is not None
    assert answer.startswith("kept=")
    assert told() == ["port forwarding: forwards of work: 1 added (begun anew, by mgmt)"]


def test_what_is_shut_without_being_stored_is_told_as_that(
    app: FakeApp, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service(app, "boot-1")
    service.set(app.work, WEB)
    told()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(UnstoredError):
            service.set(app.work, "", caller=MANAGER)
        assert told() == ["port forwarding: forwards of work: 1 removed (asked for, by mgmt); not stored yet"]
        with pytest.raises(StoreError):
            service.set(app.work, SSH, caller=DOM0)
        assert told() == [], "nothing was opened"
