# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""A machine as the hypervisor holds it: its first process, its namespaces, its cable, whether it is paused."""

import contextlib
import json
import os
import signal
import socket
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn, ParamSpec, TypeVar

from lab.base import enter
from lab.base import namespaces as ns
from lab.inside import init
from lab.inside.commands import nft
from lab.inside.network import Card
from lab.inside.vif import Vif

P = ParamSpec("P")
R = TypeVar("R")
Reply = Callable[[str | None], None]

# Seconds. A loaded machine is slow, and nobody waits this long when all is well.
CREATE_DEADLINE = 60.0
KILL_DEADLINE = 20.0
AGENT_DEADLINE = 30.0
# PF_EXITING of the kernel (linux/sched.h), in the flags of /proc/PID/stat.
_EXITING = 0x4

# Before every other hook, so that nothing of a paused qube's own ruleset sees a packet.
_FREEZE = """
table inet lab-paused {
	chain in { type filter hook prerouting priority -1000; policy drop; }
	chain out { type filter hook output priority -1000; policy drop; }
}
"""


@dataclass
class Cable:
    """What connects a qube to its net qube."""

    backend: str
    vif: Vif


@dataclass
class Running:
    """A machine that exists. state: created (not booted), running or paused.

    cards: its network cards by their names inside; ports: the name of each one's other end, at a bridge; ready: the
    services that have said so.
    """

    plan: init.Machine
    domid: int
    pid: int
    channel: socket.socket
    namespaces: list[int] = field(default_factory=list)
    state: str = "created"
    cable: Cable | None = None
    vif_index: int = 0
    cards: dict[str, Card] = field(default_factory=dict)
    ports: dict[str, str] = field(default_factory=dict)
    waiting: list[Reply] = field(default_factory=list)
    received: bytes = b""
    ready: set[str] = field(default_factory=set)
    born: float = field(default_factory=time.monotonic)

    @property
    def name(self) -> str:
        return self.plan.name

    @property
    def described(self) -> dict[str, str | int]:
        """As a client is told of it."""
        return {"name": self.name, "domid": self.domid, "state": self.state}

    @property
    def up(self) -> bool:
        """Whether it has booted, and its agent is ready or has had its time (a paused one has none)."""
        if self.state != "running" or not self.plan.agent:
            return self.state != "created"
        return init.AGENT in self.ready or time.monotonic() - self.born > AGENT_DEADLINE

    def call(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a function inside, now."""
        return enter.call(self.namespaces, function, *args, **kwargs)

    def boot(self, reply: Reply) -> None:
        """Ask the machine to boot; reply(None) or reply(error) follows."""
        self._ask({"op": "boot"}, reply)

    def control(self, service: str, action: str, reply: Reply) -> None:
        """Ask the machine to start, stop, restart or kill one of its services; a reply follows."""
        self._ask({"op": "service", "service": service, "action": action}, reply)

    def _ask(self, request: dict[str, str], reply: Reply) -> None:
        self.waiting.append(reply)
        self.channel.sendall(json.dumps(request).encode() + b"\n")

    def take_answers(self) -> bool:
        """Read what the machine says; False when it is gone."""
        try:
            data = self.channel.recv(65536)
        except OSError:
            data = b""
        self.received += data
        while b"\n" in self.received:
            line, self.received = self.received.split(b"\n", 1)
            answer = json.loads(line)
            if "ready" in answer:
                self.ready.add(answer["ready"])
                continue
            if answer["ok"] and self.state == "created":
                self.state = "running"
            self.waiting.pop(0)(None if answer["ok"] else answer["error"])
        return bool(data)

    def pause(self) -> None:
        """Stop its packets, then its processes."""
        self.call(nft, _FREEZE)
        stopped: set[int] = set()
        # A process may fork while we look: until a look finds nobody new.
        while fresh := self._processes() - stopped:
            for pid in fresh:
                _kill(pid, signal.SIGSTOP)
            stopped |= fresh
        self.state = "paused"

    def unpause(self) -> None:
        """Undo pause()."""
        self.call(nft, "delete table inet lab-paused")
        for pid in self._processes():
            _kill(pid, signal.SIGCONT)
        self.state = "running"

    def kill(self) -> None:
        """End all its processes, and let go of its namespaces. Returns when they have ended; OSError when they do not.

        The first process stays until all that were forked into the machine from outside have been reaped, which is not
        ours to do: hypervisor.reap() finds it later.
        """
        _kill(self.pid, signal.SIGKILL)
        deadline = time.monotonic() + KILL_DEADLINE
        while not self._reaped() and not self._only_dead():
            if time.monotonic() > deadline:
                raise OSError(f"the processes of {self.name} do not end")
        self.close()

    def _reaped(self) -> bool:
        try:
            return ns.wait_for_end(self.pid, 0.02) and bool(os.waitpid(self.pid, os.WNOHANG)[0])
        except (ProcessLookupError, ChildProcessError):
            # The hypervisor's reaper was first.
            return True

    def _only_dead(self) -> bool:
        """Whether the first process is ending, and nothing lives beside it."""
        try:
            if not ns.process_state(self.pid)[2] & _EXITING:
                return False
            for pid in self._processes() - {self.pid}:
                with contextlib.suppress(OSError):
                    if ns.process_state(pid)[0] not in "ZX":
                        return False
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Let go of everything that keeps a dead machine's namespaces alive."""
        self.channel.close()
        for fd in self.namespaces:
            os.close(fd)
        self.namespaces.clear()
        for reply in self.waiting:
            reply(f"{self.name} died")
        self.waiting.clear()

    def _processes(self) -> set[int]:
        own = Path(f"/proc/{self.pid}/ns/pid").stat()
        found = set()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    if os.path.samestat(own, (entry / "ns/pid").stat()):
                        found.add(int(entry.name))
                except (FileNotFoundError, ProcessLookupError, PermissionError):
                    continue
        return found


def launch(plan: init.Machine, domid: int, log: Path) -> Running:
    """Fork a machine's first process into fresh namespaces; its first answer is still to come."""
    ours, theirs = socket.socketpair()
    read_end, write_end = os.pipe()
    helper = os.fork()
    if helper == 0:
        _launch_helper(plan, theirs, log, write_end)
    os.close(write_end)
    theirs.close()
    pid = b""
    with contextlib.suppress(TimeoutError):
        pid = ns.read_all(read_end, CREATE_DEADLINE)
    os.close(read_end)
    enter.end(helper, enter.END_DEADLINE if pid else 0.0)
    if not pid:
        ours.close()
        raise OSError(f"the kernel gave no namespaces for {plan.name}")
    machine = Running(plan, domid, int(pid), ours)
    machine.namespaces = ns.open_namespaces(machine.pid)
    return machine


def _launch_helper(plan: init.Machine, channel: socket.socket, log: Path, write_end: int) -> NoReturn:
    # Before its own setup, a signal must not run the hypervisor's handlers here.
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    # unshare() moves only children into the new PID namespace, and can be called once: hence a process between.
    try:
        ns.unshare(ns.CLONE_NEWNS | ns.CLONE_NEWNET | ns.CLONE_NEWUTS | ns.CLONE_NEWIPC | ns.CLONE_NEWPID)
        child = os.fork()
        if child == 0:
            _redirect(log)
            init.main(plan, channel)
        os.write(write_end, str(child).encode())
    except OSError:
        traceback.print_exc()
    finally:
        os._exit(0)


def wait_created(machine: Running) -> None:
    """Wait until the machine has its root and network namespace. OSError with the machine's own words."""
    errors: list[str | None] = []
    machine.waiting.append(errors.append)
    deadline = time.monotonic() + CREATE_DEADLINE
    while not errors:
        if not ns.readable(machine.channel.fileno(), deadline - time.monotonic()):
            errors.append(f"did not get ready within {CREATE_DEADLINE:.0f} s")
        elif not machine.take_answers() and not errors:
            errors.append("died while it was created")
    machine.state = "created"
    if errors[0] is not None:
        raise OSError(f"{machine.name}: {errors[0]}")


def _redirect(log: Path) -> None:
    null = os.open("/dev/null", os.O_RDONLY)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for fd, number in ((null, 0), (out, 1), (out, 2)):
        os.dup2(fd, number)


def _kill(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
