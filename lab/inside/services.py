# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The services of a machine: started, watched and started again, as systemd does.

Single-threaded: the machine's first process calls step() for ever. A service says that it is ready with sd_notify(3)
READY=1, or counts as ready at once when it is not asked to.
"""

import contextlib
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from lab.base import namespaces as ns
from lab.base.enter import environment

NOTIFY_SOCKET = "/run/systemd/notify"
# Seconds between two starts of a service that keeps failing: doubled each time within these bounds.
FIRST_DELAY, LAST_DELAY = 0.1, 5.0
# A service that lived this long (seconds) starts again with the first delay.
HEALTHY = 10.0
# Seconds that a service may take to end, or to be ready again.
CONTROL_DEADLINE = 20.0
ACTIONS = ("start", "stop", "restart", "kill")


@dataclass
class Service:
    """A program (argv) or a Python function (run, in a forked process) that shall run as long as the machine."""

    name: str
    argv: tuple[str, ...] = ()
    run: Callable[[], object] | None = None
    env: dict[str, str] = field(default_factory=dict)
    pid: int | None = None
    ready: bool = False
    starts: int = 0
    started: float = 0.0
    delay: float = FIRST_DELAY
    due: float | None = None


class Services:
    """All services of this machine, and the reaping of every orphan in it."""

    def __init__(self, on_ready: Callable[[str], None]) -> None:
        """on_ready is called with the name of each service that says that it is ready."""
        self._on_ready = on_ready
        self._services: list[Service] = []
        Path(NOTIFY_SOCKET).unlink(missing_ok=True)
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        self._notify.bind(NOTIFY_SOCKET)
        self._notify.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)

    def add(self, service: Service) -> None:
        """Know a service without starting it."""
        self._services.append(service)

    def start(self, service: Service, late: float = 0.0) -> None:
        """Know a service and start it; its program begins so many seconds late this time."""
        self.add(service)
        self._launch(service, late)

    def control(self, name: str, action: str) -> None:
        """As systemctl does: start, stop and restart (with SIGTERM), kill (SIGKILL; it is then started again).

        Returns when the service is ready, or has ended. OSError for words that are not known, and after a deadline.
        """
        service = next((service for service in self._services if service.name == name), None)
        if service is None or action not in ACTIONS:
            raise OSError(f"there is no {action!r} of a service {name!r}")
        if action in ("stop", "restart"):
            self._stop(service)
        elif action == "kill" and service.pid is not None:
            service.ready = False
            os.kill(service.pid, signal.SIGKILL)
        if action == "stop":
            return
        if service.pid is None and (service.due is None or action != "kill"):
            service.delay = FIRST_DELAY
            self._launch(service)
        deadline = time.monotonic() + CONTROL_DEADLINE
        while not service.ready:
            if time.monotonic() > deadline:
                raise OSError(f"{name} does not get ready")
            self.step(deadline)

    def _stop(self, service: Service) -> None:
        deadline = time.monotonic() + CONTROL_DEADLINE
        if service.pid is not None:
            os.kill(service.pid, signal.SIGTERM)
        while service.pid is not None:
            if time.monotonic() > deadline:
                os.kill(service.pid, signal.SIGKILL)
            self.step(deadline)
        service.due = None

    def wait(self, service: Service, seconds: float) -> bool:
        """Go on until the service is ready, has ended once, or the time is over; tell whether it is ready."""
        deadline = time.monotonic() + seconds
        while not service.ready and service.pid is not None and time.monotonic() < deadline:
            self.step(deadline)
        return service.ready

    def step(self, deadline: float | None = None, channel: int | None = None) -> bool:
        """Wait for the next thing to do and do it; True when the channel has something to read."""
        dues = [s.due for s in self._services if s.due is not None] + ([] if deadline is None else [deadline])
        timeout = max(0.0, min(dues) - time.monotonic()) if dues else None
        sources = [self._notify.fileno(), self._wake_read] + ([] if channel is None else [channel])
        readable, _, _ = select.select(sources, [], [], timeout)
        if self._wake_read in readable:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake_read, 4096)
        if self._notify.fileno() in readable:
            self._take_notifications()
        self._reap()
        for service in self._services:
            if service.due is not None and service.due <= time.monotonic():
                self._launch(service)
        return channel in readable

    def _launch(self, service: Service, late: float = 0.0) -> None:
        service.due = None
        service.ready = False
        service.starts += 1
        service.started = time.monotonic()
        service.pid = os.fork()
        if service.pid == 0:
            self._become(service, late)

    def _become(self, service: Service, late: float) -> NoReturn:
        # A forked service must hold nothing of its parent's, or the parent's death would not be seen by others.
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        ns.keep_only(())
        os.setsid()
        ns.set_process_name(service.name)
        env = environment({**service.env, "NOTIFY_SOCKET": NOTIFY_SOCKET})
        status = 1
        time.sleep(late)
        try:
            if service.run is None:
                os.execvpe(service.argv[0], service.argv, env)  # noqa: S606 - argv comes from this package
            os.environ.clear()
            os.environ.update(env)
            result = service.run()
            status = result if isinstance(result, int) else 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
        ns.leave(status)

    def _take_notifications(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                message, ancillary, _, _ = self._notify.recvmsg(4096, socket.CMSG_SPACE(12))
                pids = [
                    int.from_bytes(d[:4], sys.byteorder) for _, kind, d in ancillary if kind == socket.SCM_CREDENTIALS
                ]
                if b"READY=1" in message.split(b"\n"):
                    for service in self._services:
                        if service.pid in pids and not service.ready:
                            service.ready = True
                            self._on_ready(service.name)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for service in self._services:
                if service.pid == pid:
                    self._ended(service, os.waitstatus_to_exitcode(status))

    def _ended(self, service: Service, code: int) -> None:
        service.pid = None
        service.ready = False
        if code == 0:
            log(f"{service.name} ended")
            return
        lived = time.monotonic() - service.started
        service.delay = FIRST_DELAY if lived > HEALTHY else service.delay
        log(f"{service.name} ended with {code}, next start in {service.delay:.1f} s")
        service.due = time.monotonic() + service.delay
        service.delay = min(LAST_DELAY, service.delay * 2)


def log(text: str) -> None:
    """A line in the machine's log."""
    print(f"init: {text}", file=sys.stderr, flush=True)
