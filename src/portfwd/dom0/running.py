# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Per-qubesd runtime: schedules refreshes and ends rules; its `calls` answer the Admin API.

Whoever knows qubesd's own objects (dom0/qubesd, the laboratory's stand-in) registers the handlers, and answers the API
with `calls`. Nothing here raises into a handler.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from portfwd.base.clock import ClockWatch
from portfwd.dom0.calls import Calls
from portfwd.dom0.diagnosis.checking import CheckService
from portfwd.dom0.planning.snapshot import read_way_out
from portfwd.dom0.publishing.databases import DatabaseConnections, Workers
from portfwd.dom0.usecases.service import ForwardService
from portfwd.dom0.views.queries import StatusService
from portfwd.wire import limits
from portfwd.wire.acknowledgement import WAY_OUT

WATCHED = (limits.STATUS + WAY_OUT, limits.STATUS_BASE)
"""Keys of a net qube's QubesDB that dom0 watches: its agent's way out and its acknowledgement."""
QUBE_EVENTS = (
    "domain-load",
    "domain-start",
    "domain-shutdown",
    "domain-paused",
    "domain-unpaused",
    "domain-qdb-create",
    "net-domain-connect",
    "firewall-changed",
    "domain-tag-add:*",
    "domain-tag-delete:*",
    "domain-feature-set:*",
    "domain-feature-delete:*",
    *(f"property-{word}:{name}" for word in ("set", "reset") for name in ("netvm", "ip", "ip6", "provides_network")),
    "property-set:template",
    "property-reset:is_preload",
)
"""Events of qubes after which the plan may be another."""
APP_EVENTS = ("domain-add", "domain-delete", "property-set:default_netvm", "property-reset:default_netvm")
_ENDS = "port-forward-ends"
"""The file of expiry anchors: outlives qubesd, but no restart of the host."""
_HOLDERS = "port-forward-holders"
_SLEEP_MIN = 1.0
"""Seconds until the next attempt when an expired rule could not be removed."""
_RETRY_SECONDS = 5.0
"""Seconds until the next attempt when some qube could not be written, unless an event comes before."""
_STORE_SECONDS_MAX = 80.0
"""Seconds between two attempts to write a file on a full disk, once they have failed for long."""
_TOLD_SECONDS = 5.0
"""Seconds that the answer to a change waits for the writes to qubes: two commands to a daemon that hangs."""
_WORD_SECONDS = 0.2
"""Seconds: status changes of a qube within this time are read once."""
_WORDS_SECONDS = 0.5
"""Seconds: however often a qube writes its status, it is read once in this time."""

log = logging.getLogger(__name__)


class Running:
    """One per application. Must be made where the event loop exists; the loop need not run yet.

    `run`: the folder of the QubesDB sockets; a file beside them keeps expiry anchors over a restart of qubesd.
    `lib`: the folder of qubes.xml, which outlives a restart of the host: a file there keeps who holds which ports.
    """

    def __init__(
        self,
        app: Any,
        loop: asyncio.AbstractEventLoop,
        boot_id: str,
        run: Path,
        lib: Path,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._workers = Workers()
        self._databases = DatabaseConnections(run)
        self.service = ForwardService(
            app, boot_id=boot_id, now=now, kept=run / _ENDS, holders=lib / _HOLDERS, databases_of=self._databases.of
        )
        status = StatusService(app, self.service, self._workers.run, self._workers.compute)
        self.calls = Calls(self.service, status, CheckService(status), self._workers, self._settle)
        self._now = now
        self._clock = ClockWatch()
        self._loop = loop
        loop.add_reader(self._clock, self._on_clock)
        self._asked = self._read_in = False
        self._store_wait = _RETRY_SECONDS
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._looks: dict[str, asyncio.TimerHandle] = {}
        self._looked: dict[str, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def ask(self) -> None:
        """Schedule a refresh, once for all events of one turn of the loop."""
        self._asked = True
        if self._task is None or self._task.done():
            self._task = self._loop.create_task(self._work())

    async def told(self) -> None:
        """Wait until every qube has been written, for a bounded time."""
        if self._task is not None:
            await asyncio.wait((self._task,), timeout=_TOLD_SECONDS)

    async def _settle(self) -> None:
        self.ask()
        await self.told()

    def on_status(self, vm: Any) -> None:
        """Read the watched status keys of one qube, whose agent has written one of them, perhaps unchanged."""
        name = str(vm.name)
        if name not in self._looks:
            now = self._loop.time()
            due = max(now + _WORD_SECONDS, self._looked.get(name, 0.0) + _WORDS_SECONDS)
            self._looks[name] = self._loop.call_at(due, self._look_at, name)

    def on_database(self, vm: Any) -> None:
        """Drop the connection to a qube's previous QubesDB daemon: a new one has started."""
        self._databases.drop(str(vm.name))
        self.ask()

    def on_firewall(self, vm: Any) -> None:
        """Refresh after the rules of a qube were saved or reloaded."""
        self.service.reload(vm)
        self.ask()

    def on_shutdown(self, vm: Any) -> None:
        """Remove the rules that last until the shutdown of this qube, which has stopped."""
        self.service.stopped(vm)
        self.ask()

    def close(self) -> None:
        """Stop all timers and tasks: the application ends."""
        self._loop.remove_reader(self._clock)
        self._clock.close()
        for pending in (self._timer, self._task, *self._looks.values(), *self._tasks):
            if pending is not None:
                pending.cancel()
        self._workers.close()
        self._databases.close()

    def _look_at(self, name: str) -> None:
        now = self._loop.time()
        del self._looks[name]
        self._looked = {n: then for n, then in self._looked.items() if now - then < _WORDS_SECONDS} | {name: now}
        task = self._loop.create_task(self._ask_way_out(name))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask_way_out(self, name: str) -> None:
        """Read one net qube's report. Everything is looked at anew only if that changes what counts."""
        databases = {n: database for n, database in self.service.reporting().items() if n == name}
        if self.service.record(await self._workers.each(read_way_out, databases), databases):
            self.ask()
        self._wake_for_silence()

    async def _work(self) -> None:
        while self._asked:
            self._asked = False
            try:
                with self._workers.turns:
                    await self._refresh()
            except Exception:
                log.exception("port forwarding: refresh failed")

    async def _refresh(self) -> None:
        """Make every qube's QubesDB equal to the plan."""
        service = self.service
        reporting = service.reporting()
        service.record(await self._workers.each(read_way_out, reporting), reporting)
        if not self._read_in:
            for _ in service.read_in():
                await asyncio.sleep(0)
            self._read_in = True
        work = service.prepare()
        if work is not None:
            self._databases.keep(work.databases)
            orders = await self._workers.compute(work.plan)
            service.published(await self._workers.each(orders.publish, work.databases))
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline = service.next_deadline()
        waits = [] if deadline is None else [max(_SLEEP_MIN, deadline - self._now())]
        if work is None or service.unwritten:
            waits.append(_RETRY_SECONDS)
        self._store_wait = min(_STORE_SECONDS_MAX, self._store_wait * 2) if service.unstored else _RETRY_SECONDS
        if service.unstored:
            waits.append(self._store_wait)
        if waits:
            self._timer = self._loop.call_later(min(waits), self._on_deadline)
        self._wake_for_silence()

    def _wake_for_silence(self) -> None:
        due = self.service.silence_due()
        if due is None:
            return
        at = self._loop.time() + max(_WORD_SECONDS, due)
        if self._timer is None or self._timer.when() > at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(at, self._on_deadline)

    def _on_clock(self) -> None:
        # The timer runs on the monotonic clock, which notices neither suspend nor a wall clock that was set.
        if self._clock.read():
            self.ask()

    def _on_deadline(self) -> None:
        self._timer = None
        self.ask()
