# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""A connection whose two ends a test holds in its hands: either end can be asked whether the other still answers."""

import select
import socket
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TextIO

from lab import probes
from lab.client import Lab

P = ParamSpec("P")

PATIENCE = 10.0
"""Seconds. A connection that lives answers, and one that was cut is reset, at once."""


class End:
    """One end of a connection, in a process of its own inside a machine."""

    def __init__(
        self,
        lab: Lab,
        machine: str,
        function: Callable[Concatenate[socket.socket, P], None],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> None:
        ours, theirs = socket.socketpair()
        self._call = lab.start_call(machine, function, theirs, *args, **kwargs)
        theirs.close()
        self._talk: TextIO = ours.makefile("rw")
        ours.close()
        self.said = self._talk.readline().strip()

    def speaks(self) -> str:
        """Send something to the other end: 'alive' when that answered, else 'reset', 'closed', 'timeout'..."""
        return self._command("speak")

    def waits(self) -> str:
        """Say nothing, and only receive: 'reset', 'closed'... when the connection has ended, else 'open'."""
        return self._command("wait")

    def close(self) -> None:
        """Let go of the connection."""
        # A word, and no end of file: processes forked later hold a copy of our descriptor.
        self._command("end")
        self._talk.close()
        self._call.wait()

    def _command(self, word: str) -> str:
        self._talk.write(f"{word}\n")
        self._talk.flush()
        return self._talk.readline().strip()


class Held:
    """A TCP connection from a client to a port of a qube on which nothing else listens."""

    def __init__(self, lab: Lab, client: str, host: str, port: int, target: str, target_port: int) -> None:
        self.server = End(lab, target, _serve, target_port)
        self.client = End(lab, client, _connect, host, port)

    def close(self) -> None:
        """End both."""
        self.client.close()
        self.server.close()

    @property
    def lives(self) -> bool:
        """Whether both directions work."""
        return (self.client.speaks(), self.server.speaks()) == ("alive", "alive")

    @property
    def is_cut(self) -> bool:
        """Whether each end is told so when it speaks, instead of waiting for ever."""
        return (self.client.speaks(), self.server.speaks()) == ("reset", "reset")


def _serve(control: socket.socket, port: int) -> None:
    with socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
        control.sendall(b"listening\n")
        if control in select.select([listener, control], [], [])[0]:
            control.sendall(b"nobody came\n")
            return
        connection, _ = listener.accept()
    _hold(control, connection)


def _connect(control: socket.socket, host: str, port: int) -> None:
    try:
        connection = socket.create_connection((host, port), PATIENCE)
    except OSError as error:
        word = probes.why(error)
        control.sendall(f"{word}\n".encode())
        control.recv(16)
        control.sendall(f"{word}\n".encode())
        return
    control.sendall(b"connected\n")
    _hold(control, connection)


def _hold(control: socket.socket, connection: socket.socket) -> None:
    """Answer the other end's '?' with '!'; when told to speak, send '?' and tell whether '!' came back."""
    over = ""
    with connection:
        connection.settimeout(PATIENCE)
        while True:
            ready = select.select([control] if over else [control, connection], [], [])[0]
            if connection in ready:
                over = _answer(connection)
            if control in ready:
                word = control.recv(16)
                if word == b"wait\n":
                    over = over or _wait(connection)
                    control.sendall(f"{over or 'open'}\n".encode())
                    continue
                if word != b"speak\n":
                    control.sendall(b"ended\n")
                    return
                result = over or _ask(connection)
                over = "" if result in ("alive", "timeout") else result
                control.sendall(f"{result}\n".encode())


def _wait(connection: socket.socket) -> str:
    """Whether anything but the end of it comes within PATIENCE."""
    while select.select([connection], [], [], PATIENCE)[0]:
        try:
            if not connection.recv(64):
                return "closed"
        except OSError as error:
            return probes.why(error)
    return ""


def _answer(connection: socket.socket) -> str:
    try:
        data = connection.recv(1)
        if data == b"?":
            connection.sendall(b"!")
    except OSError as error:
        return probes.why(error)
    return "" if data else "closed"


def _ask(connection: socket.socket) -> str:
    try:
        connection.sendall(b"?")
        return "alive" if connection.recv(1) == b"!" else "closed"
    except OSError as error:
        return probes.why(error)
