# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""One qrexec call made by qubesd: for its callers a process, in truth a connection to the laboratory's router.

Stock qubesd starts qrexec-client, a small C program; our client is a Python program, which takes longer to start than
a call may take.
"""

import asyncio
import os
import signal
import socket
import subprocess

from lab.qrexec.client import SOCKET
from lab.qrexec.codes import EXIT_PROBLEM, EXIT_REFUSED, STARTED


class ServiceCall:
    """Has of asyncio.subprocess.Process what callers of run_service() use; streams are descriptors or DEVNULL."""

    def __init__(self, connection: socket.socket) -> None:
        self.returncode: int | None = None
        self._connection = connection
        self._task = asyncio.ensure_future(self._follow())

    @classmethod
    def start(cls, target: str, service: str, streams: tuple[int, int, int], path: str = SOCKET) -> "ServiceCall":
        """Make the call, within the running loop. Raises OSError when nobody takes calls."""
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        try:
            connection.connect(path)
            descriptors = [null if stream == subprocess.DEVNULL else stream for stream in streams]
            socket.send_fds(connection, [f"{target}\0{service}".encode()], descriptors)
        except BaseException:
            connection.close()
            raise
        finally:
            os.close(null)
        connection.setblocking(False)
        return cls(connection)

    async def wait(self) -> int:
        """Wait for its end; the exit status."""
        await asyncio.wait([self._task])
        return EXIT_PROBLEM if self.returncode is None else self.returncode

    def kill(self) -> None:
        """End it: the router ends the service when its caller is gone."""
        if self.returncode is None:
            self.returncode = -signal.SIGKILL
            self._task.cancel()

    async def _follow(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            answer = await loop.sock_recv(self._connection, 16)
            started = answer == STARTED
            if started:
                answer = await loop.sock_recv(self._connection, 16)
            status = int(answer) if answer.isdigit() else EXIT_PROBLEM if started else EXIT_REFUSED
        except OSError:
            status = EXIT_PROBLEM
        finally:
            self._connection.close()
        if self.returncode is None:
            self.returncode = status
