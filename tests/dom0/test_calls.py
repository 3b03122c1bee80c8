# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""What qubesd answers to the arguments of ours: which names there are, with what they may be asked, and for whom."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from portfwd.api.forwards import token
from portfwd.dom0 import running
from portfwd.dom0.calls import Call, UnexpectedError
from portfwd.dom0.running import Running
from portfwd.dom0.storage.store import StoredForward
from portfwd.dom0.usecases.caller import DOM0, Caller
from portfwd.model.forward import parse_forward
from portfwd.wire.errors import RefusedError
from tests.dom0.test_service import SSH, WEB
from tests.fakes.app import FakeApp
from tests.fakes.service import TheirOwn

Ask = Callable[..., str]
WITHOUT_PAYLOAD = ("forward", "forward.status", "forward.hops", "forward.connections")


@pytest.fixture
def app(tmp_path: Path) -> FakeApp:
    return FakeApp(tmp_path)


@pytest.fixture
def ask(app: FakeApp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ask]:
    """One call, made in the loop of a qubesd that runs as long as the test does."""
    monkeypatch.setattr(running, "DatabaseConnections", lambda _run: TheirOwn())
    with asyncio.Runner() as runner:
        ours = Running(app, runner.get_loop(), "boot-1", tmp_path, tmp_path)

        def make(verb: str, argument: str, payload: str = "", vm: Any = app.work, caller: Caller = DOM0) -> str:
            answering: Callable[[Call], Coroutine[Any, Any, str]] = {"Get": ours.calls.get, "Set": ours.calls.set}[verb]
            return runner.run(answering(Call(caller, vm, argument, payload.encode("utf-8"))))

        yield make
        ours.close()
        runner.run(asyncio.sleep(0))


def test_a_list_is_stored_and_answered(ask: Ask) -> None:
    assert ask("Set", "forward", WEB + SSH) == ""
    assert ask("Get", "forward") == WEB + SSH
    assert ask("Get", "forward.status").startswith("qube=work rule=")
    assert ask("Get", "forward.status", vm=None) == ask("Get", "forward.status")


def test_a_list_is_stored_only_over_the_one_that_is_named(ask: Ask) -> None:
    ask("Set", "forward", WEB)
    for wrong in (token(""), "x", "", "kill.x"):
        with pytest.raises((RefusedError, UnexpectedError)):
            ask("Set", f"forward.{wrong}", SSH)
    assert ask("Get", "forward") == WEB
    ask("Set", f"forward.{token(WEB)}", SSH)
    assert ask("Get", "forward") == SSH


@pytest.mark.parametrize("argument", WITHOUT_PAYLOAD)
def test_what_only_looks_takes_no_payload(ask: Ask, argument: str) -> None:
    with pytest.raises(UnexpectedError, match="unexpected payload"):
        ask("Get", argument, "x")


@pytest.mark.parametrize(
    ("verb", "argument"),
    [
        ("Get", "forward"),
        ("Get", "forward.hops"),
        ("Get", "forward.plan"),
        ("Get", "forward.connections"),
        ("Set", "forward"),
        ("Set", "forward.anew"),
        ("Set", "forward.kill"),
        ("Set", "forward.check"),
        ("Set", "forward.0123456789abcdef"),
    ],
)
def test_dom0_stands_for_all_qubes_in_a_status_alone(ask: Ask, verb: str, argument: str) -> None:
    with pytest.raises(UnexpectedError, match="expected destination to not be AdminVM"):
        ask(verb, argument, vm=None)


@pytest.mark.parametrize(
    "argument", ["", "forwards", "forward.", "forward.x", "forward.status.x", "*", "other.forward"]
)
def test_an_unknown_name_is_unexpected(ask: Ask, argument: str) -> None:
    with pytest.raises(UnexpectedError, match="unexpected argument"):
        ask("Get", argument)


@pytest.mark.parametrize("argument", ["", "forwards", "*", "other.forward", "forward.kill.x"])
def test_so_is_one_that_is_to_be_changed(ask: Ask, argument: str) -> None:
    with pytest.raises(UnexpectedError, match="unexpected argument"):
        ask("Set", argument, WEB)


def test_a_client_of_before_is_told_where_the_check_is_now(ask: Ask) -> None:
    for argument in ("forward.check", "forward.check.0123456789abcdef"):
        with pytest.raises(RefusedError, match=r"admin\.vm\.firewall\.Set\+forward\.check now"):
            ask("Get", argument, "client=192.0.2.1")


@pytest.mark.parametrize("argument", ["forward", "forward.anew", "forward.kill", "forward.check"])
def test_a_payload_is_ascii(ask: Ask, argument: str) -> None:
    with pytest.raises(RefusedError, match="not ASCII"):
        ask("Set", argument, "\u00e9")


def test_who_has_called_goes_with_the_change(ask: Ask, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    ask("Set", "forward", WEB, caller=Caller("mgmt", lambda _qube, _argument: False))
    assert "forwards of work: 1 added (asked for, by mgmt)" in caplog.text


def test_a_list_that_changes_all_the_time_is_given_up(ask: Ask, app: FakeApp, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = running.ForwardService.asked
    tries = []

    def late(self: Any, vm: Any, *words: Any) -> Any:
        """By the time that the list has been held against the others, another one stands there."""
        change = asked(self, vm, *words)
        tries.append(vm)
        app.work.firewall.save_forwards((StoredForward(parse_forward(SSH.strip()), len(tries)),))
        return change

    monkeypatch.setattr(running.ForwardService, "asked", late)
    with pytest.raises(RefusedError, match="all the time; nothing was done"):
        ask("Set", "forward", WEB)
    assert len(tries) == 5
