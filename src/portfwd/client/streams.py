# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Answers of the Admin API that have no end: admin.Events, from qubesd's socket or through qrexec."""

import contextlib
import os
import socket
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import subprocess


class Stream(Protocol):
    """An answer that goes on and on. stop() is for another thread: read() then gives b''."""

    def read(self) -> bytes:
        """What came next; b'' at its end."""

    def stop(self) -> None: ...
    def close(self) -> None: ...


class SocketStream:
    """From qubesd's own socket."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def read(self) -> bytes:
        """What came next; b'' at its end."""
        try:
            return self._connection.recv(65536)
        except ConnectionError:
            return b""

    def stop(self) -> None:
        """Have read() end, from another thread."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Let go of it."""
        self._connection.close()


class ProcessStream:
    """From the standard output of qrexec-client-vm."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process

    def read(self) -> bytes:
        """What came next; b'' at its end."""
        assert self._process.stdout is not None  # noqa: S101 - asked for where it is started
        return os.read(self._process.stdout.fileno(), 65536)

    def stop(self) -> None:
        """Have read() end, from another thread."""
        self._process.kill()

    def close(self) -> None:
        """Let go of it."""
        self._process.kill()
        with self._process:
            pass
