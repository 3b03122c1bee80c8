# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Resolves host names of sources in threads, so that the agent never waits for a DNS server.

An answer counts as a whole: addresses that it lacks are shut. When no server answers, the last answer counts
for a while longer, since a server's trouble says nothing about the name.
"""

import contextlib
import ipaddress
import os
import queue
import socket
import threading
from collections.abc import Callable, Iterable

from portfwd.base.clock import read_clocks
from portfwd.wire.sources import is_client
from portfwd.wire.values import HostName, IPAddress

REFRESH_SECONDS = 300
RETRY_SECONDS = 30
"""Seconds until a name is asked for again after no server answered."""
HOLD_SECONDS = 900
"""Seconds for which the last answer counts meanwhile: a router restarts in less, and addresses seldom change owner."""
_THREADS = 16
_NO_SUCH_NAME = {socket.EAI_NONAME, socket.EAI_NODATA, socket.EAI_ADDRFAMILY}
_MOST = 32
"""Addresses taken from one name, at most: a name with thousands must not fill the kernel."""


class Resolver:
    """Takes names by want(); fileno() is readable when answers have come that read() has not taken yet.

    Each name has a thread while there are few, so that one with a dead server does not delay the others. `clock`
    gives seconds, suspend included.
    """

    def __init__(self, clock: Callable[[], float] = lambda: read_clocks().boot) -> None:
        self._clock = clock
        self._answered: dict[HostName, float] = {}
        self.found: dict[HostName, tuple[IPAddress, ...]] = {}
        self._wanted: frozenset[HostName] = frozenset()
        self._under_way: dict[HostName, bool] = {}
        self._asked: queue.SimpleQueue[HostName | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[HostName, tuple[IPAddress, ...] | None]] = queue.SimpleQueue()
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._threads: list[threading.Thread] = []
        self._unknown: set[HostName] = set()

    def fileno(self) -> int:
        """For select."""
        return self._reader

    @property
    def waiting(self) -> bool:
        """Whether the answer for some wanted name is still missing."""
        return not self._wanted.isdisjoint(self._under_way)

    @property
    def troubled(self) -> bool:
        """Whether no server answered for some wanted name the last time."""
        return not self._wanted.isdisjoint(self._unknown)

    def want(self, names: Iterable[HostName]) -> None:
        """Resolve these names now, in the background; a name that does not resolve means no addresses."""
        self._wanted = frozenset(names)
        self._unknown &= self._wanted
        self._answered = {name: when for name, when in self._answered.items() if name in self._wanted}
        self.found = {name: addresses for name, addresses in self.found.items() if name in self._wanted}
        for name in sorted(self._wanted):
            if name in self._under_way:
                # The answer under way may be older than this request.
                self._under_way[name] = True
            else:
                self._ask(name)

    def read(self) -> bool:
        """Take the answers that have come; returns whether any differs from before."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._reader, 4096)
        found = dict(self.found)
        with contextlib.suppress(queue.Empty):
            while True:
                name, addresses = self._answers.get_nowait()
                again = self._under_way.pop(name)
                if name in self._wanted:
                    found[name] = self._judge(name, addresses)
                    if again:
                        self._ask(name)
        changed, self.found = found != self.found, found
        return changed

    def _judge(self, name: HostName, addresses: tuple[IPAddress, ...] | None) -> tuple[IPAddress, ...]:
        """What a name means after this answer."""
        now = self._clock()
        if addresses is not None:
            self._unknown.discard(name)
            self._answered[name] = now
            return addresses
        self._unknown.add(name)
        if name in self._answered and now - self._answered[name] < HOLD_SECONDS:
            return self.found.get(name, ())
        return ()

    def _ask(self, name: HostName) -> None:
        self._under_way[name] = False
        self._asked.put(name)
        if len(self._threads) < min(_THREADS, len(self._under_way)):
            self._threads.append(threading.Thread(target=self._work, daemon=True))
            self._threads[-1].start()

    def close(self) -> None:
        """Close threads and descriptors, after the answers that are under way."""
        for _ in self._threads:
            self._asked.put(None)
        for thread in self._threads:
            thread.join()
        os.close(self._reader)
        os.close(self._writer)

    def _work(self) -> None:
        while (name := self._asked.get()) is not None:
            self._answers.put((name, resolve(name)))
            with contextlib.suppress(BlockingIOError):
                os.write(self._writer, b"x")


def resolve(name: HostName) -> tuple[IPAddress, ...] | None:
    """The addresses of a name, at most 32; none when there is no such name, None when no server answered.

    Those that no client can have, such as loopback addresses, are left out. Blocks for as long as DNS takes.
    Errors: getaddrinfo(3).
    """
    try:
        answers = socket.getaddrinfo(name, None, proto=socket.IPPROTO_TCP)
    except UnicodeError:
        return ()
    except OSError as error:
        return () if isinstance(error, socket.gaierror) and error.errno in _NO_SUCH_NAME else None
    texts = sorted({str(answer[4][0]) for answer in answers if "%" not in str(answer[4][0])})
    return tuple(filter(is_client, map(ipaddress.ip_address, texts)))[:_MOST]
