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

from lab.qubesd.api.server import Call, Method, Server
from lab.qubesd.base.errors import ProtocolError, QubesValueError
from lab.qubesd.base.events import Level
from lab.qubesd.qubes.app import App
from portfwd.api.errors import WordedError
from portfwd.dom0 import calls
from portfwd.dom0.calls import UnexpectedError
from portfwd.dom0.running import APP_EVENTS, QUBE_EVENTS, WATCHED, Running
from portfwd.dom0.storage.forwards import UnstoredError
from portfwd.dom0.usecases.caller import RESTORES_TAG, Caller
from portfwd.wire.errors import RefusedError


class PortForwardExtension:
    """Connects one application and one API server to the service. Must be made inside the running loop."""

    def __init__(self, app: App, server: Server, boot_id: str, run: Path, now: Callable[[], float] = time.time) -> None:
        self._running = Running(app, asyncio.get_running_loop(), boot_id, run, app.base_dir, now)
        self.service = self._running.service
        for pattern in QUBE_EVENTS:
            app.vm_handlers.add(Level.QUBE, pattern, self._on_event)
        app.vm_handlers.add(Level.QUBE, "domain-shutdown", self._on_shutdown)
        app.vm_handlers.add(Level.QUBE, "firewall-changed", self._on_firewall)
        for pattern in ("domain-load", "domain-qdb-create"):
            app.vm_handlers.add(Level.QUBE, pattern, self._on_database)
        for path in WATCHED:
            app.vm_handlers.add(Level.QUBE, f"domain-qdb-change:{path}", self._on_status)
        for pattern in APP_EVENTS:
            app.app_handlers.add(Level.QUBE, pattern, self._on_event)
        self._stock = {name: server.methods[f"admin.vm.firewall.{name}"].handler for name in ("Get", "Set")}
        server.methods["admin.vm.firewall.Get"] = Method(self._get, arg=None, payload=None)
        server.methods["admin.vm.firewall.Set"] = Method(self._set, arg=None, payload=None, dom0=False)

    # The first parameter is not called vm: some events have a word of that name.
    def _on_event(self, _subject: Any, _event: str, **_: Any) -> None:
        self._running.ask()

    def _on_database(self, subject: Any, event: str, **_: Any) -> None:
        if subject.klass != "AdminVM":
            for path in WATCHED:
                subject.watch_qdb_path(path)
            if event == "domain-qdb-create":
                self._running.on_database(subject)

    def _on_status(self, subject: Any, _event: str, **_: Any) -> None:
        self._running.on_status(subject)

    def _on_firewall(self, subject: Any, _event: str, **_: Any) -> None:
        self._running.on_firewall(subject)

    def _on_shutdown(self, subject: Any, _event: str, **_: Any) -> None:
        self._running.on_shutdown(subject)

    async def _get(self, call: Call) -> str | None:
        if not call.arg:
            if call.untrusted_payload:
                raise ProtocolError("unexpected payload")
            if call.dest.klass == "AdminVM":
                raise ProtocolError("expected destination to not be AdminVM")
            return await self._stock["Get"](call)
        try:
            return await self._running.calls.get(_value(call))
        except UnexpectedError as error:
            raise ProtocolError(str(error)) from None
        except WordedError as error:
            raise type(error.word.value, (QubesValueError,), {})(str(error)) from None
        except RefusedError as error:
            raise QubesValueError(str(error)) from None

    async def _set(self, call: Call) -> str | None:
        if not call.arg:
            if not call.untrusted_payload:
                raise ProtocolError("expected payload")
            return await self._stock["Set"](call)
        try:
            return await self._running.calls.set(_value(call))
        except UnexpectedError as error:
            raise ProtocolError(str(error)) from None
        except (WordedError, UnstoredError) as error:
            raise type(error.word.value, (QubesValueError,), {})(str(error)) from None
        except RefusedError as error:
            raise QubesValueError(str(error)) from None


def _value(call: Call) -> calls.Call:
    caller = Caller(call.src.name, call.permissions.forwards(call.src), RESTORES_TAG in call.src.tags)
    vm = None if call.dest.klass == "AdminVM" else call.dest
    return calls.Call(caller, vm, call.arg, call.untrusted_payload)
