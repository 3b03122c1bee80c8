# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""A QubesDB in memory, for tests of code that uses one. It passes the same suite as the real daemons with our client.

    fake = FakeQubesDB()
    dom0, qube = fake.connect(), fake.connect()

All connections see one database at once: the time that a change needs between dom0 and a qube is not imitated, and so
not what happens when both ends change the same key at the same time.
"""

import os
import weakref
from collections import deque
from collections.abc import Callable

from lab.qubesdb.store import Store, Watches
from portfwd.base import qubesdb
from portfwd.base.qubesdb_client import DisconnectedError, Error
from portfwd.wire.errors import RefusedError


class FakeQubesDB:
    """A database to connect to. stop() and start() are what a restart of the daemon of one side looks like."""

    def __init__(self) -> None:
        self.store = Store()
        self.watches: Watches[FakeConnection] = Watches()
        self.running = True
        self.starts = 0

    def connect(self, *, can_write: bool = True) -> "FakeConnection":
        """A new connection, with the methods of QubesDB; raises Error while stopped."""
        if not self.running:
            raise Error("cannot connect to the fake QubesDB: it is stopped")
        return FakeConnection(self, can_write=can_write)

    def stop(self) -> None:
        """End all connections; watches are lost, values stay."""
        self.running = False
        self.starts += 1
        for connection in self.watches.owners():
            connection.lose()

    def start(self) -> None:
        """Take connections again."""
        self.running = True

    def changed(self, path: str) -> None:
        """Tell those who watch."""
        for connection in self.watches.concerned(path):
            connection.tell(path)


class FakeConnection:
    """One connection, interface and limits of portfwd.base.qubesdb_client.QubesDB."""

    def __init__(self, fake: FakeQubesDB, *, can_write: bool) -> None:
        self._fake = fake
        self._can_write = can_write
        self._starts: int | None = fake.starts
        self._closed = False
        self._events: deque[str | None] = deque()
        self._pipe: tuple[int, int] | None = None
        self._closers: list[Callable[[], object]] = []

    def read(self, path: str) -> bytes | None:
        return self._ready(path).read(path)

    def multiread(self, path: str) -> dict[str, bytes]:
        return dict(self._ready(path).matching(path))

    def list(self, path: str) -> list[str]:
        return [key for key, _ in self._ready(path).matching(path)]

    def write(self, path: str, value: str | bytes) -> None:
        if not isinstance(value, (str, bytes)):
            raise TypeError(f"a value is str or bytes, not {type(value).__name__}")
        store = self._ready(path, changes=True)
        try:
            store.write(path, value.encode() if isinstance(value, str) else value)
        except RefusedError as refused:
            raise Error(str(refused)) from None
        self._fake.changed(path)

    def rm(self, path: str) -> None:
        if self._ready(path, changes=True).remove(path):
            self._fake.changed(path)

    def watch(self, path: str) -> None:
        self._ready(path)
        self._fake.watches.add(path, self)

    def read_watch(self) -> str:
        self.watch_fd()
        os.read(self._ends()[0], 1)
        path = self._events.popleft()
        if path is None:
            self._starts = None
            raise DisconnectedError("QubesDB disconnected")
        return path

    def watch_fd(self) -> int:
        if self._closed:
            raise Error("the connection to QubesDB is closed")
        return self._ends()[0]

    def _ends(self) -> tuple[int, int]:
        """The pipe that tells of events; made for those who ask, since tests make thousands of connections."""
        if self._pipe is None:
            self._pipe = os.pipe()
            # Who drops a connection without close() keeps no descriptors.
            self._closers = [weakref.finalize(self, os.close, end) for end in self._pipe]
            os.write(self._pipe[1], b"!" * len(self._events))
        return self._pipe

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._fake.watches.forget(self)
            for closer in self._closers:
                closer()

    def tell(self, path: str | None) -> None:
        """Queue an event; None stands for the end of the connection."""
        self._events.append(path)
        if self._pipe is not None:
            os.write(self._pipe[1], b"!")

    def lose(self) -> None:
        """The daemon went away."""
        self._fake.watches.forget(self)
        self.tell(None)

    def _ready(self, path: str, *, changes: bool = False) -> Store:
        if self._closed:
            raise Error("the connection to QubesDB is closed")
        if not isinstance(path, str):
            raise TypeError(f"a path is str, not {type(path).__name__}")
        if not self._fake.running or self._starts not in (None, self._fake.starts):
            self._starts = None
            while self._events:
                os.read(self._ends()[0], 1)
                self._events.popleft()
            raise DisconnectedError("QubesDB disconnected")
        self._starts = self._fake.starts
        try:
            qubesdb.check_path(path)
        except RefusedError as refused:
            raise Error(str(refused)) from None
        if not path.startswith("/") or (changes and not self._can_write):
            raise Error("the QubesDB daemon refused the command")
        return self._fake.store
