# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Endless answers of the Admin API (admin.Events), from qubesd's socket or through qrexec."""

import contextlib
import os
import socket
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import subprocess


class Stream(Protocol):
    """An endless answer. stop() is for another thread: read() then returns b''."""

    def read(self) -> bytes:
        """The next bytes; b'' at the end."""

    def stop(self) -> None:
        """End read() from another thread."""

    def close(self) -> None:
        """Close it."""


class SocketStream:
    """From qubesd's own socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def read(self) -> bytes:
        """The next bytes; b'' at the end."""
        try:
            return self._connection.recv(65536)
        except ConnectionError:
            return b""

    def stop(self) -> None:
        """End read() from another thread."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close it."""
        self._connection.close()


class ProcessStream:
    """From the standard output of qrexec-client-vm."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process

    def read(self) -> bytes:
        """The next bytes; b'' at the end."""
        assert self._process.stdout is not None  # noqa: S101 - asked for where it is started
        return os.read(self._process.stdout.fileno(), 65536)

    def stop(self) -> None:
        """End read() from another thread."""
        self._process.kill()

    def close(self) -> None:
        """Close it."""
        self._process.kill()
        with self._process:
            pass
