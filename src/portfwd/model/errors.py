# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Why a rule is not accepted. Does no I/O."""

from collections.abc import Iterable

from portfwd.wire.errors import RefusedError, shown

# Comparing is quadratic in the length of a stranger's word; no key is longer than this.
_COMPARED = 40


class RuleError(RefusedError):
    """A rule that is not accepted: the word and the reason; if known, what was meant, and the line (counted from 1)."""

    def __init__(self, word: str, reason: str, hint: str | None = None, line: int | None = None) -> None:
        self.word = word
        self.reason = reason
        self.hint = hint
        self.line = line
        place = "" if line is None else f"line {line}: "
        question = "" if hint is None else f"; did you mean {shown(hint)}?"
        super().__init__(f"{place}{shown(word)}: {reason}{question}")

    def at(self, line: int) -> "RuleError":
        """The same error with its line number."""
        return RuleError(self.word, self.reason, self.hint, line)


def closest(word: str, known: Iterable[str]) -> str | None:
    """The known word that this one probably misspells, or None."""
    # Imported here: only an error needs it, and every start of the program would pay for it.
    import difflib

    return next(iter(difflib.get_close_matches(word[:_COMPARED], list(known), n=1)), None)
