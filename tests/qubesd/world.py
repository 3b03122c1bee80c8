# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""A qubesd in a process of its own, with real QubesDB daemons and a hypervisor without machines."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lab.qubesd.client import ApiError, call
from portfwd.base.qubesdb_client import Error, QubesDB
from tests.leaks import lasting
from tests.qubesd.hypervisor import FakeHypervisor

ROOT = Path(__file__).parents[2]
DEADLINE = 40.0


def qube(name: str, netvm: str | None, **more: Any) -> dict[str, Any]:
    """A qube of a topology."""
    return {"name": name, "netvm": netvm, "label": "red", "agent": True, "autostart": True} | more


def chain(autostart: bool = True) -> dict[str, Any]:
    """sys-net <- sys-firewall <- work, personal; and sys-other beside them."""
    return {
        "qubes": [
            qube("sys-net", None, provides_network=True, nics=True, autostart=autostart),
            qube("sys-firewall", "sys-net", provides_network=True, autostart=autostart),
            qube("sys-other", None, provides_network=True, autostart=False),
            qube("work", "sys-firewall", label="blue", autostart=autostart),
            qube("personal", "sys-firewall", autostart=False),
            qube("fedora", None, klass="TemplateVM", autostart=False),
            qube("dvm", "sys-firewall", template="fedora", template_for_dispvms=True, autostart=False),
        ],
        "default_netvm": "sys-firewall",
    }


def eventually(check: Callable[[], Any], what: str = "the awaited state") -> Any:
    """Wait until check() is true and return what it gave."""
    deadline = time.monotonic() + DEADLINE
    while not (value := check()):
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(0.01)
    return value


class World:
    """One dom0. Everything is below `folder`, whose path is short enough for sockets.

    `poll`: seconds between two looks of a QubesDB daemon whether its domain lives; here nobody waits the real 20.
    """

    def __init__(self, topology: dict[str, Any], poll: float = 0.05) -> None:
        self._poll = poll
        self.folder = Path(tempfile.mkdtemp(prefix="qd"))
        self.socket = self.folder / "qubesd.sock"
        self.xen = FakeHypervisor(self.folder / "xen.sock")
        self._databases: dict[str, QubesDB] = {}
        (self.folder / "topology.json").write_text(json.dumps(topology))
        (self.folder / "boot_id").write_text("boot-1\n")
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self, module: str = "lab.qubesd", prefix: tuple[str, ...] = ()) -> None:
        """Start qubesd, or a module that behaves like it, and wait until it answers. `prefix` runs it."""
        paths = {"topology": "topology.json", "socket": "qubesd.sock", "xen": "xen.sock", "base": "lib"}
        paths |= {"qubesdb": "run", "link": "link", "boot-id": "boot_id", "policy": "policy.d"}
        options = [word for key, name in paths.items() for word in (f"--{key}", str(self.folder / name))]
        options += ["--poll", str(self._poll)]
        log = (self.folder / "log").open("ab")
        with log:
            command = [*prefix, sys.executable, "-m", module, "--verbose", *options]
            self._process = subprocess.Popen(command, cwd=ROOT, stderr=log)
        eventually(self._answers, "the answer of qubesd")

    @property
    def pid(self) -> int:
        """qubesd's process."""
        assert self._process is not None
        return self._process.pid

    def stop(self) -> None:
        """Stop qubesd; the qubes stay."""
        if self._process is not None:
            self._process.terminate()
            assert self._process.wait(DEADLINE) == 0, self.log()
        self._process = None

    def restart(self) -> None:
        """Stop and start it; what comes belongs to the fixture that made this world."""
        with lasting():
            self.stop()
            self.start()

    def died(self) -> bool:
        """Whether qubesd has been killed."""
        if self._process is None or self._process.poll() is None:
            return False
        assert self._process.returncode == -signal.SIGKILL, self.log()
        return True

    def close(self) -> None:
        self.stop()
        for database in self._databases.values():
            database.close()
        for pid in self._database_daemons():
            os.kill(pid, signal.SIGTERM)
        self.xen.close()
        shutil.rmtree(self.folder)

    def _database_daemons(self) -> Iterator[int]:
        """Those of dead domains, too, which have no file with their number any more."""
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                words = entry.read_bytes().split(b"\0")
                if b"lab.qubesdb.daemon" in words and any(w.startswith(bytes(self.folder)) for w in words):
                    yield int(entry.parent.name)

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def raw(self, request: bytes) -> bytes:
        """Send these bytes, close our side, return all that comes."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(DEADLINE)
            connection.connect(str(self.socket))
            try:
                connection.sendall(request)
                connection.shutdown(socket.SHUT_WR)
            except OSError:
                return b""
            answer = b""
            try:
                while part := connection.recv(65536):
                    answer += part
            except ConnectionResetError:
                return b""
            return answer

    def api(self, dest: str, method: str, payload: str = "") -> str:
        return call(self.socket, dest, method, payload.encode())

    def error(self, dest: str, method: str, payload: str = "") -> tuple[str, str]:
        """Class and text of the error that the call must give."""
        try:
            answer = self.api(dest, method, payload)
        except ApiError as error:
            return error.name, str(error)
        raise AssertionError(f"answered {answer!r}")

    def state(self, name: str) -> str:
        return self.api(name, "admin.vm.List").split("state=")[1].split()[0]

    def running(self, *names: str) -> None:
        eventually(lambda: all(self.state(name) == "Running" for name in names), f"the start of {names}")

    def prop(self, name: str, prop: str) -> str:
        return self.api(name, f"admin.vm.property.Get+{prop}").split(" ", 2)[2]

    def set(self, name: str, prop: str, value: str) -> None:
        self.api(name, f"admin.vm.property.Set+{prop}", value)

    def qdb(self, name: str) -> QubesDB:
        """dom0's database of a qube, opened when it is there."""
        if name not in self._databases:
            self._databases[name] = eventually(lambda: self._open(name), f"QubesDB of {name}")
        return self._databases[name]

    def read(self, name: str, path: str) -> str | None:
        value = self.qdb(name).read(path)
        return None if value is None else value.decode()

    def firewall_file(self, qube: str) -> Path:
        """Where dom0 keeps the rules of a qube."""
        return self.folder / "lib/appvms" / qube / "firewall.xml"

    def firewall_of(self, netvm: str, address: str) -> dict[str, str]:
        base = f"/qubes-firewall/{address}/"
        return {key.removeprefix(base): value.decode() for key, value in self.qdb(netvm).multiread(base).items()}

    def forget_qdb(self, name: str) -> None:
        """The qube was stopped: its next database is another one."""
        if name in self._databases:
            self._databases.pop(name).close()

    def events(self, dest: str = "dom0") -> "EventStream":
        return EventStream(self.socket, dest)

    def _answers(self) -> bool:
        try:
            return bool(self.raw(b"admin.vm.CurrentState+ dom0 name dom0\0"))
        except OSError:
            return False

    def _open(self, name: str) -> QubesDB | None:
        try:
            return QubesDB(str(self.folder / "run" / f"qubesdb.{name}.sock"))
        except Error:
            return None


class EventStream:
    """A connection to admin.Events."""

    def __init__(self, path: Path, dest: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(DEADLINE)
        self._socket.connect(str(path))
        self._socket.sendall(f"admin.Events+ dom0 name {dest}\0".encode())
        self._socket.shutdown(socket.SHUT_WR)
        self._stream = self._socket.makefile("rb")
        assert self.next() == ("", "connection-established", {})

    def __enter__(self) -> "EventStream":
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        self._socket.close()

    def next(self) -> tuple[str, str, dict[str, str]]:
        """Subject, event, words."""
        assert self._stream.read(2) == b"1\0"
        subject, event = self._field(), self._field()
        words: dict[str, str] = {}
        while key := self._field():
            words[key] = self._field()
        return subject, event, words

    def until(self, event: str, subject: str | None = None) -> list[tuple[str, str, dict[str, str]]]:
        """All events up to and including that one."""
        return list(self._until(event, subject))

    def _until(self, event: str, subject: str | None) -> Iterator[tuple[str, str, dict[str, str]]]:
        while True:
            found = self.next()
            yield found
            if found[1] == event and subject in (None, found[0]):
                return

    def _field(self) -> str:
        field = b""
        while (byte := self._stream.read(1)) != b"\0":
            assert byte, "the stream ended"
            field += byte
        return field.decode("ascii")
