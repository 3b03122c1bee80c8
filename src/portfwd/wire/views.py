# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Words of the Admin API's views, as dom0 prints them and clients read them back. See docs/formats.md."""

import enum

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


class CheckResult(enum.StrEnum):
    """How one look of the diagnosis turned out. A hint is no fault of any hop."""

    OK = "ok"
    BAD = "bad"
    HINT = "hint"
    UNKNOWN = "unknown"
