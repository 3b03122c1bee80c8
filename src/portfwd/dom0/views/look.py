# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Looks at the databases of qubes for how far each entry has come. Reads a few keys of each; writes nothing.

Every value read may come from the qube: it is matched against fixed words and parsed, never passed on.
Only single keys are read, whose values QubesDB bounds, and no more of them than there are entries: further keys that a
qube writes cost nothing here.
"""

import contextlib
import ipaddress
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from portfwd.api.status import HopState, Interface
from portfwd.base.qubesdb_client import Store
from portfwd.dom0.planning.plan import Plan
from portfwd.wire import limits
from portfwd.wire.acknowledgement import (
    IGNORED,
    IGNORED_MAX,
    IN_KERNEL,
    UPLINKS,
    Acknowledgement,
    AgentState,
    Ignored,
    Result,
)
from portfwd.wire.entry import Commit, Entry
from portfwd.wire.errors import RefusedError
from portfwd.wire.values import Family, IPAddress, QubeName, RuleId, parse_address

EntryPlace = tuple[QubeName, str]
"""An entry on a qube: its name, and the entry's key."""

_OWN_ADDRESS = {Family.V4: "/qubes-ip", Family.V6: "/qubes-ip6"}
_RESULTS = {r.value.encode(): HopState.APPLIED if r is Result.OK else HopState(r.value) for r in Result}
_IN_KERNEL = {result.value.encode() for result in IN_KERNEL}
_UPLINKS_MAX = 64


@dataclass(frozen=True, slots=True)
class Look:
    """The result of a look at the databases.

    `states` leaves out entries that are only planned. For entrances that report them: `uplinks`, their addresses,
    and `ignored`, the interfaces and networks that the agent ignores.
    """

    states: Mapping[EntryPlace, HopState]
    uplinks: Mapping[QubeName, tuple[Interface, ...]]
    ignored: Mapping[QubeName, tuple[Ignored, ...]] = field(default_factory=dict)

    def state(self, name: QubeName, entry: Entry) -> HopState:
        """How far an entry has come."""
        return self.states.get((name, entry.key), HopState.PLANNED)


def look_at(
    rules: Iterable[RuleId],
    planned: Plan,
    databases: Mapping[QubeName, Store],
    addresses: Mapping[QubeName, Mapping[Family, str]],
    unwritten: Mapping[QubeName, str] = MappingProxyType({}),
    told: Callable[[QubeName, str], bool] = lambda _name, _key: True,
) -> Look:
    """Look once at each database on the paths of these rules.

    `addresses`: those that each qube gets at its next start. `unwritten`: the qubes to which the last plan could
    not be written. `told`: whether a qube may have received the entry with that key before.
    """
    wanted: dict[QubeName, list[Entry]] = {}
    entrances = set()
    before: dict[EntryPlace, EntryPlace] = {}
    for rule in rules:
        path = planned.paths.get(rule, ())
        last: dict[str, EntryPlace] = {}
        for name, entry in path:
            wanted.setdefault(name, []).append(entry)
            place = (name, entry.key)
            if name == path[0][0]:
                entrances.add(name)
            else:
                before[place] = last[entry.key]
            last[entry.key] = place
    moved: set[EntryPlace] = set()
    states: dict[EntryPlace, HopState] = {}
    uplinks: dict[QubeName, tuple[Interface, ...]] = {}
    ignored: dict[QubeName, tuple[Ignored, ...]] = {}
    for name, entries in wanted.items():
        # Of a database that cannot be read it is known at most that the qube never received the entry.
        states |= {(name, entry.key): HopState.UNKNOWN for entry in entries if told(name, entry.key)}
        if name not in databases:
            continue
        database = databases[name]
        try:
            if name in unwritten:
                states |= {(name, e.key): _since_before(database, e, HopState.PLANNED) for e in entries}
                continue
            for entry, state in _entry_states(database, entries, planned.entries[name]):
                states[name, entry.key] = state
            inner = [entry for entry in entries if (name, entry.key) in before]
            families = {entry.family for entry in inner}
            old = {family for family in families if _moved(database, family, addresses.get(name, {}))}
            moved |= {(name, entry.key) for entry in inner if entry.family in old}
            if name in entrances:
                ignored[name] = _ignored(database)
                if found := _uplinks(database):
                    uplinks[name] = found
        except (RuntimeError, OSError):
            continue
    _tell_restarts(states, moved, before)
    return Look(states, uplinks, ignored)


def confirmed(database: Store, wanted: Iterable[Entry]) -> bool | None:
    """Whether a qube confirms that its kernel holds exactly what is wanted; None where nothing of ours ever stood.

    False also when that is unknown: its database does not answer, or does not hold what is wanted.
    """
    try:
        commit, acknowledgement = _words(database)
    except (RuntimeError, OSError, RefusedError):
        return False
    if commit is None:
        # An acknowledgement without its commit: dom0's daemon has lost it, and the qube may hold those entries.
        return None if acknowledgement is None or acknowledgement.generation == 0 else False
    return (
        commit.covers({entry.key: entry.value for entry in wanted})
        and acknowledgement is not None
        and acknowledgement.generation == commit.generation
        and acknowledgement.state is AgentState.APPLIED
    )


def _words(database: Store) -> tuple[Commit | None, Acknowledgement | None]:
    """The last commit to a qube, and its last acknowledgement. Raises RefusedError, and what the database raises."""
    untrusted_commit = database.read(limits.BASE)
    untrusted_ack = database.read(limits.STATUS_BASE)
    return (
        None if untrusted_commit is None else Commit.parse(_text(untrusted_commit)),
        None if untrusted_ack is None else Acknowledgement.parse(_text(untrusted_ack)),
    )


def _tell_restarts(
    states: dict[EntryPlace, HopState], moved: Iterable[EntryPlace], before: Mapping[EntryPlace, EntryPlace]
) -> None:
    """What arrives at places that have moved is for an address that their qube gets with its restart.

    Until then the place before each of them has no way there, which is not that one's fault.
    """
    for place in moved:
        if states.get(place) is HopState.APPLIED:
            states[place] = HopState.RESTART
        if states.get(before[place]) is HopState.NO_ROUTE:
            states[before[place]] = HopState.APPLIED


Standing = Callable[[Iterable[str]], bool]


def standing(database: Store | None, wanted: Iterable[Entry], *, heard: bool) -> Standing | None:
    """A test whether a qube may hold entries with some keys that dom0 does not want (any more).

    None when it has confirmed that it holds exactly what is wanted. `database` None: it cannot be read.
    `heard`: a qube that has never acknowledged anything holds nothing.
    """
    if database is None:
        return _anything
    try:
        if confirmed(database, wanted) is not False:
            return None
        _, acknowledgement = _words(database)
    except (RuntimeError, OSError, RefusedError):
        return _anything
    if acknowledgement is None and heard:
        return None
    if acknowledgement is None or acknowledgement.state is AgentState.FAILED:
        return _anything

    def by_its_words(keys: Iterable[str]) -> bool:
        try:
            return any(database.read(limits.STATUS + key) is not None for key in keys)
        except (RuntimeError, OSError):
            return True

    return by_its_words


def _anything(_keys: Iterable[str]) -> bool:
    return True


def _entry_states(
    database: Store, entries: Iterable[Entry], all_entries: Iterable[Entry]
) -> Iterator[tuple[Entry, HopState]]:
    try:
        commit, acknowledgement = _words(database)
    except RefusedError:
        yield from ((entry, HopState.UNCLEAR) for entry in entries)
        return
    # One digest instead of a read per entry; entries are compared only where it differs.
    whole = commit is not None and commit.covers({entry.key: entry.value for entry in all_entries})
    for entry in entries:
        if not whole and database.read(entry.path) != entry.value.encode():
            yield entry, _since_before(database, entry, HopState.PLANNED)
        elif commit is None or acknowledgement is None or acknowledgement.generation != commit.generation:
            yield entry, _since_before(database, entry, HopState.WRITTEN)
        elif acknowledgement.state is not AgentState.APPLIED:
            yield entry, HopState(acknowledgement.state.value)
        else:
            untrusted_result = database.read(limits.STATUS + entry.key)
            yield entry, _RESULTS.get(untrusted_result or b"", HopState.UNCLEAR)


def _since_before(database: Store, entry: Entry, new: HopState) -> HopState:
    """The state of an entry of a commit that its qube has not answered: `new`, unless it stood in the kernel before.

    Agents keep a word for each entry of the last commit that they have applied, and only for those.
    """
    return HopState.UNKNOWN if database.read(limits.STATUS + entry.key) in _IN_KERNEL else new


def _moved(database: Store, family: Family, addresses: Mapping[Family, str]) -> bool:
    """Whether a qube still uses another address than dom0 has for it now; it takes the new one at its next start."""
    untrusted_present = database.read(_OWN_ADDRESS[family])
    if untrusted_present is None or family not in addresses:
        return False
    present = _address(_text(untrusted_present))
    return present is not None and present != _address(addresses[family])


def _uplinks(database: Store) -> tuple[Interface, ...]:
    """The addresses of the uplinks; none when a single word is not an address with its prefix length."""
    untrusted_words = _text(database.read(limits.STATUS + UPLINKS) or b"").split(" ")
    try:
        found = tuple(_interface(untrusted_word) for untrusted_word in untrusted_words if untrusted_word)
    except ValueError:
        return ()
    return found if len(found) <= _UPLINKS_MAX else ()


def _ignored(database: Store) -> tuple[Ignored, ...]:
    """The ignored interfaces and networks; malformed words are skipped, since nothing depends on them."""
    found = []
    for untrusted_word in _text(database.read(limits.STATUS + IGNORED) or b"").split(" ")[:IGNORED_MAX]:
        with contextlib.suppress(RefusedError):
            found.append(Ignored.parse(untrusted_word))
    return tuple(found)


def _interface(untrusted_word: str) -> Interface:
    untrusted_address, _, untrusted_bits = untrusted_word.partition("/")
    return ipaddress.ip_interface(f"{parse_address(untrusted_address)}/{int(untrusted_bits)}")


def _address(text: str) -> IPAddress | None:
    try:
        return parse_address(text)
    except RefusedError:
        return None


def _text(untrusted_value: bytes) -> str:
    return untrusted_value.decode("ascii", "replace")
