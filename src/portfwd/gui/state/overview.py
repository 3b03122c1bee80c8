# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""All forwards that a window shows: changes since the last look, search, and the tray's summary."""

import enum
import itertools
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from portfwd.api.status import Doors
from portfwd.client.forward_state import RuleStatus, State
from portfwd.client.text.sentences import left, notes, told
from portfwd.client.text.tables import amount, state_text, where, who
from portfwd.model.forward import ForwardType
from portfwd.wire.values import QubeName, RuleId, SourceWord

_NAMED = 3
"""Qubes named with their reasons in one line, at most."""


class Key(NamedTuple):
    """Names one forward for as long as it does the same."""

    qube: QubeName
    rule: RuleId


class Column(enum.Enum):
    """The columns of a table of forwards."""

    QUBE = enum.auto()
    ENTRANCE = enum.auto()
    STATE = enum.auto()
    TARGET = enum.auto()
    PROTOCOL = enum.auto()
    CLIENTS = enum.auto()
    LEFT = enum.auto()
    TRAFFIC = enum.auto()
    CONNECTIONS = enum.auto()
    COMMENT = enum.auto()


@dataclass(frozen=True, slots=True)
class Changes:
    """The changes of a look: new forwards, changed forwards or states, and those that are gone.

    `untold`: forwards of qubes that dom0 does not tell any more; they may be unchanged, or not.
    """

    added: tuple[RuleStatus, ...]
    changed: tuple[tuple[RuleStatus, RuleStatus], ...]
    removed: tuple[RuleStatus, ...]
    untold: tuple[RuleStatus, ...] = ()


@dataclass(frozen=True, slots=True)
class Summary:
    """How many forwards let clients pass, and whom; for how many that is not known."""

    passing: int
    anyone: int
    lan: int
    chosen: int
    inside: int
    broken: int
    unknown: int
    untold: int = 0

    def __str__(self) -> str:
        unknown = f"{self.unknown} may be open (not known)" if self.unknown else ""
        if not self.passing:
            text = unknown or ("No port is known to be open" if self.untold else "No port is open")
        else:
            kinds = (
                (self.anyone, "to anyone"),
                (self.lan, "to the LAN"),
                (self.chosen, "to chosen addresses"),
                (self.inside, "to other qubes"),
            )
            whom = ", ".join(f"{number} {words}" for number, words in kinds if number)
            text = f"{self.passing} forward{'s' if self.passing > 1 else ''} open: {whom}"
            text = f"{text}; {unknown}" if unknown else text
        text = f"{text}; {self.broken} not working" if self.broken else text
        qubes = "qubes are" if self.untold > 1 else "qube is"
        return f"{text}; {self.untold} {qubes} not told" if self.untold else text


class Overview:
    """The forwards as they were last seen."""

    def __init__(self) -> None:
        self._seen: dict[Key, RuleStatus] = {}

    @property
    def statuses(self) -> tuple[RuleStatus, ...]:
        """All statuses, in the order in which they came."""
        return tuple(self._seen.values())

    def get(self, key: Key) -> RuleStatus | None:
        """The forward with this key; None when there is none (any more)."""
        return self._seen.get(key)

    def update(
        self, look: Iterable[RuleStatus], qube: QubeName | None = None, untold: Collection[QubeName] = ()
    ) -> Changes:
        """Take a new look, at one qube or (None) at all. Forwards missing from it are gone, or their qube is untold."""
        new = {key_of(status): status for status in look}
        old = {key: status for key, status in self._seen.items() if qube in (None, key.qube)}
        changed = tuple((old[key], status) for key, status in new.items() if key in old and old[key] != status)
        added = tuple(status for key, status in new.items() if key not in old)
        missing = [status for key, status in old.items() if key not in new]
        for status in missing:
            del self._seen[key_of(status)]
        self._seen.update(new)
        removed = tuple(status for status in missing if status.qube not in untold)
        return Changes(added, changed, removed, tuple(status for status in missing if status.qube in untold))


def key_of(status: RuleStatus) -> Key:
    """The key of a forward."""
    return Key(status.qube, status.id)


def by_qube(statuses: Iterable[RuleStatus]) -> dict[QubeName, list[RuleStatus]]:
    """The statuses by qube."""
    found: dict[QubeName, list[RuleStatus]] = {}
    for status in statuses:
        found.setdefault(status.qube, []).append(status)
    return found


def cell(status: RuleStatus, column: Column, now: float) -> str:
    """The text of one cell; `now` is in epoch seconds."""
    rule = status.rule
    match column:
        case Column.QUBE:
            return status.qube
        case Column.ENTRANCE:
            # Without an address only the port is shown.
            return where(status).lstrip(":")
        case Column.TARGET:
            return rule.dstports.short
        case Column.PROTOCOL:
            return " + ".join(rule.protos)
        case Column.CLIENTS:
            return who(rule)
        case Column.LEFT:
            return left(rule, now)
        case Column.STATE:
            return state_text(status)
        case Column.TRAFFIC:
            return amount(status.total("bytes"))
        case Column.CONNECTIONS:
            number = status.total("connections")
            return "-" if number is None else str(number)
        case Column.COMMENT:
            return rule.comment or ""


def closely(status: RuleStatus, now: float) -> str:
    """The state of one forward, and on a further line what its entrance ignores."""
    return "\n".join([told(status, now), *notes([status])])


def order(status: RuleStatus, column: Column, now: float) -> tuple[float, str]:
    """The sort key of a column: numbers as numbers, ends by time."""
    rule = status.rule
    match column:
        case Column.TRAFFIC:
            return (status.total("bytes") or 0, "")
        case Column.CONNECTIONS:
            return (status.total("connections") or 0, "")
        case Column.TARGET:
            return (rule.dstports.first, "")
        case Column.ENTRANCE:
            return (rule.srcports.first, where(status))
        case Column.LEFT:
            return (rule.expire if isinstance(rule.expire, int) else float("inf"), left(rule, now))
        case _:
            return (0, cell(status, column, now))


def found_by(status: RuleStatus, search: str) -> bool:
    """Whether every word of a search occurs in the forward's row or among its net qubes."""
    cells = [cell(status, column, 0) for column in Column if column is not Column.LEFT]
    text = " ".join([*cells, *(hop.hop for hop in status.hops)]).lower()
    return all(word in text for word in search.lower().split())


def summary(statuses: Iterable[RuleStatus], untold: Collection[QubeName] = ()) -> Summary:
    """Count what is open, and to whom, and the qubes about which nothing is known."""
    counts: dict[str, int] = dict.fromkeys(("passing", "anyone", "lan", "chosen", "inside", "broken", "unknown"), 0)
    for status in statuses:
        if status.state.passes or status.state is State.PARTLY:
            counts["passing"] += 1
            counts[_kind(status)] += 1
        elif status.doors is Doors.UNKNOWN:
            counts["unknown"] += 1
        if status.state in (State.PROBLEM, State.UNCLEAR):
            counts["broken"] += 1
    return Summary(**counts, untold=len(untold))


def untold_text(untold: Mapping[QubeName, str]) -> str:
    """The untold qubes and the reasons: 'Not told: vault (Request refused), web (...) and 3 more'; or ''."""
    if not untold:
        return ""
    named = [f"{qube} ({reason})" for qube, reason in itertools.islice(untold.items(), _NAMED)]
    more = f" and {len(untold) - _NAMED} more" if len(untold) > _NAMED else ""
    return f"Not told: {', '.join(named)}{more}"


def _kind(status: RuleStatus) -> str:
    rule = status.rule
    if rule.forwardtype is ForwardType.INTERNAL:
        return "inside"
    whole: Mapping[object, str] = {SourceWord.ANYONE: "anyone", SourceWord.NEIGHBOURS: "lan"}
    if rule.srchost in whole:
        return whole[rule.srchost]
    return "anyone" if getattr(rule.srchost, "prefixlen", 1) == 0 else "chosen"
