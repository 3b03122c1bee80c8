# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Asks qubes over qrexec: all at the same time for reports (wire/answers/report.py), or one for something else.

Calls are bounded in time and bytes: a qube that answers wrongly, too much or too late has not answered; the
answers of others are unaffected.
"""

import asyncio
import contextlib
import os
import subprocess
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from portfwd.dom0.asking.qrexec import attempt, start_service
from portfwd.wire import limits
from portfwd.wire.answers.report import Report
from portfwd.wire.values import QubeName

PULL_SECONDS = 1.0
"""Seconds for all answers together."""
_CHUNK = 1 << 16
Parsed = TypeVar("Parsed")


class Puller:
    """One per qubesd. A qube is asked once at a time; callers in the meantime get the same answer."""

    def __init__(self) -> None:
        self._under_way: dict[QubeName, asyncio.Task[Report | None]] = {}

    async def pull(self, vms: Iterable[Any]) -> dict[QubeName, Report]:
        """The reports that came within PULL_SECONDS, by qube. Never raises for a qube."""
        tasks = {QubeName(str(vm.name)): self._ask(vm) for vm in vms}
        if not tasks:
            return {}
        done, _ = await asyncio.wait(tasks.values(), timeout=PULL_SECONDS)
        reports = {name: task.result() for name, task in tasks.items() if task in done and not task.cancelled()}
        return {name: report for name, report in reports.items() if report is not None}

    def _ask(self, vm: Any) -> "asyncio.Task[Report | None]":
        name = QubeName(str(vm.name))
        if name not in self._under_way:
            task = asyncio.ensure_future(_report(vm))
            self._under_way[name] = task
            task.add_done_callback(lambda _: self._under_way.pop(name))
        return self._under_way[name]


async def _report(vm: Any) -> Report | None:
    return await ask(vm, limits.REPORT_SERVICE, Report.parse)


async def ask(vm: Any, service: str, parse: Callable[[bytes], Parsed], payload: bytes = b"") -> Parsed | None:
    """The parsed answer of a service; None without a valid one within PULL_SECONDS. Never raises for a qube.

    `parse` gets at most one byte more than an answer may have (limits.REPORT_MAX), and may raise RefusedError.
    """

    async def answer() -> Parsed:
        untrusted = await _call(vm, service, payload)
        # In a thread: a long answer would hold up qubesd's loop.
        return parse(untrusted) if len(untrusted) <= _CHUNK // 4 else await asyncio.to_thread(parse, untrusted)

    return await attempt(answer(), PULL_SECONDS, vm.name, service)


async def _call(vm: Any, service: str, payload: bytes) -> bytes:
    """The output of a service, at most one byte more than an answer may have."""
    with _input(payload) as stdin:
        process, reader, transport = await start_service(vm, service, stdin, _CHUNK)
    try:
        untrusted = b""
        while len(untrusted) <= limits.REPORT_MAX and (more := await reader.read(_CHUNK)):
            untrusted += more
        if len(untrusted) <= limits.REPORT_MAX:
            # A service may close its output and live on.
            await process.wait()
        return untrusted[: limits.REPORT_MAX + 1]
    finally:
        transport.close()
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            # The qube is not asked again before the process is gone; callers still wait no longer than PULL_SECONDS.
            await process.wait()


@contextlib.contextmanager
def _input(payload: bytes) -> Iterator[int]:
    """A descriptor with the payload: a file in memory, so that a qube that does not read delays nobody."""
    if not payload:
        yield subprocess.DEVNULL
        return
    with os.fdopen(os.memfd_create("port-forward"), "w+b", buffering=0) as file:
        file.write(payload)
        file.seek(0)
        yield file.fileno()
