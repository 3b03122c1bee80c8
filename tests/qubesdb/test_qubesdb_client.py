# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Our client against daemons that hang, flood or talk nonsense: it ends in time, bounded, with its own errors."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from portfwd.base import qubesdb_client
from portfwd.base.qubesdb import HEADER_SIZE, Message, MessageType
from portfwd.base.qubesdb_client import DisconnectedError, Error, QubesDB, SilentError, socket_paths

SHORT = 0.2
Behaviour = Callable[[socket.socket], None]


class HostileDaemon:
    """Listens and treats its connections as told, each in turn."""

    def __init__(self, path: Path, behaviour: Behaviour) -> None:
        self.path = str(path)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.path)
        self._listener.listen(1)
        self._behaviour = behaviour
        self.connection: socket.socket | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self.connection, _ = self._listener.accept()
                with self.connection:
                    self._behaviour(self.connection)

    def stop(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)
        assert not self._thread.is_alive()


Hostile = Callable[[Behaviour], HostileDaemon]


@pytest.fixture
def hostile(tmp_path: Path) -> Iterator[Hostile]:
    made: list[HostileDaemon] = []

    def make(behaviour: Behaviour) -> HostileDaemon:
        made.append(HostileDaemon(tmp_path / f"{len(made)}.sock", behaviour))
        return made[-1]

    yield make
    for daemon in made:
        daemon.stop()


def until_the_client_leaves(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while connection.recv(65536):
            pass


def answering(answers: bytes) -> Behaviour:
    def behaviour(connection: socket.socket) -> None:
        connection.recv(65536)
        with contextlib.suppress(OSError):
            connection.sendall(answers)
        until_the_client_leaves(connection)

    return behaviour


def without_end(message: Message) -> Behaviour:
    def behaviour(connection: socket.socket) -> None:
        connection.recv(65536)
        block = message.encode() * 100
        with contextlib.suppress(OSError):
            while True:
                connection.sendall(block)

    return behaviour


def distinct_events(connection: socket.socket) -> None:
    connection.recv(65536)
    with contextlib.suppress(OSError):
        for number in range(1_000_000):
            connection.sendall(Message(MessageType.R_WATCH, f"/{number}").encode())


def test_a_daemon_that_never_answers_is_an_error_after_the_timeout(
    hostile: Hostile,
) -> None:
    database = QubesDB(hostile(until_the_client_leaves).path, timeout=SHORT)
    for command in (database.read, database.list, database.multiread, database.rm, database.watch):
        with pytest.raises(Error, match="did not answer within"):
            command("/a")
    with pytest.raises(Error, match="did not answer within"):
        database.write("/a", "1")
    database.close()


def test_a_late_answer_finds_the_client_and_is_not_taken_for_that_of_a_later_command(hostile: Hostile) -> None:
    """The daemon in dom0 is killed when it answers someone who has left."""
    awake = threading.Event()
    answers = {b"/late": b"1", b"/later": b"2"}

    def late(connection: socket.socket) -> None:
        while command := connection.recv(HEADER_SIZE):
            awake.wait(10)
            path = command[1:65].rstrip(b"\0")
            if path == b"/many":
                for number in range(3):
                    connection.sendall(Message(MessageType.R_MULTIREAD, f"/many/{number}", b"x").encode())
                connection.sendall(Message(MessageType.R_MULTIREAD, "", b"").encode())
            else:
                connection.sendall(Message(MessageType.R_READ, path.decode(), answers[path]).encode())

    daemon = hostile(late)
    database = QubesDB(daemon.path, timeout=SHORT)
    for command in (database.read, database.multiread):
        awake.clear()
        path = "/late" if command == database.read else "/many"
        for _ in range(3):
            with pytest.raises(SilentError):
                command(path)
        connection = daemon.connection
        awake.set()
        assert database.read("/later") == b"2"
        assert daemon.connection is connection
    database.close()


def test_a_daemon_that_does_not_even_accept_is_an_error_after_the_timeout(tmp_path: Path) -> None:
    path = str(tmp_path / "full.sock")
    with contextlib.ExitStack() as open_ones:
        listener = open_ones.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        listener.bind(path)
        listener.listen(0)
        filler = open_ones.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
        filler.connect(path)
        with pytest.raises(Error, match="cannot connect"):
            QubesDB(path, timeout=SHORT)


def test_a_daemon_that_answers_byte_by_byte_does_not_stretch_the_timeout(
    hostile: Hostile,
) -> None:
    def trickle(connection: socket.socket) -> None:
        stop = threading.Event()
        with contextlib.suppress(OSError):
            for byte in Message(MessageType.R_READ, "/a", b"x" * 3000).encode():
                connection.sendall(bytes([byte]))
                stop.wait(SHORT / 20)

    database = QubesDB(hostile(trickle).path, timeout=SHORT)
    with pytest.raises(Error, match="did not answer within"):
        database.read("/a")
    database.close()


@pytest.mark.parametrize(
    "message", [Message(MessageType.R_MULTIREAD, "/a", b"x" * 3000), Message(MessageType.R_LIST, "/a")]
)
def test_an_answer_without_end_is_an_error(hostile: Hostile, message: Message) -> None:
    database = QubesDB(hostile(without_end(message)).path)
    with pytest.raises(Error, match="longer than"):
        database.multiread("/a") if message.type is MessageType.R_MULTIREAD else database.list("/a")
    database.close()


def test_a_flood_of_events_on_one_path_is_kept_as_one(hostile: Hostile) -> None:
    flood = Message(MessageType.R_WATCH, "/a").encode() * 10_000 + Message(MessageType.R_WATCH, "/b").encode()
    database = QubesDB(hostile(answering(flood + Message(MessageType.ERROR_NOENT, "/x").encode())).path)
    assert database.read("/x") is None
    assert [database.read_watch(), database.read_watch()] == ["/a", "/b"]
    database.close()


def test_a_flood_of_different_events_ends_the_connection(hostile: Hostile) -> None:
    database = QubesDB(hostile(distinct_events).path)
    with pytest.raises(DisconnectedError, match="events"):
        database.read("/a")
    database.close()


def test_an_event_flood_cannot_hold_a_command_for_longer_than_the_timeout(
    hostile: Hostile,
) -> None:
    database = QubesDB(hostile(without_end(Message(MessageType.R_WATCH, "/a"))).path, timeout=SHORT)
    with pytest.raises(Error, match="did not answer within"):
        database.read("/a")
    database.close()


@pytest.mark.parametrize(
    "answer",
    [
        Message(MessageType.OK, "/a"),
        Message(MessageType.R_LIST, "/a"),
        Message(MessageType.R_WATCH, "/a", b"x"),
        Message(MessageType.ERROR, "/a", b"x"),
        Message(MessageType.READ, "/a"),
    ],
    ids=lambda message: message.type.name,
)
def test_an_answer_that_does_not_fit_the_command_is_an_error(hostile: Hostile, answer: Message) -> None:
    database = QubesDB(hostile(answering(answer.encode())).path)
    with pytest.raises(Error, match="breaks the protocol"):
        database.read("/a")
    database.close()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(untrusted=st.binary(max_size=200), command=st.sampled_from(["read", "list", "multiread", "rm", "watch"]))
def test_whatever_a_daemon_answers_only_our_errors_come_out(
    tmp_path_factory: pytest.TempPathFactory, untrusted: bytes, command: str
) -> None:
    def behaviour(connection: socket.socket) -> None:
        connection.recv(HEADER_SIZE)
        with contextlib.suppress(OSError):
            connection.sendall(untrusted)

    daemon = HostileDaemon(tmp_path_factory.mktemp("h") / "s", behaviour)
    database = QubesDB(daemon.path)
    with contextlib.suppress(Error):
        getattr(database, command)("/a")
        database.read_watch()
    database.close()
    daemon.stop()


def test_the_sockets_of_a_qube_and_of_dom0() -> None:
    assert socket_paths(None) == ("/var/run/qubes/qubesdb.sock", "/var/run/qubes/qubesdb.ro.sock")
    assert socket_paths("work") == ("/var/run/qubes/qubesdb.work.sock", "/var/run/qubes/qubesdb.work.ro.sock")
    assert socket_paths("/x/y.sock") == ("/x/y.sock",)


@pytest.mark.parametrize("name", ["none", "/none/such.sock", "n" * 300, "a\0b"])
def test_a_database_that_is_not_there_is_an_error(name: str) -> None:
    with pytest.raises(Error, match="cannot connect"):
        QubesDB(name)


def test_only_the_read_only_socket_is_used_where_the_other_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hostile: Hostile
) -> None:
    daemon = hostile(answering(Message(MessageType.R_READ, "/a", b"1").encode()))
    Path(daemon.path).rename(tmp_path / "qubesdb.work.ro.sock")
    monkeypatch.setattr(qubesdb_client, "SOCKET_DIRECTORY", str(tmp_path))
    database = QubesDB("work")
    assert database.read("/a") == b"1"
    database.close()
