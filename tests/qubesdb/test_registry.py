# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""dom0's registry of the QubesDB daemons of running qubes, against real ones: which is talked to, and for how long."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from portfwd.base.qubesdb import HEADER_SIZE, Message, MessageType
from portfwd.base.qubesdb_client import DisconnectedError, Error, SilentError
from portfwd.dom0.publishing import databases
from portfwd.dom0.publishing.databases import DatabaseConnections
from portfwd.dom0.publishing.publish import Publisher
from portfwd.dom0.running import Running
from portfwd.wire import limits
from portfwd.wire.values import QubeName
from tests.agent.world import relay
from tests.fakes.app import FakeApp
from tests.qubesdb.conftest import DaemonPair, Process

pytestmark = pytest.mark.slow

WEB = "action=forward forwardtype=external proto=tcp srcports=443-443 dstports=8443-8443\n"


@pytest.fixture
def app(tmp_path: Path) -> FakeApp:
    return FakeApp(tmp_path / "qubes")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(databases, "TIMEOUT", 0.2)


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[DatabaseConnections]:
    made = DatabaseConnections(tmp_path)
    yield made
    made.close()


class Late:
    """A daemon that answers when it is told to, and ends when nobody is there to take the answer, as the real one."""

    def __init__(self, path: Path) -> None:
        self.awake = threading.Event()
        self.killed = False
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            while command := connection.recv(HEADER_SIZE):
                self.awake.wait(10)
                path = command[1:65].rstrip(b"\0").decode()
                try:
                    connection.sendall(Message(MessageType.R_READ, path, b"1").encode())
                except OSError:
                    self.killed = True
                    return

    def end(self) -> None:
        """Wait for its end."""
        self.awake.set()
        self._thread.join(10)
        self._listener.close()
        assert not self._thread.is_alive()


@pytest.fixture
def late(tmp_path: Path, registry: DatabaseConnections) -> Iterator[Late]:
    daemon = Late(tmp_path / "qubesdb.work.sock")
    yield daemon
    registry.close()
    daemon.end()


@pytest.mark.usefixtures("impatient")
def test_f16_a_daemon_that_answers_late_survives_a_look_at_the_net_qubes(
    registry: DatabaseConnections, app: FakeApp, late: Late
) -> None:
    with pytest.raises(SilentError):
        registry.of([app.work])["work"].read("/a")
    registry.of([app.net, app.firewall])
    late.awake.set()
    registry.of(app.domains)["work"]
    registry.keep([])
    late.end()
    assert not late.killed


@pytest.mark.usefixtures("impatient")
def test_f16_what_fell_silent_is_not_asked_again_after_a_look_at_others(
    registry: DatabaseConnections, app: FakeApp, late: Late
) -> None:
    with pytest.raises(SilentError):
        registry.of([app.work])["work"].read("/a")
    registry.of([app.net])
    with pytest.raises(Error, match="has just not answered"):
        registry.of([app.work])["work"].read("/a")
    late.awake.set()


@pytest.mark.usefixtures("impatient")
def test_f16_a_question_under_way_is_not_harmed_by_a_look_at_others(
    registry: DatabaseConnections, app: FakeApp, late: Late
) -> None:
    asked = registry.of([app.work])["work"]
    with pytest.raises(SilentError):
        asked.read("/a")
    registry.of([app.net])
    late.awake.set()
    asked._silent_until = 0.0  # type: ignore[attr-defined]
    assert asked.read("/b") == b"1"


@pytest.mark.usefixtures("impatient")
def test_f16_the_answer_to_a_qube_that_ended_meanwhile_is_taken_in(
    registry: DatabaseConnections, app: FakeApp, late: Late
) -> None:
    with pytest.raises(SilentError):
        registry.of([app.work])["work"].read("/a")
    registry.keep([])
    late.end()
    assert not late.killed
    registry.keep([])
    assert not registry._left


def outlived(daemons: DaemonPair, folder: Path) -> tuple[Process, Process]:
    """The daemon of the next run of work, which binds the same path while the dead run's daemon serves on."""
    before = daemons.dom0_end
    (folder / "next").mkdir()
    options = ("--socket", daemons.dom0_socket, "--link", str(folder / "next/link"))
    after = Process(folder / "next", "dom0", "--dom0", "work", *options)
    after.wait_ready()
    return before, after


def test_f27_entries_reach_the_daemon_of_the_new_run(
    daemons: DaemonPair, registry: DatabaseConnections, app: FakeApp, tmp_path: Path
) -> None:
    """A refresh comes between the qube's creation and the bind of its daemon: the old socket is still there."""
    publisher, work = Publisher(), QubeName("work")
    assert publisher.publish(work, registry.of([app.work])[work], (relay(443),)) == ""
    app.work.xid, app.work.start_time = 2, 2.0
    assert registry.of([app.work]) == {}
    _, after = outlived(daemons, tmp_path)
    assert publisher.publish(work, registry.of([app.work])[work], (relay(443),)) == ""
    database = daemons.dom0()
    assert database.read(limits.BASE) is not None
    assert len(database.multiread(limits.ENTRIES)) == 1
    after.stop()


def test_f27_what_a_qube_said_in_its_last_run_is_not_its_word_in_the_next(
    daemons: DaemonPair, registry: DatabaseConnections, app: FakeApp, tmp_path: Path
) -> None:
    """The daemon of the dead run serves on until that of the new one takes its place."""
    work = QubeName("work")
    registry.of([app.work])[work].write(f"{limits.STATUS}way-out", "tunnel")
    registry.keep([])
    app.work.xid, app.work.start_time = 2, 2.0
    assert registry.of([app.work]) == {}
    registry.keep([work])
    assert registry.of([app.work]) == {}
    _, after = outlived(daemons, tmp_path)
    assert registry.of([app.work])[work].read(f"{limits.STATUS}way-out") is None
    app.work.start_time = 3.0
    assert list(registry.of([app.work])) == [work], "the time of the start becomes known later than the domain"
    after.stop()


def test_f27_half_a_set_never_goes_to_a_daemon_that_took_the_place(
    daemons: DaemonPair, registry: DatabaseConnections, app: FakeApp
) -> None:
    """Mistake: the entries are compared with what the old daemon has, and the rest is written into the new one."""
    database = registry.of([app.work])[QubeName("work")]
    database.write("/a", "1")
    before = daemons.dom0_end
    before.stop()
    daemons.start_dom0_end()
    for _ in range(2):
        with pytest.raises(DisconnectedError):
            database.write("/b", "2")
    assert daemons.dom0().multiread("/") == {}


def test_f27_a_connection_that_was_not_made_yet_does_not_meet_the_next_daemon(
    daemons: DaemonPair, registry: DatabaseConnections, app: FakeApp, tmp_path: Path
) -> None:
    database = registry.of([app.work])[QubeName("work")]
    _, after = outlived(daemons, tmp_path)
    with pytest.raises(DisconnectedError, match="taken the place"):
        database.write("/a", "1")
    after.stop()


def test_f27_a_start_ends_with_the_entries_in_the_new_daemon(daemons: DaemonPair, app: FakeApp, tmp_path: Path) -> None:
    """Through all that runs in dom0: a refresh while only the dead run's daemon is there, then domain-qdb-create."""
    for vm in (app.net, app.firewall, app.personal):
        vm.running = vm is app.net
        vm.netvm = None
    app.work.netvm = app.net
    options = ("--socket", str(tmp_path / "qubesdb.sys-net.sock"), "--link", str(tmp_path / "net-link"))
    daemon = Process(tmp_path, "net", "--dom0", "sys-net", *options)
    daemon.wait_ready()
    found = asyncio.run(_started(daemons, app, tmp_path))
    assert found == [1, 1]
    daemon.stop()


async def _started(daemons: DaemonPair, app: FakeApp, folder: Path) -> list[int]:
    running = Running(app, asyncio.get_running_loop(), "boot-1", folder, folder)
    running.service.set(app.work, WEB)
    running.ask()
    await running.told()
    before = len(daemons.dom0().multiread(limits.ENTRIES))
    app.work.xid, app.work.start_time = 2, 2.0
    running.ask()
    await running.told()
    _, after = outlived(daemons, folder)
    running.on_database(app.work)
    await running.told()
    found = len(daemons.dom0().multiread(limits.ENTRIES))
    running.close()
    after.stop()
    return [before, found]
