# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The pair of daemons: link, restarts, strangers, limits; facts of the real pair that the product lives with."""

import select
import signal
import socket
import struct
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lab.qubesdb.daemon import CLIENTS_MAX
from lab.qubesdb.messages import LINK, Decoder
from portfwd.base.qubesdb import ANSWERS, HEADER_SIZE, Message, MessageType
from portfwd.base.qubesdb_client import DisconnectedError, Error, QubesDB
from tests.qubesdb.conftest import DEADLINE, DaemonPair, Process, eventually

pytestmark = pytest.mark.slow

STRANGER = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def dial(path: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.connect(path)
    connection.settimeout(DEADLINE)
    return connection


def exchange(connection: socket.socket, sent: bytes, count: int = 1) -> list[Message]:
    """Send bytes, wait for so many messages."""
    connection.sendall(sent)
    decoder = Decoder(ANSWERS | LINK)
    found: list[Message] = []
    while len(found) < count:
        if (message := decoder.next_message()) is not None:
            found.append(message)
            continue
        received = connection.recv(4096)
        assert received, "the daemon closed the connection"
        decoder.feed(received)
    return found


def header(kind: int, path: bytes, size: int) -> bytes:
    return struct.pack("=B64s3xI", kind, path, size)


def closed(connection: socket.socket) -> bool:
    try:
        while connection.recv(4096):
            pass
    except ConnectionResetError:
        pass
    return True


@pytest.fixture
def link_peer(daemons: DaemonPair) -> Iterator[socket.socket]:
    """In the place of the qube's daemon: a link to dom0's, the database already asked for."""
    daemons.stop_qube_end()
    connection = dial(daemons.link)
    answer = exchange(connection, Message(MessageType.MULTIREAD).encode())
    assert answer == [Message(MessageType.R_MULTIREAD)]
    yield connection
    connection.close()


# --- start, restart, end ---


def test_the_qube_has_what_dom0_wrote_before_it_started(daemons: DaemonPair) -> None:
    daemons.stop_qube_end()
    dom0 = daemons.dom0()
    dom0.write("/name", "work")
    dom0.write("/big", b"x" * 3071)
    daemons.start_qube_end()
    assert daemons.qube().multiread("/") == {"/big": b"x" * 3071, "/name": b"work"}


def test_a_restarted_dom0_end_is_found_again_and_the_qube_keeps_its_own(daemons: DaemonPair) -> None:
    qube = daemons.qube()
    qube.write("/old", "1")
    daemons.dom0_end.stop()
    daemons.start_dom0_end()
    daemons.dom0().write("/new", "2")
    eventually(lambda: qube.list("/") == ["/new", "/old"])
    assert daemons.dom0().list("/") == ["/new"]
    qube.write("/later", "3")
    eventually(lambda: daemons.dom0().read("/later") == b"3")


def test_the_dump_at_a_reconnection_fires_watches(daemons: DaemonPair) -> None:
    watcher = daemons.qube()
    watcher.watch("/new")
    daemons.dom0_end.stop()
    daemons.start_dom0_end()
    daemons.dom0().write("/new", "2")
    assert watcher.read_watch() == "/new"


def test_the_files_are_there_while_it_runs_and_gone_after(daemons: DaemonPair) -> None:
    folder = daemons.directory
    names = {"qubesdb.work.sock", "qubesdb.work.ro.sock", "qubesdb.work.pid"}
    assert names <= {path.name for path in folder.iterdir()}
    assert int((folder / "qubesdb.work.pid").read_text()) == daemons.dom0_end.pid
    assert (folder / "qubesdb.work.sock").stat().st_mode & 0o777 == 0o666
    daemons.dom0_end.stop()
    assert daemons.dom0_end.exit_status() == 0
    assert not names & {path.name for path in folder.iterdir()}


def test_the_end_of_a_daemon_leaves_its_successors_files_alone(daemons: DaemonPair) -> None:
    first = daemons.dom0_end
    daemons.start_dom0_end()
    first.stop()
    daemons.dom0().write("/a", "1")
    assert (daemons.directory / "qubesdb.work.pid").exists()


def test_dom0s_own_database_needs_no_link(tmp_path: Path) -> None:
    process = Process(tmp_path, "local", "--local", "--socket", str(tmp_path / "qubesdb.dom0.sock"))
    process.wait_ready()
    with closing(QubesDB(str(tmp_path / "qubesdb.sock"))) as database:
        database.write("/name", "dom0")
    with closing(QubesDB(str(tmp_path / "qubesdb.ro.sock"))) as reader:
        assert reader.read("/name") == b"dom0"
    process.stop()
    assert process.exit_status() == 0
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("qubesdb")] == []


# --- the link ---


def test_both_ends_removing_one_key_at_the_same_time_kills_both_daemons(daemons: DaemonPair) -> None:
    qube = daemons.qube()
    qube.write("/a", "1")
    with dial(daemons.dom0_socket) as dom0:
        exchange(dom0, Message(MessageType.READ, "/b").encode())
        eventually(lambda: daemons.dom0().read("/a"))
        # Held, dom0's end finds two removals waiting when it goes on: its own client's first, then the qube's.
        daemons.dom0_end.send(signal.SIGSTOP)
        dom0.sendall(Message(MessageType.RM, "/a").encode())
        qube.rm("/a")
        daemons.dom0_end.send(signal.SIGCONT)
        assert daemons.dom0_end.exit_status() == 1
        assert daemons.qube_end.exit_status() == 1


@pytest.mark.parametrize(
    "message",
    [
        Message(MessageType.RM, "/missing"),
        Message(MessageType.READ, "/a"),
        Message(MessageType.LIST, "/a"),
        Message(MessageType.WATCH, "/a"),
        Message(MessageType.R_MULTIREAD, "/a", b"x"),
        Message(MessageType.MULTIREAD),
        Message(MessageType.ERROR, "/a", b"x"),
        Message(MessageType.ERROR_NOENT, "/a"),
        Message(MessageType.WRITE, "a", b"x"),
        Message(MessageType.WRITE, "/a/", b"x"),
    ],
    ids=lambda message: f"{message.type.name}-{message.path}",
)
def test_an_illegal_message_on_the_link_ends_the_daemon(
    daemons: DaemonPair, link_peer: socket.socket, message: Message
) -> None:
    link_peer.sendall(message.encode())
    assert daemons.dom0_end.exit_status() == 1
    assert "FATAL" in daemons.dom0_end.log.read_text()
    assert closed(link_peer)


def test_a_wrong_header_on_the_link_ends_the_daemon_at_once(daemons: DaemonPair, link_peer: socket.socket) -> None:
    link_peer.sendall(header(1, b"/a", 4_000_000_000))
    assert daemons.dom0_end.exit_status() == 1


def test_a_link_that_closes_before_it_asked_for_the_database_ends_the_daemon(daemons: DaemonPair) -> None:
    daemons.stop_qube_end()
    dial(daemons.link).close()
    assert daemons.dom0_end.exit_status() == 0


def test_a_value_with_nul_on_the_link_is_an_error_but_not_the_end(
    daemons: DaemonPair, link_peer: socket.socket
) -> None:
    sent = Message(MessageType.WRITE, "/a", b"x\0").encode() + Message(MessageType.WRITE, "/b", b"y").encode()
    assert [answer.type for answer in exchange(link_peer, sent, 2)] == [MessageType.ERROR, MessageType.OK]
    assert daemons.dom0().list("/") == ["/b"]


@STRANGER
@given(untrusted=st.binary(max_size=200))
def test_whatever_a_qube_sends_on_the_link_dom0s_end_goes_on_or_ends_in_good_order(
    tmp_path_factory: pytest.TempPathFactory, untrusted: bytes
) -> None:
    folder = tmp_path_factory.mktemp("link")
    link = str(folder / "link")
    process = Process(folder, "dom0", "--dom0", "work", "--socket", str(folder / "qubesdb.work.sock"), "--link", link)
    process.wait_ready()
    with dial(link) as connection:
        connection.sendall(Message(MessageType.MULTIREAD).encode() + untrusted)
        connection.shutdown(socket.SHUT_WR)
        assert closed(connection)
    process.stop()
    assert process.exit_status() in (0, 1)
    assert "Traceback" not in process.log.read_text()


def test_neither_end_waits_for_the_other_while_both_write_much(daemons: DaemonPair) -> None:
    dom0, qube = daemons.dom0(), daemons.qube()
    for number in range(400):
        dom0.write(f"/d/{number}", b"d" * 3000)
        qube.write(f"/q/{number}", b"q" * 3000)
    eventually(lambda: len(dom0.list("/")) == len(qube.list("/")) == 800)


def test_a_held_qube_does_not_hold_dom0_and_gets_everything_later(daemons: DaemonPair) -> None:
    dom0, qube = daemons.dom0(), daemons.qube()
    daemons.qube_end.send(signal.SIGSTOP)
    for number in range(400):
        dom0.write(f"/d/{number}", b"d" * 3000)
    daemons.qube_end.send(signal.SIGCONT)
    eventually(lambda: len(qube.list("/")) == 400)


# --- local clients ---


def test_a_path_watched_twice_and_left_once_is_told_once(daemons: DaemonPair) -> None:
    watch, unwatch = (Message(kind, "/a").encode() for kind in (MessageType.WATCH, MessageType.UNWATCH))
    changed = Message(MessageType.R_WATCH, "/a")
    with dial(daemons.qube_socket) as watcher:
        assert exchange(watcher, watch + watch, 2) == [Message(MessageType.OK, "/a")] * 2
        daemons.qube().write("/a", "1")
        assert exchange(watcher, unwatch, 3) == [changed, changed, Message(MessageType.OK, "/a")]
        daemons.qube().write("/a", "2")
        assert exchange(watcher, unwatch + unwatch, 3) == [
            changed,
            Message(MessageType.OK, "/a"),
            Message(MessageType.ERROR_NOENT, "/a"),
        ]


@STRANGER
@given(untrusted=st.binary(max_size=300))
def test_a_strangers_bytes_harm_no_other_client(daemons: DaemonPair, untrusted: bytes) -> None:
    for path in (daemons.qube_socket, daemons.qube_socket.replace(".sock", ".ro.sock")):
        with dial(path) as stranger:
            stranger.sendall(untrusted)
            stranger.shutdown(socket.SHUT_WR)
            assert closed(stranger)
    with closing(QubesDB(daemons.qube_socket)) as database:
        database.write("/alive", "yes")
        assert database.read("/alive") == b"yes"


@pytest.mark.parametrize(
    "refused",
    [
        header(1, b"/a", 3072) + b"x" * 3072,
        header(1, b"/a", 70000) + b"x" * 70000,
        header(1, b"/a b", 1) + b"x",
        header(4, b"/a", 1) + b"x",
        header(2, b"/a", 1) + b"x",
        header(3, b"/a", 1) + b"x",
        header(7, b"/a", 0),
        header(200, b"/a", 0),
        header(1, b"/a", 2) + b"x\0",
    ],
)
def test_a_refused_command_is_an_error_and_the_connection_stays(daemons: DaemonPair, refused: bytes) -> None:
    with dial(daemons.qube_socket) as connection:
        answers = exchange(connection, refused + Message(MessageType.READ, "/a").encode(), 2)
    assert [answer.type for answer in answers] == [MessageType.ERROR, MessageType.ERROR_NOENT]


@pytest.mark.parametrize(("path", "answered"), [(b"a", True), (b"/a/", True), (b"", True), (b"/a", False)])
def test_a_failed_write_and_a_read_with_data_close_the_connection(
    daemons: DaemonPair, path: bytes, answered: bool
) -> None:
    with dial(daemons.qube_socket) as connection:
        if answered:
            assert exchange(connection, header(1, path, 1) + b"x")[0].type is MessageType.ERROR
        else:
            connection.sendall(header(0, path, 1) + b"x")
        assert closed(connection)
    assert daemons.qube().list("/") == []


def test_an_empty_prefix_gives_the_whole_database_backwards(daemons: DaemonPair) -> None:
    daemons.qube().write("/a", "1")
    daemons.qube().write("/b", "2")
    with dial(daemons.qube_socket) as connection:
        answers = exchange(connection, Message(MessageType.MULTIREAD).encode(), 3)
    assert [answer.path for answer in answers] == ["/b", "/a", ""]


def test_a_client_that_does_not_read_holds_only_itself(daemons: DaemonPair) -> None:
    database = daemons.qube()
    for number in range(100):
        database.write(f"/k/{number:02}", b"x" * 3000)
    with dial(daemons.qube_socket) as lazy:
        commands = Message(MessageType.MULTIREAD, "/").encode() * 20
        lazy.sendall(commands)
        database.write("/other", "1")
        assert database.read("/other") == b"1"
        lazy.settimeout(DEADLINE)
        wanted = 20 * (100 * (HEADER_SIZE + 3000) + HEADER_SIZE)
        got = 0
        while got < wanted:
            got += len(lazy.recv(65536))


def test_a_client_above_the_limit_waits_until_another_leaves(daemons: DaemonPair) -> None:
    crowd = [dial(daemons.qube_socket) for _ in range(CLIENTS_MAX)]
    try:
        for connection in crowd:
            assert exchange(connection, Message(MessageType.READ, "/a").encode())[0].type is MessageType.ERROR_NOENT
        with dial(daemons.qube_socket) as waiting:
            waiting.sendall(Message(MessageType.READ, "/a").encode())
            exchange(crowd[0], Message(MessageType.READ, "/a").encode())
            assert not select.select([waiting], [], [], 0)[0]
            crowd.pop().close()
            assert exchange(waiting, b"")[0].type is MessageType.ERROR_NOENT
    finally:
        for connection in crowd:
            connection.close()


def test_a_client_that_vanishes_with_its_watches_is_forgotten(daemons: DaemonPair) -> None:
    gone, database = QubesDB(daemons.qube_socket), daemons.qube()
    gone.watch("/")
    gone.close()
    for number in range(50):
        database.write("/a", str(number))
    assert database.read("/a") == b"49"


def test_a_second_daemon_on_the_link_waits_for_the_first_to_go(daemons: DaemonPair) -> None:
    first = daemons.qube_end
    daemons.dom0().write("/a", "1")
    second_socket = str(daemons.directory / "second.sock")
    second = Process(daemons.directory, "second", "--vm", "--socket", second_socket, "--link", daemons.link)
    first.stop()
    second.wait_ready()
    with closing(QubesDB(second_socket)) as database:
        assert database.read("/a") == b"1"
    second.stop()


def test_a_daemon_that_is_gone_is_an_error_for_its_clients(daemons: DaemonPair) -> None:
    database = daemons.qube()
    daemons.qube_end.stop()
    with pytest.raises(DisconnectedError):
        database.read("/a")
    with pytest.raises(Error):
        QubesDB(daemons.qube_socket)


def test_a_qubes_end_that_still_waits_for_dom0_can_be_ended(tmp_path: Path) -> None:
    arguments = ("--vm", "--socket", str(tmp_path / "qubesdb.sock"), "--link", str(tmp_path / "none"))
    process = Process(tmp_path, "vm", *arguments)
    eventually((tmp_path / "qubesdb.ro.sock").exists)
    assert process.status() is None
    process.stop()
    assert process.exit_status() == 0
    assert not (tmp_path / "qubesdb.sock").exists()
