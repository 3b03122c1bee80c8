# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The laboratory's qubesd at a socket outside: windows run in the process of the tests, which is in no machine.

The bridge is a program of its own (python -m tests.gui.bridge LABORATORY PATH), since the process of the tests may have
threads by now, and a fork of such a process is not safe. It alone holds the listening socket: when it dies, clients are
refused at once. It ends with its standard input.
"""

import contextlib
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from lab.base import namespaces as ns
from lab.client import Lab
from lab.dom0 import QUBESD
from lab.inside.root import PROJECT

PATIENCE = 60.0
"""Seconds for its start."""


def carry(listener: socket.socket) -> None:
    """In dom0: connect each client to qubesd, until the listener is shut down. One whom qubesd refuses is let go."""
    while True:
        try:
            client, _ = listener.accept()
        except OSError:
            return
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            server.connect(QUBESD)
        except OSError:
            client.close()
            server.close()
            continue
        threading.Thread(target=connect, args=(client, server), daemon=True).start()


def connect(client: socket.socket, server: socket.socket) -> None:
    """Copy both ways until both sides have said all, then close."""
    with client, server:
        back = threading.Thread(target=copy, args=(server, client), daemon=True)
        back.start()
        copy(client, server)
        back.join()


def copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while chunk := source.recv(65536):
            target.sendall(chunk)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def bridge(lab: Lab, path: Path) -> Iterator[Path]:
    argv = [sys.executable, "-m", "tests.gui.bridge", lab.name, os.fspath(path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=PROJECT) as program:
        try:
            assert program.stdin is not None
            assert program.stdout is not None
            assert ns.readable(program.stdout.fileno(), PATIENCE), "the bridge does not start"
            assert program.stdout.readline() == b"listening\n"
            yield path
            program.stdin.close()
            assert program.wait(PATIENCE) == 0, "the bridge died"
        finally:
            program.kill()


def main(name: str, path: str) -> int:
    """Listen, have dom0 carry, and wait for the end: of the standard input, or of what carries."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen(64)
        call = Lab(name).start_call("dom0", carry, listener)
        print("listening", flush=True)
        select.select([sys.stdin, os.pidfd_open(call.pid)], [], [])
        # Whoever waits in accept() is told, and who connects from now on is refused.
        listener.shutdown(socket.SHUT_RDWR)
    return call.wait(PATIENCE)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
