# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The one family of errors that a parser of ours may raise.

A parser takes a stranger's words. Whatever they are, the only class that escapes is RefusedError, and its text is
fit to be shown to the user: ASCII, no percent sign, the offending word in quotes (Qubes clients format error texts
with the % operator, so a percent sign would crash them).
"""

_SHOWN = 80


def shown(word: object) -> str:
    """Quote a stranger's word for an error text: printable ASCII, no percent sign, at most 80 characters."""
    text = str(word)
    clean = "".join(c if " " <= c <= "~" and c not in "%'" else "?" for c in text[:_SHOWN])
    return f"'{clean}...'" if len(text) > _SHOWN else f"'{clean}'"


class RefusedError(ValueError):
    """A value, rule or entry that is not accepted; nothing of it has been applied."""
