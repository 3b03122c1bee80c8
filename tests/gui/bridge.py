# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The laboratory's qubesd at a socket outside: windows run in the process of the tests, which is in no machine."""

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

from lab.client import Lab
from lab.dom0 import QUBESD


def carry(listener: socket.socket) -> None:
    """In dom0: connect each client to qubesd, until the listener is shut down."""
    while True:
        try:
            client, _ = listener.accept()
        except OSError:
            return
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        server.connect(QUBESD)
        for source, target in ((client, server), (server, client)):
            threading.Thread(target=copy, args=(source, target), daemon=True).start()


def copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while chunk := source.recv(65536):
            target.sendall(chunk)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def bridge(lab: Lab, path: Path) -> Iterator[Path]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(os.fspath(path))
        listener.listen(64)
        call = lab.start_call("dom0", carry, listener)
        try:
            yield path
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            call.wait()
