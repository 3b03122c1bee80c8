# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The agent as a program in the hop of the kernel's world, with the laboratory's QubesDB daemons on both ends."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from portfwd.base.qubesdb_client import QubesDB
from portfwd.wire import limits
from portfwd.wire.acknowledgement import Acknowledgement, AgentState
from portfwd.wire.entry import Commit, Entry
from tests.agent import kernel_world
from tests.agent.kernel_world import KernelWorld
from tests.agent.machine import Machine

ROOT = Path(__file__).parents[2]
_AS_IN_A_QUBE = (
    "mount -t tmpfs tmpfs /run && mkdir /run/qubes && mount --bind $1 /run/qubes && "
    "mkdir -p $1/kept /run/qubes-port-forward && mount --bind $1/kept /run/qubes-port-forward && "
    '{ [ -z "$3" ] || mount --bind "$3" /etc/hosts; } && exec "$2" -I -c "$4"'
)
PROGRAM = "from portfwd.agent.__main__ import main; main()"


def start(machine: Machine, folder: str, hosts: str, notify: str, program: str = PROGRAM) -> int:
    """Command: start the agent with a /run of its own, in which `folder` is /run/qubes; its process id.

    What an agent leaves there for the next one is kept in the folder, too.
    """
    argv = ["unshare", "--mount", "sh", "-e", "-c", _AS_IN_A_QUBE, "sh", folder, sys.executable, hosts, program]
    with open(f"{folder}/log", "a") as log:  # noqa: PTH123 - a descriptor
        process = subprocess.Popen(argv, stdout=log, stderr=log, env={**os.environ, "NOTIFY_SOCKET": notify})
    machine.kept["process"] = process
    return process.pid


def end(machine: Machine, number: int) -> int:
    """Command: send the agent a signal and wait for its end."""
    process: subprocess.Popen[bytes] = machine.kept["process"]
    process.send_signal(number)
    return process.wait(20)


def hang_up(machine: Machine) -> None:
    """Command: SIGHUP to the agent."""
    machine.kept["process"].send_signal(signal.SIGHUP)


class RunningAgent:
    """Daemons, agent, and dom0's hand on the database."""

    def __init__(self, world: KernelWorld, hosts: str = "", program: str = PROGRAM) -> None:
        self.world, self._program = world, program
        # Short: the path of a unix socket has at most 107 bytes.
        self._folder = Path(tempfile.mkdtemp(prefix="pf"))
        (self._folder / "qube").mkdir()
        self._hosts = ""
        if hosts:
            (self._folder / "hosts").write_text(hosts)
            self._hosts = str(self._folder / "hosts")
        self._generation = 0
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(str(self._folder / "notify"))
        self._notify.settimeout(20)
        self._runs = False
        self._dom0 = self._daemon("--dom0", "hop", "--socket", "qubesdb.hop.sock")
        self._qube: subprocess.Popen[bytes] | None = None
        try:
            self.start_daemon()
            self.dom0 = QubesDB(str(self._folder / "qubesdb.hop.sock"))
            self.start()
        except BaseException:
            self._end_all()
            raise

    def start(self) -> None:
        """Start the agent and wait until it is ready."""
        machine = self.world.machine("hop")
        notify = str(self._folder / "notify")
        self.pid = machine.call(start, str(self._folder / "qube"), self._hosts, notify, self._program)
        self._runs = True
        self._wait_ready()

    def end(self, number: signal.Signals) -> int:
        """End the agent with a signal; its exit status."""
        self._runs = False
        return self.world.machine("hop").call(end, int(number))

    def ask(self, service: str, payload: str = "") -> bytes:
        """As qrexec does for dom0: what the agent answers. Raises OSError when it does not listen."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(20)
            connection.connect(f"/proc/{self.pid}/root{limits.AGENT_SOCKET}")
            connection.sendall(f"{service} dom0\0{payload}".encode())
            connection.shutdown(socket.SHUT_WR)
            with connection.makefile("rb") as stream:
                return stream.read()

    def reload(self, hosts: str) -> None:
        """Let names mean something else, and tell the agent to read and resolve everything anew."""
        Path(self._hosts).write_text(hosts)
        self.world.machine("hop").call(hang_up)

    def start_daemon(self) -> None:
        """Start the qube's QubesDB daemon, and wait until it serves."""
        self._qube = self._daemon("--vm", "--socket", "qube/qubesdb.sock")
        self._wait_ready()

    @contextlib.contextmanager
    def silent_daemon(self) -> Iterator[None]:
        """The qube's QubesDB daemon answers nobody meanwhile, as when it waits for that of dom0."""
        self._qube.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._qube.send_signal(signal.SIGCONT)

    def stop_daemon(self) -> None:
        """End the qube's QubesDB daemon."""
        if self._qube is not None:
            self._qube.terminate()
            self._qube.wait(20)

    def close(self) -> None:
        """End everything."""
        self.dom0.close()
        self._end_all()

    def _end_all(self) -> None:
        if self._runs:
            self.end(signal.SIGKILL)
        self.stop_daemon()
        self._dom0.terminate()
        self._dom0.wait(20)
        self._notify.close()
        shutil.rmtree(self._folder)

    def write(self, entries: Sequence[Entry]) -> None:
        """As dom0 does before it commits."""
        wanted = {entry.path: entry.value for entry in entries}
        for path in self.dom0.list(limits.ENTRIES):
            if path not in wanted:
                self.dom0.rm(path)
        for path, value in wanted.items():
            self.dom0.write(path, value)

    def commit(self, entries: Sequence[Entry]) -> int:
        """Commit these entries, be they written or not; the generation."""
        self._generation += 1
        commit = Commit.over(self._generation, {entry.key: entry.value for entry in entries})
        self.dom0.write(limits.BASE, str(commit))
        return self._generation

    def publish(self, entries: Sequence[Entry]) -> None:
        """Write, commit, and wait until the agent says that it is applied."""
        self.write(entries)
        generation = self.commit(entries)
        self.world.wait_until(lambda: self.acknowledged() == Acknowledgement(generation, AgentState.APPLIED), 20)

    def acknowledged(self) -> Acknowledgement | None:
        """The agent's word as dom0 sees it."""
        untrusted = self.dom0.read(limits.STATUS_BASE)
        return None if untrusted is None else Acknowledgement.parse(untrusted.decode())

    def open_target(self, entries: Sequence[Entry]) -> None:
        """What work's own agent would do."""
        self.world.machine("work").call(kernel_world.bring, list(entries), self.world.now(), {})

    @property
    def kept(self) -> Path:
        """What the agent leaves for the next one (limits.AGENT_FOLDER)."""
        return self._folder / "qube" / "kept"

    def log(self) -> str:
        """What the agent has said."""
        path = self._folder / "qube" / "log"
        return path.read_text() if path.exists() else "nothing was said"

    def _daemon(self, *arguments: str) -> subprocess.Popen[bytes]:
        paths = [str(self._folder / a) if a.endswith(".sock") else a for a in arguments]
        argv = [sys.executable, "-m", "lab.qubesdb.daemon", *paths, "--link", str(self._folder / "link")]
        environment = {k: v for k, v in os.environ.items() if k != "NOTIFY_SOCKET"}
        if "--vm" in arguments:
            environment["NOTIFY_SOCKET"] = str(self._folder / "notify")
        return subprocess.Popen(argv, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)

    def _wait_ready(self) -> None:
        try:
            assert self._notify.recv(100) == b"READY=1"
        except TimeoutError:
            raise AssertionError(f"not ready: {self.log()}") from None
