# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The QubesDB of running qubes, used by threads beside qubesd's loop.

A qube that sends half a message has its daemon in dom0 wait for the rest, and whoever asks that daemon waits as well.
So commands are made outside of the loop and end in time, and one silent daemon keeps no other qube waiting.
"""

import asyncio
import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from portfwd.dom0.snapshot import session_of
from portfwd.wire.qdb_client import Error, QubesDB, SilentError, Store
from portfwd.wire.values import QubeName

TIMEOUT = 2.0
"""Seconds that a daemon may take for one command; one that works takes less than a millisecond."""
SILENT_SECONDS = 3.0
"""Seconds for which a daemon that took longer is not asked again."""
_WORKERS = 16
_TURN = 0.0005
"""Seconds for which a thread keeps the interpreter while the loop wants it; Python's own are ten times that."""

T = TypeVar("T")
R = TypeVar("R")


class Connection:
    """One qube's database, connected at the first command. Safe to use by several threads."""

    def __init__(self, socket: Path, now: Callable[[], float] = time.monotonic) -> None:
        self._database = QubesDB(str(socket), TIMEOUT, lazy=True)
        self._lock = threading.Lock()
        self._now = now
        self._silent_until = 0.0

    def read(self, path: str, /) -> bytes | None:
        return self._ask(self._database.read, path)

    def multiread(self, path: str, /) -> dict[str, bytes]:
        return self._ask(self._database.multiread, path)

    def write(self, path: str, value: str | bytes, /) -> None:
        self._ask(self._database.write, path, value)

    def rm(self, path: str, /) -> None:
        self._ask(self._database.rm, path)

    def close(self) -> None:
        """End it, unless a thread has a command under way: then it ends with that."""
        if self._lock.acquire(blocking=False):
            self._database.close()
            self._lock.release()

    def _ask(self, command: Callable[..., R], *words: str | bytes) -> R:
        with self._lock:
            if self._now() < self._silent_until:
                raise Error("the QubesDB daemon has just not answered")
            try:
                return command(*words)
            except SilentError:
                self._silent_until = self._now() + SILENT_SECONDS
                raise


class Connections:
    """One for each run of a qube. `run` is the folder of the sockets (core-qubesdb: qubesdb.NAME.sock)."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._open: dict[QubeName, tuple[str, Connection]] = {}

    def of(self, running: Iterable[Any]) -> dict[QubeName, Store]:
        """The databases of all running qubes that have one yet. Opens nothing, so it never waits.

        A qube runs some time before its daemon is there, which domain-qdb-create tells.
        """
        before, self._open = self._open, {}
        for vm in running:
            name, session = QubeName(str(vm.name)), session_of(vm)
            socket = self._run / f"qubesdb.{name}.sock"
            if not socket.exists():
                continue
            known = before.get(name)
            if known is not None and known[0] == session:
                self._open[name] = before.pop(name)
            else:
                self._open[name] = (session, Connection(socket))
        for _, connection in before.values():
            connection.close()
        return {name: connection for name, (_, connection) in self._open.items()}


class Workers:
    """Threads that use databases, and one that computes, while the loop goes on.

    Python runs one thread at a time, and one that computes lets the loop in only every 5 ms: so there is one of them
    alone, and while any of them works the turns are shorter.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_WORKERS, "port-forward")
        self._thinker = ThreadPoolExecutor(1, "port-forward-plan")
        self._working = 0
        self._turn = sys.getswitchinterval()

    async def run(self, function: Callable[..., R], *words: Any) -> R:
        """Call a function that may wait for a database in a thread."""
        with self._short_turns():
            return await asyncio.get_running_loop().run_in_executor(self._pool, function, *words)

    async def compute(self, function: Callable[..., R], *words: Any) -> R:
        """Call a function that waits for nothing in the thread that computes."""
        with self._short_turns():
            return await asyncio.get_running_loop().run_in_executor(self._thinker, function, *words)

    async def each(self, function: Callable[[QubeName, T], R], items: Mapping[QubeName, T]) -> dict[QubeName, R]:
        """Call the function for all qubes at the same time."""
        results = await asyncio.gather(*(self.run(function, name, item) for name, item in items.items()))
        return dict(zip(items, results, strict=True))

    def close(self) -> None:
        """Start nothing more; what is under way ends in time."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._thinker.shutdown(wait=False, cancel_futures=True)

    @contextlib.contextmanager
    def _short_turns(self) -> Iterator[None]:
        """For the loop's thread alone, so that counting needs no lock."""
        if not self._working:
            self._turn = sys.getswitchinterval()
            sys.setswitchinterval(min(_TURN, self._turn))
        self._working += 1
        try:
            yield
        finally:
            self._working -= 1
            if not self._working:
                sys.setswitchinterval(self._turn)
