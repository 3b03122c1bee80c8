# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""publish(): make a qube's QubesDB subtree equal to the plan by the smallest set of writes, then commit.

Takes wanted entries and a database, and writes. Nothing read back counts as true: keys that a qube put under our
subtree are compared byte by byte and overwritten. A dead database never keeps another from being written.
"""

import threading
import time
from collections.abc import Callable, Iterable, Mapping

from portfwd.base.qubesdb_client import Store, TooLongError
from portfwd.wire import limits
from portfwd.wire.acknowledgement import Acknowledgement, AgentState
from portfwd.wire.entry import Commit, Entry
from portfwd.wire.errors import RefusedError, shown
from portfwd.wire.values import QubeName


class Publisher:
    """Writes plans. Keeps the last generation number, which never repeats or goes back, and what qubes may hold."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._generation = 0
        self._lock = threading.Lock()
        self._told: set[QubeName] = set()
        self._committed: dict[QubeName, frozenset[QubeName]] = {}
        self._may_hold: dict[QubeName, frozenset[QubeName]] = {}
        self._keys: dict[QubeName, frozenset[str]] = {}

    def may_know(self, name: QubeName, key: str) -> bool:
        """Whether a qube may have received an entry; writes of an earlier qubesd are not known."""
        return name not in self._keys or key in self._keys[name]

    def may_hold(self, name: QubeName, owner: QubeName) -> bool:
        """Whether the kernel of a qube may still hold entries for forwards of `owner`, as far as dom0 knows.

        Writes of an earlier qubesd are not known until the qube has confirmed a commit.
        """
        return name not in self._may_hold or owner in self._may_hold[name]

    def confirmed(self, name: QubeName, owners: Iterable[QubeName]) -> None:
        """Note that the qube's kernel holds exactly its database's entries, for the forwards of `owners`."""
        self._may_hold[name] = frozenset(owners) | self._committed.get(name, frozenset())

    def ended(self, name: QubeName) -> None:
        """Note that the qube has stopped: its kernel holds nothing."""
        self._committed.pop(name, None)
        self._may_hold[name], self._keys[name] = frozenset(), frozenset()

    def publish(
        self,
        name: QubeName,
        database: Store,
        entries: Iterable[Entry],
        owners: Iterable[QubeName] = (),
        *,
        again: bool = False,
    ) -> str:
        """Write the differences into the database of one qube; `again` commits even when there are none.

        `owners`: the qubes whose forwards these entries serve.

        Returns why that failed, or ''. Several threads may call this for different qubes.
        """
        wanted, ours = {entry.key: entry.value for entry in entries}, frozenset(owners)
        try:
            if wanted:
                self._told.add(name)
            if name in self._may_hold:
                self._may_hold[name] = ours | self._still_held(name, database)
            self._bring(database, wanted, again=again, told=name in self._told)
            self._committed[name], self._keys[name] = ours, frozenset(wanted)
            if not wanted:
                self._told.discard(name)
        except (RuntimeError, OSError, ValueError) as error:
            return f"QubesDB of '{name}' cannot be written: {shown(error)}"
        return ""

    def _still_held(self, name: QubeName, database: Store) -> frozenset[QubeName]:
        """Before a new commit: the owners whose entries the qube may hold, fewer once it has applied the last."""
        held, last = self._may_hold[name], self._committed.get(name)
        return last if last is not None and held != last and _applied(database) else held

    def _bring(self, database: Store, wanted: Mapping[str, str], *, again: bool, told: bool) -> None:
        """`told`: the qube has received entries, and may still hold them although its database here is empty.

        Emptying needs no reading, so that nothing a qube puts there keeps it open.
        """
        untrusted_commit = database.read(limits.BASE)
        if not wanted:
            if told or again or not (untrusted_commit is None or _is_commit_of(untrusted_commit, wanted)):
                _clear(database)
                self._commit(database, wanted)
            return
        try:
            untrusted_now = database.multiread(limits.ENTRIES)
        except TooLongError:
            # More than we write, since we write no more than can be read: others have written here.
            _clear(database)
            untrusted_now, untrusted_commit = {}, None
        if untrusted_commit is None and not untrusted_now:
            _clear(database)
        keep = {limits.ENTRIES + key: value.encode() for key, value in wanted.items()}
        extra = [path for path in untrusted_now if path not in keep]
        differing = [path for path, value in keep.items() if untrusted_now.get(path) != value]
        if not again and not extra and not differing and _is_commit_of(untrusted_commit, wanted):
            return
        _remove(database, extra)
        for path in differing:
            database.write(path, keep[path])
        self._commit(database, wanted)

    def _commit(self, database: Store, wanted: Mapping[str, str]) -> None:
        with self._lock:
            self._generation = generation = max(int(self._now() * 1000), self._generation + 1)
        database.write(limits.BASE, str(Commit.over(generation, wanted)))


def _clear(database: Store) -> None:
    """Remove the subtree, also from the qube's own database, which may hold keys of an earlier daemon of dom0.

    A restarted daemon of dom0 gives the running qube its keys, but removes none there. A removal reaches
    the qube only where it removes something here.
    """
    database.write(f"{limits.ENTRIES}cleared", "")
    database.rm(limits.ENTRIES)


def _remove(database: Store, paths: Iterable[str]) -> None:
    for path in paths:
        database.rm(path)


def _applied(database: Store) -> bool:
    """Whether the qube has acknowledged the last commit as applied."""
    try:
        commit = Commit.parse((database.read(limits.BASE) or b"").decode("ascii", "replace"))
        said = Acknowledgement.parse((database.read(limits.STATUS_BASE) or b"").decode("ascii", "replace"))
    except RefusedError:
        return False
    return said.state is AgentState.APPLIED and said.generation == commit.generation


def _is_commit_of(untrusted_commit: bytes | None, wanted: Mapping[str, str]) -> bool:
    if untrusted_commit is None:
        return False
    try:
        return Commit.parse(untrusted_commit.decode("ascii", "replace")).covers(wanted)
    except RefusedError:
        return False
