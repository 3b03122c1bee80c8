# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Reports of qubes, some of them hostile, each a real process: what reaches dom0, and what it costs the others."""

import asyncio
from pathlib import Path
from typing import Any

from portfwd.dom0.asking.pull import PULL_SECONDS, Puller, ask
from portfwd.wire import limits
from portfwd.wire.answers.report import AcceptReport, Listening, Report
from tests.dom0.asking import run

SOME = "some.Service"
KEY = "0123456789abcdef.4.tcp"
REPORT = Report({KEY: AcceptReport(Listening.YES)})
GOOD = f"printf '%s' '{REPORT}'"
HOSTILE = {
    "silent": "exec sleep 1000",
    "slow": "printf 'version=1 '; exec sleep 1000",
    "closes its output and stays": f"{GOOD}; exec >&-; exec sleep 1000",
    "endless": "exec cat /dev/zero",
    "endless lines": "exec yes 'version=1 entries=1'",
    "garbage": "head -c 5000 /dev/urandom",
    "escapes": "printf '\\033[2Jversion=1 entries=0\\n'",
    "nothing": "exit 1",
    "half": "printf 'version=1 entries=1\\n'",
    "other version": "printf 'version=2 entries=0\\n'",
}


class Answering:
    """A qube whose service is a shell script."""

    def __init__(self, name: str, script: str, service: str = limits.REPORT_SERVICE) -> None:
        self.name, self.script, self.service, self.calls = name, script, service, 0

    async def run_service(self, service: str, *, user: str, **streams: Any) -> asyncio.subprocess.Process:
        assert (service, user) == (self.service, "root")
        self.calls += 1
        return await asyncio.create_subprocess_exec("sh", "-c", self.script, **streams)


class Halted:
    name = "halted"

    async def run_service(self, *_: Any, **__: Any) -> None:
        raise ValueError("Domain not running")


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_good_report_is_read() -> None:
    assert run(Puller().pull([Answering("work", GOOD)])) == {"work": REPORT}
    assert run(Puller().pull([])) == {}


def test_hostile_qubes_cost_only_their_own_words_and_nothing_stays() -> None:
    bad = [Answering(f"bad-{number}", script) for number, script in enumerate(HOSTILE.values())]
    run(Puller().pull([Answering("work", GOOD)]))
    before = descriptors()
    assert run(Puller().pull([*bad, Halted(), Answering("work", GOOD)])) == {"work": REPORT}
    assert descriptors() == before


def test_everything_else_goes_on_while_a_qube_is_silent() -> None:
    async def turns() -> int:
        pull = asyncio.ensure_future(Puller().pull([Answering("work", HOSTILE["silent"])]))
        count = 0
        while not pull.done():
            await asyncio.sleep(0)
            count += 1
        return count

    assert run(turns()) > 100


def test_a_qube_is_asked_once_at_a_time() -> None:
    work, puller = Answering("work", f"sleep 0.2; {GOOD}"), Puller()

    async def both() -> list[dict[Any, Report]]:
        return await asyncio.gather(*(puller.pull([work]) for _ in range(20)))

    assert run(both()) == [{"work": REPORT}] * 20
    assert work.calls == 1
    assert run(puller.pull([work])) == {"work": REPORT}
    assert work.calls == 2


def test_one_that_gives_up_takes_no_answer_from_another() -> None:
    work, puller = Answering("work", f"sleep 0.2; {GOOD}"), Puller()

    async def one_leaves() -> dict[Any, Report]:
        leaving = asyncio.ensure_future(puller.pull([work]))
        staying = asyncio.ensure_future(puller.pull([work]))
        await asyncio.sleep(0)
        leaving.cancel()
        return await staying

    assert run(one_leaves()) == {"work": REPORT}


def test_a_qube_gets_the_whole_request_whether_it_reads_it_or_not() -> None:
    request = b"x" * (limits.REPORT_MAX - 1) + b"\n"
    assert run(ask(Answering("work", "exec cat", SOME), SOME, bytes, request)) == request
    assert run(ask(Answering("work", "exec echo no", SOME), SOME, bytes, request)) == b"no\n"
    assert run(ask(Answering("work", "exec wc -c", SOME), SOME, bytes)) == b"0\n"


def test_a_question_ends_in_time() -> None:
    async def seconds() -> float:
        loop = asyncio.get_running_loop()
        begin = loop.time()
        assert await ask(Answering("work", "trap : TERM; exec sleep 1000", SOME), SOME, bytes) is None
        return loop.time() - begin

    assert run(seconds()) >= PULL_SECONDS
