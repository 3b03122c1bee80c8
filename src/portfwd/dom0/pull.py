# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Asks qubes over qrexec: for their reports, all at the same time (wire/report.py), or one of them for something else.

For the loop of qubesd, which goes on meanwhile. All is bounded in time and bytes: a qube that answers wrongly, too much
or not in time has given no answer; it costs nobody else's. `vm.run_service` is qubesd's own (qubes.vm.qubesvm.QubesVM):
a coroutine that gives an asyncio.subprocess.Process. Its relative run_service_for_stdio would take in as much as a qube
likes to send.
"""

import asyncio
import contextlib
import logging
import os
import subprocess
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from portfwd.wire import limits
from portfwd.wire.errors import RefusedError
from portfwd.wire.report import Report
from portfwd.wire.values import QubeName

log = logging.getLogger(__name__)

PULL_SECONDS = 1.0
"""How long one pull may take in all."""
_CHUNK = 1 << 16
Answer = TypeVar("Answer")


class Puller:
    """One per qubesd. A qube is asked once at a time: who asks meanwhile gets the same answer."""

    def __init__(self) -> None:
        self._under_way: dict[QubeName, asyncio.Task[Report | None]] = {}

    async def pull(self, vms: Iterable[Any]) -> dict[QubeName, Report]:
        """The reports of those that gave one, PULL_SECONDS from now at the latest. Never raises for a qube."""
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


async def ask(vm: Any, service: str, parse: Callable[[bytes], Answer], payload: bytes = b"") -> Answer | None:
    """What `parse` makes of a service's answer, or None, PULL_SECONDS from now at the latest. Never raises for a qube.

    `parse` gets at most one byte more than an answer may have (limits.REPORT_MAX), and may raise RefusedError.
    """
    try:
        async with asyncio.timeout(PULL_SECONDS):
            untrusted_answer = await _call(vm, service, payload)
        return parse(untrusted_answer)
    except TimeoutError:
        log.info("port forwarding: %s gave no answer in time to %s", vm.name, service)
    except RefusedError as error:
        log.warning("port forwarding: answer of %s to %s: %s", vm.name, service, error)
    except Exception as error:
        # qubesd's own errors, such as those of a qube that has just stopped.
        log.info("port forwarding: %s cannot be asked for %s: %s", vm.name, service, error)
    return None


async def _call(vm: Any, service: str, payload: bytes) -> bytes:
    """What the service prints, at most one byte more than an answer may have."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=_CHUNK)
    read_end, write_end = os.pipe()
    # A pipe of our own: closing it frees us of a qube that goes on writing.
    pipe = os.fdopen(read_end, "rb", 0)
    transport: asyncio.BaseTransport | None = None
    process: asyncio.subprocess.Process | None = None
    try:
        try:
            transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
            with _input(payload) as stdin:
                process = await vm.run_service(
                    service,
                    user="root",
                    stdin=stdin,
                    stdout=write_end,
                    stderr=subprocess.DEVNULL,
                )
        finally:
            os.close(write_end)
        untrusted = b""
        while len(untrusted) <= limits.REPORT_MAX and (more := await reader.read(_CHUNK)):
            untrusted += more
        if len(untrusted) <= limits.REPORT_MAX:
            # A service may close its output and live on.
            await process.wait()
        return untrusted[: limits.REPORT_MAX + 1]
    finally:
        if transport is None:
            pipe.close()
        else:
            transport.close()
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            # Until it is gone the qube is not asked again; whoever pulls waits no longer than told.
            await process.wait()


@contextlib.contextmanager
def _input(payload: bytes) -> Iterator[int]:
    """A descriptor to read the payload from. A file in memory, so that nobody has to wait until a qube has read it."""
    if not payload:
        yield subprocess.DEVNULL
        return
    with os.fdopen(os.memfd_create("port-forward"), "w+b", buffering=0) as file:
        file.write(payload)
        file.seek(0)
        yield file.fileno()
