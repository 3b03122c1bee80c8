# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""dom0's connections to QubesDB daemons: kept, bounded in time, each with one daemon only."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from lab.qubesdb.messages import COMMANDS
from portfwd.base.qubesdb import HEADER_SIZE, Message, MessageType, decode_header
from portfwd.base.qubesdb_client import DisconnectedError, Error, SilentError
from portfwd.dom0.publishing.databases import DatabaseConnections

GIVE_UP = 5.0
"""Seconds after which a daemon that does not answer ends, so that a client without patience limit fails the test."""


class Daemon:
    """Answers every read with the path that was asked for; `silent`, it takes the question and waits."""

    def __init__(self, path: Path, *, silent: bool = False) -> None:
        self.connections = self.commands = 0
        self._over = threading.Event()
        self._silent = silent
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(5)
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                self._threads.append(threading.Thread(target=self._serve, args=(connection,)))
                self._threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while header := connection.recv(HEADER_SIZE, socket.MSG_WAITALL):
                command = decode_header(header, COMMANDS)
                connection.recv(command.size, socket.MSG_WAITALL) if command.size else b""
                self.commands += 1
                if self._silent:
                    self._over.wait(GIVE_UP)
                    return
                connection.sendall(Message(MessageType.R_READ, command.path, command.path.encode()).encode())

    def stop(self) -> None:
        self._over.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(GIVE_UP)


Start = Callable[..., Daemon]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with contextlib.ExitStack() as stack:

        def start(name: str, *, silent: bool = False) -> Daemon:
            daemon = Daemon(tmp_path / f"qubesdb.{name}.sock", silent=silent)
            stack.callback(daemon.stop)
            return daemon

        yield start


@pytest.fixture
def connections(tmp_path: Path, start: Start) -> Iterator[DatabaseConnections]:  # noqa: ARG001 - ends before the daemons
    made = DatabaseConnections(tmp_path)
    yield made
    made.close()


def vm(name: str, run: int = 1) -> SimpleNamespace:
    return SimpleNamespace(name=name, xid=run, start_time=float(run))


def test_a_connection_is_used_again_for_every_refresh(connections: DatabaseConnections, start: Start) -> None:
    daemon = start("work")
    for _ in range(5):
        database = connections.of([vm("work")])["work"]  # type: ignore[index]
        assert database.read("/name") == b"/name"
    assert daemon.connections == 1
    assert daemon.commands == 5


def test_a_silent_daemon_costs_seconds_once_and_then_nothing_for_a_while(
    connections: DatabaseConnections, start: Start
) -> None:
    daemon = start("work", silent=True)
    (database,) = connections.of([vm("work")]).values()
    with pytest.raises(SilentError):
        database.read("/name")
    with pytest.raises(Error, match="has just not answered"):
        database.read("/name")
    assert daemon.commands == 1


def test_a_silent_daemon_holds_up_no_other_qube(connections: DatabaseConnections, start: Start) -> None:
    start("work", silent=True)
    start("other")
    silent, other = connections.of([vm("work"), vm("other")]).values()

    def ask() -> None:
        with pytest.raises(SilentError):
            silent.read("/name")

    asking = threading.Thread(target=ask)
    asking.start()
    assert other.read("/name") == b"/name"
    assert asking.is_alive()
    asking.join()


def test_a_qube_whose_daemon_is_not_there_yet_has_no_database(connections: DatabaseConnections, start: Start) -> None:
    assert connections.of([vm("work")]) == {}
    start("work")
    assert list(connections.of([vm("work")])) == ["work"]


def test_the_next_run_of_a_qube_waits_for_a_daemon_of_its_own(
    connections: DatabaseConnections, start: Start, tmp_path: Path
) -> None:
    start("work")
    (first,) = connections.of([vm("work")]).values()
    first.read("/name")
    assert connections.of([vm("work", run=2)]) == {}, "the daemon of the first run is still there"
    (tmp_path / "qubesdb.work.sock").unlink()
    start("work")
    (second,) = connections.of([vm("work", run=2)]).values()
    assert second.read("/name") == b"/name"
    with pytest.raises(DisconnectedError):
        first.read("/name")


def test_another_daemon_at_the_same_place_is_never_taken_for_the_first(
    connections: DatabaseConnections, start: Start, tmp_path: Path
) -> None:
    start("work")
    (before,) = connections.of([vm("work")]).values()
    (tmp_path / "qubesdb.work.sock").unlink()
    successor = start("work")
    with pytest.raises(DisconnectedError):
        before.read("/name")
    assert successor.commands == 0
    (after,) = connections.of([vm("work")]).values()
    assert after.read("/name") == b"/name"


def test_only_what_no_longer_runs_is_closed(connections: DatabaseConnections, start: Start) -> None:
    daemons = [start("work"), start("other")]
    work, other = connections.of([vm("work"), vm("other")]).values()
    for database in (work, other):
        database.read("/name")
    connections.of([vm("work")])
    connections.keep({"work"})  # type: ignore[arg-type]
    assert work.read("/name") == b"/name"
    with pytest.raises(DisconnectedError):
        other.read("/name")
    assert [daemon.connections for daemon in daemons] == [1, 1]
