# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Host names of sources, resolved in a thread of their own: the agent never waits for a DNS server."""

import contextlib
import ipaddress
import os
import queue
import socket
import threading
from collections.abc import Iterable

from portfwd.wire.values import HostName, IPAddress

REFRESH_SECONDS = 300
_MOST = 32
"""Addresses taken from one name: a name that answers thousands must not fill the kernel."""


class Resolver:
    """Ask for names with want(); fileno() is readable when `found` has changed and read() was not yet called."""

    def __init__(self) -> None:
        self.found: dict[HostName, tuple[IPAddress, ...]] = {}
        self._asked: queue.SimpleQueue[tuple[HostName, ...]] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[dict[HostName, tuple[IPAddress, ...]]] = queue.SimpleQueue()
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._thread: threading.Thread | None = None

    def fileno(self) -> int:
        """For select."""
        return self._reader

    def want(self, names: Iterable[HostName]) -> None:
        """Resolve these names now, in the background; a name that does not answer means no addresses."""
        wanted = tuple(sorted(set(names)))
        if not wanted:
            self.found = {}
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, daemon=True)
            self._thread.start()
        self._asked.put(wanted)

    def read(self) -> bool:
        """Take over what has been resolved; whether it differs from before."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._reader, 4096)
        before = self.found
        with contextlib.suppress(queue.Empty):
            while True:
                self.found = self._answers.get_nowait()
        return self.found != before

    def _work(self) -> None:
        while True:
            names = self._asked.get()
            self._answers.put({name: resolve(name) for name in names})
            with contextlib.suppress(BlockingIOError):
                os.write(self._writer, b"x")


def resolve(name: HostName) -> tuple[IPAddress, ...]:
    """The addresses of a name, at most 32; none when it does not resolve. Blocks for as long as DNS takes."""
    try:
        answers = socket.getaddrinfo(name, None, proto=socket.IPPROTO_TCP)
    except (OSError, UnicodeError):
        return ()
    texts = sorted({str(answer[4][0]) for answer in answers if "%" not in str(answer[4][0])})
    return tuple(ipaddress.ip_address(text) for text in texts[:_MOST])
