# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Reads from QubesDB what dom0 wants of this qube, and writes our status keys. No nftables here.

Reading is all or nothing: entries count only when the commit covers exactly what stands there.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field

from portfwd.base.qubesdb_client import Database
from portfwd.wire import limits
from portfwd.wire.acknowledgement import IGNORED, UPLINKS, WAY_OUT, Acknowledgement, AgentState, Result, WayOut
from portfwd.wire.entry import Commit, Entry
from portfwd.wire.errors import RefusedError
from portfwd.wire.values import Family, IPAddress, parse_address

_REMEMBERED = 1 << 15
GATEWAYS = {Family.V4: "/qubes-gateway", Family.V6: "/qubes-gateway6"}
"""Gateways of the uplink to a net qube, as dom0 writes them."""


@dataclass(frozen=True, slots=True)
class Desired:
    """The entries of one generation; `refused` names the keys whose entries this agent does not understand."""

    generation: int = 0
    entries: tuple[Entry, ...] = ()
    refused: tuple[str, ...] = ()
    complete: bool = True

    @property
    def exact(self) -> bool:
        """Whether dom0 has committed exactly these entries, so that any other is gone.

        A database without a commit has lost what dom0 wrote, or has not received it yet.
        """
        return self.complete and self.generation > 0


def read_desired(database: Database) -> Desired:
    """Read the committed set; complete=False when entries and commit do not belong together (yet)."""
    raw_commit = database.read(limits.BASE)
    raw_entries = database.multiread(limits.ENTRIES)
    if raw_commit is None:
        return Desired(complete=not raw_entries)
    texts = {path.removeprefix(limits.ENTRIES): _text(value) for path, value in raw_entries.items()}
    try:
        commit = Commit.parse(_text(raw_commit))
    except RefusedError:
        return Desired(complete=False)
    if not commit.covers(texts):
        return Desired(commit.generation, complete=False)
    entries, refused = [], []
    for key, value in texts.items():
        try:
            entries.append(_decode(key, value))
        except RefusedError:
            refused.append(key)
    return Desired(commit.generation, tuple(entries), tuple(refused))


@functools.lru_cache(maxsize=_REMEMBERED)
def _decode(key: str, value: str) -> Entry:
    """Entry.decode with a cache, since each change reads the whole set again and most of it is unchanged."""
    return Entry.decode(key, value)


def read_gateways(database: Database) -> dict[Family, IPAddress]:
    """The gateways of the uplink to a net qube."""
    found = {}
    for family, path in GATEWAYS.items():
        raw = database.read(path)
        try:
            address = None if raw is None else parse_address(_text(raw))
        except RefusedError:
            continue
        if address is not None and address.version == family:
            found[family] = address
    return found


def read_results(database: Database) -> dict[str, Result]:
    """The status of each entry as the previous agent left it."""
    found = {}
    for path, value in database.multiread(limits.STATUS).items():
        if (word := _text(value)) in list(Result):
            found[path.removeprefix(limits.STATUS)] = Result(word)
    return found


def remove_status(database: Database) -> None:
    """Remove our status keys."""
    database.write(limits.STATUS + UPLINKS, "")
    database.rm(limits.STATUS)
    remove(database, limits.STATUS_BASE)


def remove(database: Database, path: str) -> None:
    """Remove a key of ours, also one that dom0's daemon has lost.

    Both daemons die when one has to remove a key that it lacks, and dom0's lacks what was written before it was started
    anew. So the key is written first.
    """
    database.write(path, "")
    database.rm(path)


def _text(value: bytes) -> str:
    return value.decode("ascii", "replace")


@dataclass
class Reporter:
    """Writes our status subtree: only keys that changed since the last report."""

    database: Database
    _written: dict[str, str] = field(default_factory=dict)

    def forget(self) -> None:
        """Write every key with the next report, since dom0's daemon may have lost them."""
        self._written = {}

    def report(
        self,
        generation: int,
        state: AgentState,
        results: Mapping[str, Result],
        uplinks: str,
        way_out: WayOut | None = WayOut.UPLINK,
        ignored: str = "",
    ) -> None:
        """Write the word of each entry, then the acknowledgement. A way out that is not known is left out."""
        wanted = {limits.STATUS + key: result.value for key, result in results.items()}
        wanted[limits.STATUS + UPLINKS] = uplinks
        if ignored:
            wanted[limits.STATUS + IGNORED] = ignored
        if way_out is not None:
            wanted[limits.STATUS + WAY_OUT] = way_out.value
        if not self._written:
            for path in self.database.multiread(limits.STATUS):
                if path not in wanted:
                    remove(self.database, path)
        for path in self._written.keys() - wanted.keys() - {limits.STATUS_BASE}:
            remove(self.database, path)
        wanted[limits.STATUS_BASE] = str(Acknowledgement(generation, state))
        for path, value in wanted.items():
            if self._written.get(path) != value:
                self.database.write(path, value)
        self._written = wanted
