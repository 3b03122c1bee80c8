# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Databases to test on: the fake, and a real pair of daemons with our client."""

import ctypes
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import pytest

from lab.qubesdb import daemon
from portfwd.base.qubesdb_client import Database, QubesDB
from tests.fakes.qubesdb import FakeQubesDB

DEADLINE = 40.0
_PR_SET_PDEATHSIG = 1


def eventually(condition: Callable[[], object]) -> None:
    """Wait until a condition holds, at most DEADLINE seconds."""
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "this did not happen in time"
        time.sleep(0.002)


class Process:
    """A daemon in a forked child; its messages go to a file."""

    def __init__(self, directory: Path, name: str, *arguments: str) -> None:
        self.log = directory / f"{name}.log"
        self._ready = directory / f"{name}.ready"
        self._ready.unlink(missing_ok=True)
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(str(self._ready))
        self._notify.settimeout(DEADLINE)
        self._status: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            os._exit(self._run(arguments))

    def _run(self, arguments: tuple[str, ...]) -> int:
        with self.log.open("ab", buffering=0) as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 - for as long as the daemon lives
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            os.environ["NOTIFY_SOCKET"] = str(self._ready)
            try:
                return daemon.main(arguments)
            except BaseException:
                log.write(traceback.format_exc().encode())
                return 99

    def wait_ready(self) -> None:
        assert self._notify.recv(100) == b"READY=1"

    def status(self) -> int | None:
        """The exit status, None while it runs."""
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._status = os.waitstatus_to_exitcode(status)
        return self._status

    def exit_status(self) -> int:
        """Wait for the end."""
        eventually(lambda: self.status() is not None)
        assert self._status is not None
        return self._status

    def send(self, number: int) -> None:
        if self.status() is None:
            os.kill(self.pid, number)

    def stop(self) -> None:
        self.send(signal.SIGCONT)
        self.send(signal.SIGTERM)
        self.exit_status()
        self._notify.close()


class Pair(Protocol):
    """A database with two ends."""

    def dom0(self) -> Database: ...
    def qube(self) -> Database: ...
    def qube_read_only(self) -> Database: ...
    def stop_qube_end(self) -> None: ...
    def start_qube_end(self) -> None: ...


class FakePair:
    """The fake."""

    def __init__(self) -> None:
        self._fake = FakeQubesDB()
        self._open: list[Database] = []

    def _connect(self, can_write: bool = True) -> Database:
        connection = self._fake.connect(can_write=can_write)
        self._open.append(connection)
        return connection

    def dom0(self) -> Database:
        return self._connect()

    def qube(self) -> Database:
        return self._connect()

    def qube_read_only(self) -> Database:
        return self._connect(can_write=False)

    def stop_qube_end(self) -> None:
        self._fake.stop()

    def start_qube_end(self) -> None:
        self._fake.start()

    def stop(self) -> None:
        for connection in self._open:
            connection.close()


class DaemonPair:
    """Two daemons and our client."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.dom0_socket = str(directory / "qubesdb.work.sock")
        self.qube_socket = str(directory / "vm" / "qubesdb.sock")
        self.link = str(directory / "link")
        self._open: list[Database] = []
        (directory / "vm").mkdir()
        self.start_dom0_end()
        self.start_qube_end()

    def start_dom0_end(self) -> None:
        arguments = ("--dom0", "work", "--socket", self.dom0_socket, "--link", self.link)
        self.dom0_end = Process(self.directory, "dom0", *arguments)
        self.dom0_end.wait_ready()

    def start_qube_end(self) -> None:
        self.qube_end = Process(self.directory, "vm", "--vm", "--socket", self.qube_socket, "--link", self.link)
        self.qube_end.wait_ready()

    def connect(self, path: str) -> Database:
        connection = QubesDB(path)
        self._open.append(connection)
        return connection

    def dom0(self) -> Database:
        return self.connect(self.dom0_socket)

    def qube(self) -> Database:
        return self.connect(self.qube_socket)

    def qube_read_only(self) -> Database:
        return self.connect(self.qube_socket.replace(".sock", ".ro.sock"))

    def stop_qube_end(self) -> None:
        self.qube_end.stop()

    def stop(self) -> None:
        for connection in self._open:
            connection.close()
        self.qube_end.stop()
        self.dom0_end.stop()
        for process in (self.qube_end, self.dom0_end):
            assert "Traceback" not in process.log.read_text()
            assert process.exit_status() in (0, 1)


@pytest.fixture
def daemons(tmp_path: Path) -> Iterator[DaemonPair]:
    pair = DaemonPair(tmp_path)
    yield pair
    pair.stop()


@pytest.fixture(params=["fake", "daemons"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    if request.param == "daemons":
        yield request.getfixturevalue("daemons")
    else:
        fake = FakePair()
        yield fake
        fake.stop()
