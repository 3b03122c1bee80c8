# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The words by which programs tell dom0's errors apart; the texts are for people and may change.

Source: the Admin API of Qubes OS. An error is the name of a class in qubesd and a text, nothing else. So the word is
the class: it stands beside the text in every answer, and who does not know it shows the text alone. qubesadmin, and our
clients before there were words, take a class that they do not know for a QubesException. A word in front of the text
would be shown to people by all of these, and a text that begins so by chance would be taken for one. The field for the
traceback is empty unless qubesd debugs, and further ones behind the text break the stock's client, which formats it.
"""

import enum

from portfwd.wire.errors import RefusedError

UNEXPECTED = "ProtocolError"
"""The class of qubesd's own refusals of a call that does not exist; without our extension every call of ours is one."""
NO_QUBE = "QubesVMNotFoundError"
"""The class of qubesd's own refusal where there is no such qube, or none that the caller may see."""


class ErrorWord(enum.StrEnum):
    """Errors that a program may react to. Nothing has changed, except with UNSTORED."""

    TAKEN = "ForwardsTakenError"
    """Another forward holds a port that the list wants; another port may be free."""
    CHANGED = "ForwardsChangedError"
    """The list is no longer the one that the token names: read it again."""
    UNREADABLE = "ForwardsUnreadableError"
    """The forwards of the qube cannot be read; only `anew` is possible."""
    BUSY = "ForwardsBusyError"
    """Too many calls at the same time; try again in some seconds."""
    UNSTORED = "ForwardsUnstoredError"
    """What was to be shut is shut, but dom0 could not store it."""


class WordedError(RefusedError):
    """A refusal of dom0 that has a word; all others are sent as QubesValueError."""

    def __init__(self, word: ErrorWord, text: str) -> None:
        self.word = word
        super().__init__(text)
