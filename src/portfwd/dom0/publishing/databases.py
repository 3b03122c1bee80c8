# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The QubesDB of running qubes, used by threads beside qubesd's loop.

A qube that sends half a message has its daemon in dom0 wait for the rest, and whoever asks that daemon waits as well.
So commands are made outside of the loop and end in time, and one silent daemon keeps no other qube waiting.
"""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Container, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar

from portfwd.base.qubesdb_client import DisconnectedError, Error, QubesDB, SilentError, Store
from portfwd.dom0.planning.snapshot import session_of
from portfwd.dom0.publishing.turns import Turns
from portfwd.wire.values import QubeName

TIMEOUT = 2.0
"""Seconds that a daemon may take for one command; a healthy one takes less than a millisecond."""
SILENT_SECONDS = 3.0
"""Seconds for which a daemon that took longer is not asked again."""
_WORKERS = 16

T = TypeVar("T")
R = TypeVar("R")


class DaemonIdentity(NamedTuple):
    """Identifies one daemon: the socket file that it has bound, and the run of the qube in which it was found.

    A daemon outlives its domain by up to 20 s; that of the next run puts another file in the same place.
    """

    session: str
    device: int
    inode: int
    changed: int

    @classmethod
    def of(cls, socket_path: Path, session: str) -> Self | None:
        """The identity of the daemon whose socket is there now; None when there is none."""
        try:
            found = socket_path.stat()
        except OSError:
            return None
        return cls(session, found.st_dev, found.st_ino, found.st_ctime_ns)

    def outlives(self, session: str) -> bool:
        """Whether this daemon is of another domain than the qube has in that session (session_of)."""
        return self.session.partition("@")[0] != session.partition("@")[0]


class DatabaseConnection:
    """A connection to one daemon, opened by the first command, never to another one. Safe for several threads.

    `leaving` takes a socket whose answer is still due when the connection ends.
    """

    def __init__(
        self,
        socket_path: Path,
        identity: DaemonIdentity,
        leaving: Callable[[socket.socket], None],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.identity = identity
        self.lost = False
        self._path = socket_path
        self._database = QubesDB(str(socket_path), TIMEOUT, lazy=True)
        self._leaving = leaving
        self._lock = threading.Lock()
        self._now = now
        self._silent_until = 0.0
        self._met = self._ended = False

    def read(self, path: str, /) -> bytes | None:
        return self._ask(self._database.read, path)

    def multiread(self, path: str, /) -> dict[str, bytes]:
        return self._ask(self._database.multiread, path)

    def write(self, path: str, value: str | bytes, /) -> None:
        self._ask(self._database.write, path, value)

    def rm(self, path: str, /) -> None:
        self._ask(self._database.rm, path)

    def close(self) -> None:
        """Close the connection, after a command that another thread has under way."""
        self._ended = True
        if self._lock.acquire(blocking=False):
            try:
                self._leave()
            finally:
                self._lock.release()

    def _leave(self) -> None:
        left = self._database.leave()
        if left is not None:
            self._leaving(left)

    def _ask(self, command: Callable[..., R], *words: str | bytes) -> R:
        with self._lock:
            if self.lost or self._ended:
                raise DisconnectedError("QubesDB disconnected")
            if self._now() < self._silent_until:
                raise Error("the QubesDB daemon has just not answered")
            try:
                if not self._met:
                    self._meet()
                return command(*words)
            except DisconnectedError:
                self.lost = True
                raise
            except SilentError:
                self._silent_until = self._now() + SILENT_SECONDS
                raise
            finally:
                if self._ended:
                    self._leave()

    def _meet(self) -> None:
        """Connect; the daemon's identity is certain, since the same file was there before and after."""
        for connect in (True, False):
            if DaemonIdentity.of(self._path, self.identity.session) != self.identity:
                raise DisconnectedError("another QubesDB daemon has taken the place")
            if connect:
                self._database.connect()
        self._met = True


class DatabaseConnections:
    """The one registry of the running qubes' daemons. `run` is the folder of their sockets (qubesdb.NAME.sock).

    Callers select from it; only connections of ended runs are closed, and no call closes one that another uses.
    """

    def __init__(self, run: Path) -> None:
        self._run = run
        self._open: dict[QubeName, DatabaseConnection] = {}
        self._met: dict[QubeName, DaemonIdentity] = {}
        self._left: list[socket.socket] = []

    def of(self, running: Iterable[Any]) -> dict[QubeName, Store]:
        """The databases of these running qubes, if they have one yet. Opens nothing, so it never waits.

        A qube runs some time before its daemon is there, which domain-qdb-create tells. The one of its last run may
        be there until then; what the qube said in that run is not its word now.
        """
        found: dict[QubeName, Store] = {}
        for vm in running:
            name = QubeName(str(vm.name))
            path = self._socket(name)
            identity = DaemonIdentity.of(path, session_of(vm))
            if identity is None:
                continue
            met = self._met.setdefault(name, identity)
            if met[1:] == identity[1:] and met.outlives(identity.session):
                continue
            self._met[name] = identity
            known = self._open.get(name)
            if known is None or known.lost or known.identity != identity:
                self.drop(name)
                known = self._open[name] = DatabaseConnection(path, identity, self._left.append)
            found[name] = known
        return found

    def _socket(self, name: QubeName) -> Path:
        return self._run / f"qubesdb.{name}.sock"

    def keep(self, running: Container[QubeName]) -> None:
        """Close the connections of qubes that do not run any more."""
        for name in [name for name in self._open if name not in running]:
            self.drop(name)
        for name in [name for name in self._met if name not in running and not self._socket(name).exists()]:
            del self._met[name]
        for left in [left for left in self._left if _is_over(left)]:
            self._left.remove(left)

    def close(self) -> None:
        """Close all: qubesd ends."""
        self.keep(())
        while self._left:
            self._left.pop().close()

    def drop(self, name: str) -> None:
        """Close the connection of one qube: its next daemon is another one."""
        known = self._open.pop(QubeName(name), None)
        if known is not None:
            known.close()


def _is_over(left: socket.socket) -> bool:
    """Read a late answer; True, and closed, once the daemon has closed. It would die if it found nobody to answer."""
    with contextlib.suppress(BlockingIOError):
        try:
            while left.recv(65536):
                pass
        except ConnectionError:
            pass
        left.close()
        return True
    return False


class Workers:
    """Threads that use databases, and one that computes, while the loop goes on.

    A single thread computes, since Python runs one thread at a time. A caller that has more to do than one
    call wraps the calls in `turns`.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(_WORKERS, "port-forward")
        self._thinker = ThreadPoolExecutor(1, "port-forward-plan")
        self.turns = Turns()

    async def run(self, function: Callable[..., R], *words: Any) -> R:
        """Call, in a thread, a function that may wait for a database."""
        with self.turns:
            return await asyncio.get_running_loop().run_in_executor(self._pool, function, *words)

    async def compute(self, function: Callable[..., R], *words: Any) -> R:
        """Call, in the computing thread, a function that waits for nothing."""
        with self.turns:
            return await asyncio.get_running_loop().run_in_executor(self._thinker, function, *words)

    async def each(self, function: Callable[[QubeName, T], R], items: Mapping[QubeName, T]) -> dict[QubeName, R]:
        """Call the function for all qubes at the same time."""
        results = await asyncio.gather(*(self.run(function, name, item) for name, item in items.items()))
        return dict(zip(items, results, strict=True))

    def close(self) -> None:
        """Start no further call; those under way end in bounded time."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._thinker.shutdown(wait=False, cancel_futures=True)
