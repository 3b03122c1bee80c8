# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Port forwarding as long as one qubesd runs: changes, events, and refreshes that fail."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from portfwd.base.qubesdb_client import Error
from portfwd.dom0 import running
from portfwd.dom0.calls import Call
from portfwd.dom0.running import Running
from portfwd.dom0.usecases.caller import DOM0
from portfwd.wire import limits
from tests.dom0.asking import WEB, Clock, run
from tests.fakes.app import FakeApp
from tests.fakes.service import TheirOwn

Use = Callable[[Running], Coroutine[Any, Any, None]]


@pytest.fixture
def app(app: FakeApp, monkeypatch: pytest.MonkeyPatch) -> FakeApp:
    monkeypatch.setattr(running, "DatabaseConnections", lambda _run: TheirOwn())
    return app


def using(app: FakeApp, use: Use, now: Callable[[], float] = time.time) -> None:
    """Do this while qubesd runs, whose state is kept beside the qubes."""
    folder = app.net.firewall.path.parents[1]

    async def whole() -> None:
        made = Running(app, asyncio.get_running_loop(), "boot-1", folder, folder, now)
        try:
            await use(made)
        finally:
            made.close()

    run(whole())


async def until(good: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not good():
            await asyncio.sleep(0.01)


def entries(app: FakeApp) -> list[int]:
    """How many entries stand in sys-net, sys-firewall and work."""
    return [len(vm.database.multiread(limits.ENTRIES)) for vm in (app.net, app.firewall, app.work)]


def test_a_change_is_told_to_every_hop_before_its_answer(app: FakeApp) -> None:
    async def use(made: Running) -> None:
        assert await made.calls.set(Call(DOM0, app.work, "forward", WEB.encode())) == ""
        assert entries(app) == [1, 1, 1]
        assert await made.calls.get(Call(DOM0, app.work, "forward")) == WEB
        await made.calls.set(Call(DOM0, app.work, "forward", b""))
        assert entries(app) == [0, 0, 0]

    using(app, use)


def test_a_qube_that_could_not_be_told_is_told_later_without_any_event(
    app: FakeApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "_RETRY_SECONDS", 0.05)
    write, refusals = app.firewall.database.write, [Error("the daemon is away")] * 3

    def writes(path: str, value: str | bytes) -> None:
        if refusals:
            raise refusals.pop()
        write(path, value)

    monkeypatch.setattr(app.firewall.database, "write", writes)

    async def use(made: Running) -> None:
        await made.calls.set(Call(DOM0, app.work, "forward", WEB.encode()))
        assert entries(app) == [1, 0, 1], "one that cannot be told holds up no other"
        await until(lambda: entries(app) == [1, 1, 1])

    using(app, use)


def test_a_refresh_that_fails_is_not_the_last_one(app: FakeApp, monkeypatch: pytest.MonkeyPatch) -> None:
    async def use(made: Running) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(made.service, "prepare", lambda: 1 / 0)
            made.ask()
            await made.told()
        await made.calls.set(Call(DOM0, app.work, "forward", WEB.encode()))
        assert entries(app) == [1, 1, 1]

    using(app, use)


def test_a_rule_ends_by_itself(app: FakeApp, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "_SLEEP_MIN", 0.05)

    async def use(made: Running) -> None:
        await made.calls.set(Call(DOM0, app.work, "forward", f"{WEB.strip()} expire=1000001\n".encode()))
        assert entries(app) == [1, 1, 1]
        clock.now += 2
        await until(lambda: entries(app) == [0, 0, 0])
        assert app.work.firewall.forwards == ()

    using(app, use, clock)


def test_an_event_brings_the_databases_up_to_date(app: FakeApp) -> None:
    async def use(made: Running) -> None:
        await made.calls.set(Call(DOM0, app.work, "forward", WEB.encode()))
        app.work.netvm = app.net
        made.ask()
        await made.told()
        assert entries(app) == [1, 0, 1]
        app.work.database.rm(limits.ENTRIES)
        made.on_firewall(app.work)
        await made.told()
        assert entries(app) == [1, 0, 1]

    using(app, use)


def test_a_word_of_a_net_qube_is_looked_at_a_moment_later(app: FakeApp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "_WORD_SECONDS", 0.01)
    app.net.provides_network = True

    async def use(made: Running) -> None:
        await made.calls.set(Call(DOM0, app.work, "forward", WEB.encode()))
        app.net.database.write(f"{limits.STATUS}way-out", "tunnel")
        made.on_status(app.net)
        await until(lambda: entries(app) == [0, 0, 0])
        assert app.net.features[limits.FEATURE_VPN]

    using(app, use)
