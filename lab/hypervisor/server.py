# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The hypervisor's ears: connections that carry lines of JSON, and one loop over all descriptors."""

import contextlib
import json
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lab.base.state import short_path

Answer = dict[str, Any]
Handler = Callable[["Connection", dict[str, Any]], None]

_LINE_MAX = 65536


class Loop:
    """Calls a function when its descriptor has something to read, or its time has come. Ending children wake it up."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, Callable[[], None]]] = []
        read_end, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        self._wake = read_end
        self.add(read_end, self._woken)

    def add(self, fd: int, function: Callable[[], None]) -> None:
        self._selector.register(fd, selectors.EVENT_READ, function)

    def remove(self, fd: int) -> None:
        if fd >= 0 and fd in self._selector.get_map():
            self._selector.unregister(fd)

    def later(self, seconds: float, function: Callable[[], None]) -> None:
        """Call a function once, after so many seconds."""
        self._timers.append((time.monotonic() + seconds, function))

    def step(self, timeout: float | None) -> None:
        """Wait for the next descriptors and times, and call their functions."""
        waits = [max(0.0, due - time.monotonic()) for due, _ in self._timers]
        for key, _ in self._selector.select(min(waits + ([] if timeout is None else [timeout]), default=None)):
            # One function may have removed the descriptor of the next.
            if self._selector.get_map().get(key.fd) is key:
                key.data()
        for timer in [timer for timer in self._timers if timer[0] <= time.monotonic()]:
            self._timers.remove(timer)
            timer[1]()

    def _woken(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake, 4096)


class Connection:
    """One client. Requests wait in its buffer while one is being answered, so answers come in order."""

    def __init__(self, loop: Loop, client: socket.socket, handler: Handler, closed: Callable[["Connection"], None]):
        self._loop = loop
        self._socket = client
        self._handler = handler
        self._closed = closed
        self._received = b""
        self._busy = False
        client.setblocking(False)
        loop.add(client.fileno(), self._readable)

    def answer(self, ok: bool = True, fds: Sequence[int] = (), **words: object) -> None:
        """Answer the request that is being handled, and go on to the next."""
        self.send({"ok": ok, **words}, fds)
        self._busy = False
        self._next()

    def reply(self, error: str | None) -> None:
        """Answer that it is done, or why not."""
        if error is None:
            self.answer()
        else:
            self.answer(ok=False, error=error)

    def send(self, message: Answer, fds: Sequence[int] = ()) -> None:
        """Send a line, an event or an answer; a client that does not read loses its connection."""
        line = json.dumps(message).encode() + b"\n"
        try:
            sent = socket.send_fds(self._socket, [line], fds) if fds else self._socket.send(line)
        except OSError:
            sent = 0
        if sent < len(line):
            self.close()

    def close(self) -> None:
        if self._socket.fileno() >= 0:
            self._loop.remove(self._socket.fileno())
            self._socket.close()
            self._closed(self)

    def _readable(self) -> None:
        try:
            data = self._socket.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._received += data
        if not data or len(self._received) > _LINE_MAX:
            self.close()
            return
        self._next()

    def _next(self) -> None:
        while not self._busy and b"\n" in self._received:
            line, self._received = self._received.split(b"\n", 1)
            self._busy = True
            try:
                request = json.loads(line)
            except ValueError:
                request = None
            if isinstance(request, dict):
                self._handler(self, request)
            else:
                self.answer(ok=False, error="a request is a line with a JSON object")


def listen(path: Path) -> socket.socket:
    """A listening socket at a new path, for this user alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with short_path(path) as short:
        listener.bind(short)
    # All qubes may start in one moment, and asyncio takes a full queue for a connection that has been made.
    listener.listen(4096)
    return listener
