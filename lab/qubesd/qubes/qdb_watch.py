# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Watches of a running qube's QubesDB, and the event domain-qdb-change:PATH that each change fires.

As in qubesd, the paths outlive a run of the qube, and a connection that breaks during a run is not made anew.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from portfwd.base.qubesdb_client import Database, Error


class QdbWatch:
    """The watched paths of one qube, and the connection that hears of them while it runs.

    `connect` opens a connection or raises Error; `changed` is told which watched path has changed, and where.
    """

    def __init__(
        self, connect: Callable[[], Database], changed: Callable[[str, str], None], log: logging.Logger
    ) -> None:
        self._connect, self._changed, self._log = connect, changed, log
        self._paths: set[str] = set()
        self._connection: Database | None = None
        self._descriptor = -1

    def add(self, path: str) -> None:
        """Watch a path, below which everything is meant when it ends with a slash."""
        if path not in self._paths:
            self._paths.add(path)
            if self._connection is not None:
                self._connection.watch(path)

    def start(self) -> None:
        """Connect, in place of an earlier connection. Must be called in the running loop."""
        self.stop()
        try:
            self._connection = self._connect()
            self._descriptor = self._connection.watch_fd()
            for path in self._paths:
                self._connection.watch(path)
        except Error as error:
            self._log.error("QubesDB is not watched: %s", error)
            self.stop()
            return
        asyncio.get_running_loop().add_reader(self._descriptor, self._read)

    def stop(self) -> None:
        """Close the connection, if there is one."""
        if self._descriptor >= 0:
            asyncio.get_running_loop().remove_reader(self._descriptor)
        if self._connection is not None:
            self._connection.close()
        self._connection, self._descriptor = None, -1

    def _read(self) -> None:
        if self._connection is None:
            return
        try:
            path = self._connection.read_watch()
        except Error:
            self.stop()
            return
        for watched in self._paths:
            if watched == path or (watched.endswith("/") and path.startswith(watched)):
                self._changed(watched, path)
