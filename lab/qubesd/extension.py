# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Port forwarding inside the stand-in qubesd: the events and the API arguments that reach the product's service.

Nothing here raises into qubesd: a handler only asks for a refresh, which comes once for all events of one turn of the
loop, and the service itself never raises. The API methods answer errors as any other method does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lab.qubesd.app import App
from lab.qubesd.errors import ProtocolError, QubesValueError
from lab.qubesd.events import Level
from lab.qubesd.server import Call, Method, Server
from portfwd.dom0.checking import CheckService
from portfwd.dom0.service import ForwardService
from portfwd.dom0.status import StatusService
from portfwd.wire import limits
from portfwd.wire.clock import ClockWatch
from portfwd.wire.errors import RefusedError
from portfwd.wire.qdb_client import Error
from portfwd.wire.status import WAY_OUT

ARGUMENT = "forward"
_KILL = "kill"
_CHECK = "check."
_SLEEP_MIN = 1.0
"""Seconds until the next try when a rule that has ended could not be removed."""
_STATUS_SECONDS = 0.2
"""A qube may write its status as often as it likes; it is looked at once in this time."""
_WAY_OUT = limits.STATUS + WAY_OUT

_QUBE_EVENTS = (
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
_APP_EVENTS = ("domain-add", "domain-delete", "property-set:default_netvm", "property-reset:default_netvm")


class PortForwardExtension:
    """Connects one application and one API server to the service. Must be made inside the running loop."""

    def __init__(
        self, app: App, server: Server, boot_id: str, kept: Path, now: Callable[[], float] = time.time
    ) -> None:
        self.service = ForwardService(app, boot_id=boot_id, now=now, kept=kept)
        self.status = StatusService(app, self.service)
        self.check = CheckService(self.status)
        self._now = now
        self._log = app.log
        self._clock = ClockWatch()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._clock, self._on_clock)
        self._asked = False
        self._timer: asyncio.TimerHandle | None = None
        self._status_timer: asyncio.TimerHandle | None = None
        for pattern in _QUBE_EVENTS:
            app.vm_handlers.add(Level.QUBE, pattern, self._on_event)
        app.vm_handlers.add(Level.QUBE, "domain-shutdown", self._on_shutdown)
        app.vm_handlers.add(Level.QUBE, "firewall-changed", self._on_firewall)
        for pattern in ("domain-load", "domain-qdb-create"):
            app.vm_handlers.add(Level.QUBE, pattern, self._on_database)
        app.vm_handlers.add(Level.QUBE, f"domain-qdb-change:{_WAY_OUT}", self._on_status)
        for pattern in _APP_EVENTS:
            app.app_handlers.add(Level.QUBE, pattern, self._on_event)
        self._stock = {name: server.methods[f"admin.vm.firewall.{name}"].handler for name in ("Get", "Set")}
        server.methods["admin.vm.firewall.Get"] = Method(self._get, arg=None, payload=None)
        server.methods["admin.vm.firewall.Set"] = Method(self._set, arg=None, payload=None, dom0=False)

    # The first parameter is not called vm: some events have a word of that name.
    def _on_event(self, _subject: Any, _event: str, **_: Any) -> None:
        if not self._asked:
            self._asked = True
            self._loop.call_soon(self._refresh)

    def _on_database(self, subject: Any, _event: str, **_: Any) -> None:
        if subject.klass != "AdminVM":
            subject.watch_qdb_path(_WAY_OUT)

    def _on_status(self, _subject: Any, _event: str, **_: Any) -> None:
        if self._status_timer is None:
            self._status_timer = self._loop.call_later(_STATUS_SECONDS, self._after_status)

    def _after_status(self) -> None:
        self._status_timer = None
        self._on_event(None, "status")

    def _on_firewall(self, subject: Any, _event: str, **_: Any) -> None:
        self.service.reload(subject)

    def _on_shutdown(self, subject: Any, _event: str, **_: Any) -> None:
        self.service.stopped(subject)

    def _refresh(self) -> None:
        self._asked = False
        self.service.refresh()
        if self._timer is not None:
            self._timer.cancel()
        deadline = self.service.next_deadline()
        if deadline is not None:
            self._timer = self._loop.call_later(max(_SLEEP_MIN, deadline - self._now()), self._on_deadline)

    def _on_clock(self) -> None:
        # The timer is one of the monotonic clock, which knows neither suspend nor a clock that was set.
        if self._clock.read():
            self._on_event(None, "clock")

    def _on_deadline(self) -> None:
        self._timer = None
        self._on_event(None, "deadline")

    async def _get(self, call: Call) -> str | None:
        name = call.arg.removeprefix(f"{ARGUMENT}.")
        if call.untrusted_payload and name != "plan" and not name.startswith(_CHECK):
            raise ProtocolError("unexpected payload")
        if call.dest.klass == "AdminVM" and name != "status":
            raise ProtocolError("expected destination to not be AdminVM")
        if not call.arg:
            return await self._stock["Get"](call)
        try:
            if call.arg == ARGUMENT:
                return self.service.get(call.dest)
            if call.arg == f"{ARGUMENT}.status":
                return await self.status.status(None if call.dest.klass == "AdminVM" else call.dest)
            if call.arg == f"{ARGUMENT}.plan":
                return await self.status.plan(call.dest, _text(call.untrusted_payload))
            if call.arg == f"{ARGUMENT}.connections":
                return await self.status.connections(call.dest)
            if call.arg.startswith(f"{ARGUMENT}.{_CHECK}"):
                return await self.check.check(call.dest, name.removeprefix(_CHECK), _text(call.untrusted_payload))
        except RefusedError as error:
            raise QubesValueError(str(error)) from None
        raise ProtocolError("unexpected argument")

    async def _set(self, call: Call) -> str | None:
        if not call.arg:
            if not call.untrusted_payload:
                raise ProtocolError("expected payload")
            return await self._stock["Set"](call)
        name, dot, untrusted_token = call.arg.partition(".")
        if name != ARGUMENT:
            raise ProtocolError("unexpected argument")
        try:
            if untrusted_token == _KILL:
                await self.status.kill(call.dest, _text(call.untrusted_payload))
                return None
            self.service.set(call.dest, _text(call.untrusted_payload), untrusted_token if dot else None)
        except RefusedError as error:
            raise QubesValueError(str(error)) from None
        except Error as error:
            # The list is stored by now. qubesd's own handler of firewall-changed failed: some QubesDB is gone.
            self._log.warning("port forwarding: a QubesDB could not be told: %s", error)
        self._on_event(call.dest, "set")
        return None


def _text(untrusted_payload: bytes) -> str:
    try:
        return untrusted_payload.decode("ascii")
    except UnicodeDecodeError:
        raise RefusedError("the payload is not ASCII text") from None
