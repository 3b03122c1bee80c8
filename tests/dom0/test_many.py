# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""5,000 forwards: what dom0 does for them, and for how long it holds qubesd's loop.

Times are those of the processor for the thread that is looked at, so that a loaded machine changes nothing.
"""

import asyncio
import gc
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.qubesd.base.firewall_file import properties_of
from portfwd.api.forwards import parse_forwards
from portfwd.dom0 import running
from portfwd.dom0.calls import Call
from portfwd.dom0.running import Running
from portfwd.dom0.storage.store import StoredForward, StoreError, check, read_forwards, replace
from portfwd.dom0.usecases.caller import DOM0
from portfwd.model.errors import RuleError
from portfwd.model.ordinary import parse_ordinary
from portfwd.wire import limits
from tests.fakes.app import FakeApp, FakeVM
from tests.fakes.service import TheirOwn

pytestmark = pytest.mark.slow

QUBES, EACH = 50, 100
SLICE = 0.05
"""Seconds of qubesd's loop that we may hold at once."""


def lines(first: int, number: int, kind: str = "external") -> str:
    return "".join(
        f"action=forward forwardtype={kind} proto=tcp srcports={port}\n" for port in range(first, first + number)
    )


def stored(first: int, number: int, kind: str = "external") -> tuple[StoredForward, ...]:
    return tuple(
        StoredForward(rule, 1_000_000 + n) for n, rule in enumerate(parse_forwards(lines(first, number, kind)))
    )


def fastest(work: Callable[[], object]) -> float:
    """Seconds of this thread, the least of five runs."""
    found = []
    for _ in range(5):
        gc.collect()
        begin = time.thread_time()
        work()
        found.append(time.thread_time() - begin)
    return min(found)


def test_f18_a_qube_has_at_most_500_forwards_and_the_one_too_many_is_named(tmp_path: Path) -> None:
    assert limits.FORWARDS_MAX == 500
    assert len(parse_forwards(lines(1000, 500))) == 500
    with pytest.raises(RuleError, match=r"line 501: .*srcports=1500.*at most 500 forwards, these are 501"):
        parse_forwards(lines(1000, 501))
    path = tmp_path / "firewall.xml"
    replace(path, (), stored(1000, 500))
    text = path.read_text()
    one = text[text.rindex("<rule ") : text.index("</forwards>")]
    path.write_text(text.replace("</forwards>", one.replace("1499", "1500") + "</forwards>"))
    assert "forward 500: a qube has at most 500 forwards, this has 501" in read_forwards(path).damage
    with pytest.raises(StoreError, match="at most 500"):
        check(path)


@pytest.mark.parametrize("what", ["parse", "load", "save"])
def test_f18_twice_as_many_forwards_take_about_twice_as_long(tmp_path: Path, what: str) -> None:
    """Mistake: each is compared with all before it; 960 took 2.3 s."""
    path = tmp_path / "firewall.xml"

    def run(number: int) -> float:
        held, text = stored(1000, number), lines(1000, number)
        replace(path, (), held)
        works: dict[str, Callable[[], object]] = {
            "parse": lambda: parse_forwards(text),
            "load": lambda: read_forwards(path),
            "save": lambda: replace(path, (), held),
        }
        return fastest(works[what])

    assert run(480) < 7 * run(120)
    assert run(480) < SLICE


class Loop:
    """An event loop that notes the longest time of the processor that it was held at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.longest = 0.0
        self.what = ""
        run = asyncio.events.Handle._run  # type: ignore[attr-defined]

        def timed(handle: Any) -> None:
            begin = time.thread_time()
            run(handle)
            took = time.thread_time() - begin
            if took > self.longest:
                self.longest, self.what = took, repr(handle)

        monkeypatch.setattr(asyncio.events.Handle, "_run", timed)

    def held(self, during: str) -> None:
        assert self.longest < SLICE, f"{self.longest * 1000:.0f} ms during {during}: {self.what}"
        self.longest = 0.0


@pytest.fixture(params=["external", "internal"])
def many(tmp_path: Path, request: pytest.FixtureRequest) -> FakeApp:
    app = FakeApp(tmp_path)
    far = FakeVM(tmp_path / "sys-far", "sys-far", app.firewall, "10.137.0.8")
    qubes = []
    for number in range(QUBES):
        folder = tmp_path / f"qube-{number}"
        folder.mkdir()
        rules = properties_of([parse_ordinary("action=accept")])
        replace(folder / "firewall.xml", rules, stored(1000 + number * EACH, EACH, request.param))
        qubes.append(FakeVM(folder, f"qube-{number}", far, f"10.137.1.{number + 1}"))
        qubes[-1].provides_network = False
    app.domains = [app.net, app.firewall, far, *qubes]
    return app


@pytest.fixture
def no_daemons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "DatabaseConnections", lambda _run: TheirOwn())


@pytest.fixture
def quiet() -> Iterator[None]:
    """The collector of garbage walks what all tests have left: that is not ours (test_turns.py has what is)."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_daemons", "quiet")
def test_f18_nobody_waits_while_5000_forwards_are_read_changed_and_listed(
    many: FakeApp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mistake: admin.vm.List of somebody else waited for seconds."""
    loop = Loop(monkeypatch)
    last = many.domains[-1]

    async def use() -> None:
        ours = Running(many, asyncio.get_running_loop(), "boot-1", tmp_path, tmp_path)
        calls = ours.calls
        try:
            ours.ask()
            assert ours._task is not None
            await ours._task
            assert len(many.domains[2].database.multiread(limits.ENTRIES)) == QUBES * EACH
            loop.held("the start")
            present = await calls.get(Call(DOM0, last, "forward"))
            more = f"{present}action=forward forwardtype=external proto=udp srcports=53\n"
            await calls.set(Call(DOM0, last, "forward", more.encode()))
            loop.held("an addition")
            await calls.set(Call(DOM0, last, "forward", present.encode()))
            loop.held("a removal")
            told = await calls.get(Call(DOM0, None, "forward.status"))
            assert told.count("\nqube=") == QUBES * EACH - 1
            loop.held("the list of all")
            await calls.get(Call(DOM0, last, "forward.plan", more.encode()))
            await calls.get(Call(DOM0, last, "forward.hops"))
            loop.held("a preview")
        finally:
            ours.close()

    asyncio.run(use())
