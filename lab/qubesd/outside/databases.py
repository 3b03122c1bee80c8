# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The QubesDB daemons on dom0's side, one per run of a qube. They outlive qubesd, as the real ones do.

They also outlive their domain: nobody ends them, each sees for itself, within two polls, that its domain is gone, and
serves its socket until then. The daemon of the next run replaces the socket file.
"""

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Protocol

from lab.qubesdb.daemon import POLL
from portfwd.base.qubesdb_client import Database, Error, QubesDB

_PROJECT = Path(__file__).parents[3]
START_TIME = 20.0
"""Seconds that a daemon may take until it answers."""


class DatabaseHost(Protocol):
    """What qubesd needs of the QubesDB daemons."""

    async def start(self, name: str, domid: int) -> None:
        """Start the daemon of a domain; back when it answers. Raises Error."""

    def open(self, name: str) -> Database:
        """Connect to it. Raises Error."""


class Databases:
    """Real daemons. `run` holds their sockets, `link` a folder for each domain, which is gone when that is dead.

    `poll` is the time in seconds between two looks of a daemon whether its domain lives.
    """

    def __init__(self, run: Path, link: Path, poll: float = POLL) -> None:
        self._run = run
        self._link = link
        self._poll = poll
        # No processes of asyncio: those it kills when its loop ends, and a qube's daemon outlives qubesd.
        self._processes: list[subprocess.Popen[bytes]] = []

    async def start(self, name: str, domid: int) -> None:
        self._processes = [process for process in self._processes if process.poll() is None]
        link = self._link / str(domid) / "111.sock"
        link.parent.mkdir(parents=True, exist_ok=True)
        self._run.mkdir(parents=True, exist_ok=True)
        options = ("--dom0", name, "--socket", str(self._socket(name)), "--link", str(link), "--poll", str(self._poll))
        command = (sys.executable, "-m", "lab.qubesdb.daemon", *options)
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, cwd=_PROJECT, start_new_session=True)
        self._processes.append(process)
        try:
            async with asyncio.timeout(START_TIME):
                while not self._serves(name, process.pid):
                    if process.poll() is not None:
                        raise Error(f"QubesDB daemon of {name} ended with code {process.returncode}")
                    await asyncio.sleep(0.02)
        except TimeoutError:
            process.terminate()
            raise Error(f"QubesDB daemon of {name} does not answer") from None

    def open(self, name: str) -> Database:
        return QubesDB(str(self._socket(name)))

    def _socket(self, name: str) -> Path:
        return self._run / f"qubesdb.{name}.sock"

    def _serves(self, name: str, pid: int) -> bool:
        """Whether it is this daemon that has the socket; the file may still be that of the run before."""
        try:
            return int(self._socket(name).with_suffix(".pid").read_text()) == pid
        except (OSError, ValueError):
            return False
