# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Words of the Admin API's views, as dom0 prints them and clients read them back. See docs/formats.md."""

import enum
from collections.abc import Hashable, Iterable

UNSTORED = "ForwardsUnstoredError"
"""The class of the error that says: what was to be shut is shut, but dom0 could not store it."""


class HopState(enum.StrEnum):
    """How far one entry has come at its hop: by dom0's own knowledge, else by a word of the agent (wire.status)."""

    PLANNED = "planned"
    """Not in the qube's QubesDB yet."""
    WRITTEN = "written"
    """The qube has not acknowledged yet."""
    APPLIED = "applied"
    INCOMPLETE = "incomplete"
    UNCLEAR = "unclear"
    REFUSED = "refused"
    CLASH = "clash"
    OCCUPIED = "occupied"
    EXPIRED = "expired"
    UNRESOLVED = "unresolved"
    NO_BASE = "no-base-firewall"
    FAILED = "failed"
    RESTART = "restart-needed"
    """Applied, but the qube still has the address of its start."""
    UNKNOWN = "unknown"
    """It was open, and may be so still: the qube, or its QubesDB, has not answered since."""


class Doors(enum.StrEnum):
    """Whether clients can pass all hops of a forward. Open and shut are said on evidence only."""

    OPEN = "open"
    SHUT = "shut"
    UNKNOWN = "unknown"


NOT_KNOWN = frozenset(
    (HopState.PLANNED, HopState.WRITTEN, HopState.INCOMPLETE, HopState.UNCLEAR, HopState.FAILED, HopState.UNKNOWN)
)
"""What says neither that an entry is in the kernel nor that it is not: its qube has to answer first."""


def doors_of(states: Iterable[tuple[Hashable, HopState]]) -> Doors:
    """The doors of a forward by the state of each entry, given with the way (family, protocol) that it is for.

    One way that is open makes it open; one whose hops have all answered, and not all with yes, is shut.
    """
    ways: dict[Hashable, set[HopState]] = {}
    for way, state in states:
        ways.setdefault(way, set()).add(state)
    found = {
        Doors.OPEN if said == {HopState.APPLIED} else Doors.SHUT if said - NOT_KNOWN - _YES else Doors.UNKNOWN
        for said in ways.values()
    }
    return next((doors for doors in (Doors.OPEN, Doors.UNKNOWN, Doors.SHUT) if doors in found), Doors.UNKNOWN)


_YES = {HopState.APPLIED}


class CheckResult(enum.StrEnum):
    """How one look of the diagnosis turned out. A hint is no fault of any hop."""

    OK = "ok"
    BAD = "bad"
    HINT = "hint"
    UNKNOWN = "unknown"
