# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The exit codes of qvm-port-forward; scripts rely on them (docs/qvm-port-forward.md)."""

import enum


class Exit(enum.IntEnum):
    """How a command ended."""

    DONE = 0
    """Done; after add, edit and resume: every hop lets clients pass. After remove and pause: every hop has shut it."""
    REFUSED = 1
    """Refused or failed, and nothing has changed."""
    USAGE = 2
    """The command line makes no sense, or names a qube or forward that does not exist; nothing has changed."""
    NOT_OPEN = 3
    """Stored, but not open on every hop, or not yet.

    Removed or paused, but some hop has not confirmed that, or dom0 could not store it.

    Or check could not find out whether packets pass.
    """
    FAULT = 4
    """check found what is in the way."""
    LOST = 5
    """The change was sent and no answer came: it may have been made."""
