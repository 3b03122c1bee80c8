# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The extension of qubesd. Its handlers run after the stock's (vm=QubesVM), never raise, and never wait."""

import asyncio
import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import qubes
import qubes.ext
import qubes.vm.qubesvm

from portfwd.dom0.calls import Calls
from portfwd.dom0.qubesd import api, stock_firewall
from portfwd.dom0.running import APP_EVENTS, QUBE_EVENTS, WATCHED, Running
from portfwd.dom0.storage.forwards import NOTES

log = logging.getLogger("qubes.ext.port-forward")

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_RUN = Path("/run/qubes")
_RUNNING = "port_forward_running"
_QUBE = qubes.vm.qubesvm.QubesVM
Handler = Callable[..., None]


def _safely(method: Handler) -> Handler:
    """Make a handler log its errors, which must not stop qubesd."""

    @functools.wraps(method)
    def handler(self: Any, subject: Any, event: str, **words: Any) -> None:
        try:
            method(self, subject, event, **words)
        except Exception:
            log.exception("port forwarding: event %s of %s", event, subject)

    return handler


class PortForwardExtension(qubes.ext.Extension):  # type: ignore[misc]
    """One object for all applications of a process; each application has a Running of its own."""

    def __init__(self) -> None:
        super().__init__()
        stock_firewall.extend(_RUN / NOTES)
        api.extend(calls_of)

    # The first parameter is not called vm: some events have a word of that name.
    @qubes.ext.handler(*QUBE_EVENTS, vm=_QUBE)  # type: ignore[untyped-decorator, unused-ignore]
    @_safely
    def on_qube(self, subject: Any, event: str, **_: Any) -> None:
        running = _awake(subject.app)
        if event in ("domain-load", "domain-qdb-create"):
            _watch(subject)
        if running is None:
            return
        if event == "firewall-changed":
            running.on_firewall(subject)
        elif event == "domain-shutdown":
            running.on_shutdown(subject)
        elif event == "domain-qdb-create":
            running.on_database(subject)
        else:
            running.ask()

    @qubes.ext.handler(*(f"domain-qdb-change:{path}" for path in WATCHED), vm=_QUBE)  # type: ignore[untyped-decorator, unused-ignore]
    @_safely
    def on_status(self, subject: Any, _event: str, **_: Any) -> None:
        running = _awake(subject.app)
        if running is not None:
            running.on_status(subject)

    @qubes.ext.handler(*APP_EVENTS, system=True)  # type: ignore[untyped-decorator, unused-ignore]
    @_safely
    def on_app(self, subject: Any, _event: str, **_: Any) -> None:
        running = _awake(subject)
        if running is not None:
            running.ask()

    @qubes.ext.handler("qubes-close", system=True)  # type: ignore[untyped-decorator, unused-ignore]
    @_safely
    def on_close(self, subject: Any, _event: str, **_: Any) -> None:
        running = running_of(subject)
        if running is not None:
            delattr(subject, _RUNNING)
            running.close()


def running_of(app: Any) -> Running | None:
    """The Running of this application; None before its loop has run, and in tools without a loop."""
    running: Running | None = getattr(app, _RUNNING, None)
    return running


def calls_of(app: Any) -> Calls | None:
    """What answers a call of the API, which is made where the loop runs: started now if no event has come before."""
    if running_of(app) is None and not app.vmm.offline_mode:
        _start(app, asyncio.get_running_loop())
    running = running_of(app)
    return None if running is None else running.calls


def _awake(app: Any) -> Running | None:
    """The Running; has the loop start it when there is none yet."""
    running = running_of(app)
    # Upstream's tests have applications of another class, which nobody closes: a Running would outlive them.
    wanted = isinstance(app, qubes.Qubes) and not app.vmm.offline_mode
    if running is None and wanted and not hasattr(app, f"{_RUNNING}_asked"):
        try:
            loop = asyncio.get_event_loop()
        except RuntimeError:
            # A tool of dom0 that reads qubes.xml, and no qubesd.
            return None
        setattr(app, f"{_RUNNING}_asked", True)
        loop.call_soon(_start, app, loop)
    return running


def _start(app: Any, loop: asyncio.AbstractEventLoop) -> None:
    if running_of(app) is not None:
        return
    try:
        running = Running(app, loop, _BOOT_ID.read_text(encoding="ascii").strip(), _RUN, Path(app.store).parent)
    except Exception:
        log.exception("port forwarding is off: it cannot start")
        return
    setattr(app, _RUNNING, running)
    # No event tells what happened while no qubesd ran.
    running.ask()


def _watch(vm: Any) -> None:
    """Watch the status keys that change plans. A qube that does not run has none."""
    watch = getattr(vm, "watch_qdb_path", None)
    if watch is not None:
        for path in WATCHED:
            watch(path)
