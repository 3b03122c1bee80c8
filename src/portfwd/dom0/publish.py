# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""publish(): bring each qube's QubesDB subtree to what the plan wants, by the smallest set of writes, then commit.

Takes wanted entries and database handles, writes. Never reads anything back as truth: what a qube has put under our
subtree is compared byte by byte and overwritten. One dead database never keeps another from being written.
"""

import time
from collections.abc import Callable, Container, Iterable, Mapping

from portfwd.wire import limits
from portfwd.wire.entry import Commit, Entry
from portfwd.wire.errors import RefusedError, shown
from portfwd.wire.qdb_client import Database
from portfwd.wire.values import QubeName


class Publisher:
    """Writes plans. Holds the last generation number only, so that numbers never repeat or go back."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._generation = 0

    def publish(
        self,
        entries: Mapping[QubeName, tuple[Entry, ...]],
        databases: Mapping[QubeName, Database],
        again: Container[QubeName] = (),
    ) -> dict[QubeName, str]:
        """Write what differs, in every database; commit `again` where nothing does.

        Returns an error text per qube that could not be written.
        """
        failed: dict[QubeName, str] = {}
        for name, database in databases.items():
            wanted = {entry.key: entry.value for entry in entries.get(name, ())}
            try:
                self._bring(database, wanted, again=name in again)
            except (RuntimeError, OSError, ValueError) as error:
                failed[name] = f"QubesDB of '{name}' cannot be written: {shown(error)}"
        return failed

    def _bring(self, database: Database, wanted: Mapping[str, str], *, again: bool) -> None:
        untrusted_now = database.multiread(limits.ENTRIES)
        untrusted_commit = database.read(limits.BASE)
        if untrusted_commit is None and not untrusted_now and not wanted:
            return
        keep = {limits.ENTRIES + key: value.encode() for key, value in wanted.items()}
        extra = [path for path in untrusted_now if path not in keep]
        differing = [path for path, value in keep.items() if untrusted_now.get(path) != value]
        if not again and not extra and not differing and _is_commit_of(untrusted_commit, wanted):
            return
        _remove(database, extra)
        for path in differing:
            database.write(path, keep[path])
        self._generation = max(int(self._now() * 1000), self._generation + 1)
        database.write(limits.BASE, str(Commit.over(self._generation, wanted)))


def _remove(database: Database, paths: Iterable[str]) -> None:
    for path in paths:
        database.rm(path)


def _is_commit_of(untrusted_commit: bytes | None, wanted: Mapping[str, str]) -> bool:
    if untrusted_commit is None:
        return False
    try:
        return Commit.parse(untrusted_commit.decode("ascii", "replace")).covers(wanted)
    except RefusedError:
        return False
