# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""A process in a network namespace of its own that does what it is told over a socket, and serves sockets meanwhile.

`python -m tests.agent.machine FD...` starts one for each descriptor, all in one user namespace when not started by
root, and ends with the last of them; each ends when its socket is closed. The host's own network is never touched.
"""

import contextlib
import os
import selectors
import subprocess
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

from lab.base import namespaces

R = TypeVar("R")


class Machine:
    """The inside. Commands are functions of this module's users that take the Machine first."""

    def __init__(self, control: Connection) -> None:
        self._control = control
        self.selector = selectors.DefaultSelector()
        self.selector.register(control, selectors.EVENT_READ, None)
        self.kept: dict[str, Any] = {}

    def work(self) -> None:
        """Serve until the other end of the control socket is closed."""
        with contextlib.suppress(EOFError):
            while True:
                self.turn(None)

    def turn(self, timeout: float | None) -> None:
        """Handle what has come in, waiting `timeout` seconds for it at most."""
        for key, _ in self.selector.select(timeout):
            # What came before it in this turn may have let go of it.
            if self.selector.get_map().get(key.fd) != key:
                continue
            if key.data is not None:
                key.data(key.fileobj)
            elif timeout is None:
                command, arguments = self._control.recv()
                self._control.send(self._answer(command, arguments))

    def _answer(self, command: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[bool, Any]:
        try:
            return True, command(self, *arguments)
        except Exception:
            return False, traceback.format_exc()


class Remote:
    """The outside of a machine."""

    def __init__(self, name: str, control: Connection) -> None:
        self.name = name
        self._control = control

    def begin(self, command: Callable[..., object], *arguments: object) -> None:
        """Start a command; finish() gives its answer."""
        self._control.send((command, arguments))

    def finish(self) -> Any:
        """The answer of the command begun before. Raises AssertionError with the machine's traceback."""
        if not self._control.poll(60):
            raise AssertionError(f"{self.name} does not answer")
        well, answer = self._control.recv()
        if not well:
            raise AssertionError(f"in {self.name}: {answer}")
        return answer

    def call(self, command: Callable[..., R], *arguments: object) -> R:
        """Run a command and wait for its answer."""
        self.begin(command, *arguments)
        answer: R = self.finish()
        return answer

    def close(self) -> None:
        """Let the machine end."""
        self._control.close()


def pid(_machine: Machine) -> int:
    """Command: the machine's process."""
    return os.getpid()


def run(_machine: Machine, argv: list[str], given: str = "") -> str:
    """Command: run a program and return its output; a failure raises."""
    done = subprocess.run(argv, input=given, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{argv}: {done.stderr}")
    return done.stdout


def write(_machine: Machine, path: str, text: str) -> None:
    """Command: write a file below /proc/sys, as this network namespace sees it."""
    Path(path).write_text(text)


def _new_namespaces() -> None:
    """A user namespace in which we are root, unless we are."""
    if os.geteuid() == 0:
        return
    uid, gid = os.geteuid(), os.getegid()
    namespaces.unshare(namespaces.CLONE_NEWUSER)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1")


def main() -> int:
    """Fork one machine for each descriptor and wait for them."""
    descriptors = [int(text) for text in sys.argv[1:]]
    _new_namespaces()
    for descriptor in descriptors:
        if os.fork() == 0:
            for other in descriptors:
                if other != descriptor:
                    os.close(other)
            namespaces.unshare(namespaces.CLONE_NEWNET)
            with contextlib.suppress(KeyboardInterrupt):
                Machine(Connection(descriptor)).work()
            namespaces.leave(0)
    for descriptor in descriptors:
        os.close(descriptor)
    with contextlib.suppress(ChildProcessError, KeyboardInterrupt):
        while True:
            os.wait()
    return 0


if __name__ == "__main__":
    # The module that the commands name, not a second copy of it.
    from tests.agent import machine

    sys.exit(machine.main())
