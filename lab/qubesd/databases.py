# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The QubesDB daemons on dom0's side, one per running qube. They outlive qubesd, as the real ones do."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Protocol

from portfwd.wire.qdb_client import Database, Error, QubesDB

_PROJECT = Path(__file__).parents[2]
START_TIME = 20.0
"""Seconds that a daemon may take until it answers."""


class DatabaseHost(Protocol):
    """What qubesd needs of the QubesDB daemons."""

    async def start(self, name: str) -> None:
        """Start the daemon of a qube; back when it answers. Raises Error."""

    async def stop(self, name: str) -> None:
        """End it."""

    def open(self, name: str) -> Database:
        """Connect to it. Raises Error."""


class Databases:
    """Real daemons. `run` holds their sockets, `link` the folder of each qube's end of the link."""

    def __init__(self, run: Path, link: Path) -> None:
        self._run = run
        self._link = link
        # No processes of asyncio: those it kills when its loop ends, and a qube's daemon outlives qubesd.
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    async def start(self, name: str) -> None:
        await self.stop(name)
        link = self._link / name / "111.sock"
        link.parent.mkdir(parents=True, exist_ok=True)
        self._run.mkdir(parents=True, exist_ok=True)
        options = ("--dom0", name, "--socket", str(self._socket(name)), "--link", str(link))
        command = (sys.executable, "-m", "lab.qubesdb.daemon", *options)
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, cwd=_PROJECT, start_new_session=True)
        self._processes[name] = process
        try:
            async with asyncio.timeout(START_TIME):
                while not self._answers(name):
                    if process.poll() is not None:
                        raise Error(f"QubesDB daemon of {name} ended with code {process.returncode}")
                    await asyncio.sleep(0.02)
        except TimeoutError:
            await self.stop(name)
            raise Error(f"QubesDB daemon of {name} does not answer") from None

    async def stop(self, name: str) -> None:
        """End the daemon of a qube, also one that an earlier qubesd has started."""
        process = self._processes.pop(name, None)
        if process is not None:
            process.terminate()
            while process.poll() is None:
                await asyncio.sleep(0.01)
        else:
            await self._stop_by_pid_file(name)

    def open(self, name: str) -> Database:
        return QubesDB(str(self._socket(name)))

    def _socket(self, name: str) -> Path:
        return self._run / f"qubesdb.{name}.sock"

    async def _stop_by_pid_file(self, name: str) -> None:
        """End a daemon that an earlier qubesd has started, if that number is still its own."""
        try:
            pid = int(self._socket(name).with_suffix(".pid").read_text())
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError):
            return
        if b"lab.qubesdb.daemon" in words and name.encode() in words:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
            deadline = time.monotonic() + START_TIME
            while self._socket(name).exists() and time.monotonic() < deadline:
                await asyncio.sleep(0.02)

    def _answers(self, name: str) -> bool:
        try:
            self.open(name).close()
        except Error:
            return False
        return True
