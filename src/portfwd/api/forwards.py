# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The list of a qube's forwards: answered by Get+forward, the payload of Set+forward and Get+forward.plan. No I/O.

    action=forward ...                  a line for each rule, as model/forward.py prints it
    kept=PATH                           the answer of Set+forward.anew: where the file is that could not be read

dom0 refuses a word that it does not know, since it cannot do what that asks for. A client keeps the words of a newer
dom0 with their rule, and gives them back with the list: so that it can show, and change, what it does know.
"""

import hashlib
from collections.abc import Iterable
from pathlib import PurePath, PurePosixPath
from typing import NamedTuple, NewType, Self

from portfwd.api.lines import lines_of, split, text_of
from portfwd.model.errors import RuleError
from portfwd.model.forward import ForwardRule, parse_forward
from portfwd.wire import limits

Token = NewType("Token", str)
"""Names one state of a list of forwards: the first 32 hexadecimal digits of a SHA-256 over its text."""


def token(text: str) -> Token:
    """The token of the list with this text."""
    return Token(hashlib.sha256(text.encode()).hexdigest()[:32])


class Forwards(NamedTuple):
    """The forwards of one qube at one moment, as a client reads them; the token names that moment."""

    rules: tuple[ForwardRule, ...]
    token: Token

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the answer of Get+forward. Raises RuleError."""
        return cls(parse_forwards(text, newer=True), token(text))


def format_forwards(rules: Iterable[ForwardRule]) -> str:
    """The inverse of parse_forwards."""
    return text_of(map(str, rules))


def parse_forwards(text: str, *, newer: bool = False) -> tuple[ForwardRule, ...]:
    """Read a whole list, each line with its line end. `newer`: keep unknown words of a newer dom0.

    Raises RuleError, with the line number, for a rule that is not accepted, for two rules that do the same, and for the
    first one of too many.
    """
    *lines, rest = text.split("\n")
    if rest:
        raise RuleError(rest, "the last line has no line end", line=len(lines) + 1)
    if len(lines) > limits.FORWARDS_MAX:
        reason = f"a qube has at most {limits.FORWARDS_MAX} forwards, these are {len(lines)}"
        raise RuleError(lines[limits.FORWARDS_MAX], reason, line=limits.FORWARDS_MAX + 1)
    rules: dict[str, ForwardRule] = {}
    for number, line in enumerate(lines, start=1):
        try:
            rule = parse_forward(line, newer=newer)
            if rule.does in rules:
                raise RuleError(line, f"does the same as line {list(rules).index(rule.does) + 1}")
        except RuleError as error:
            raise error.at(number) from None
        rules[rule.does] = rule
    return tuple(rules.values())


def format_kept(path: PurePath) -> str:
    """The answer of Set+forward.anew."""
    return text_of([f"kept={path}"])


def parse_kept(text: str) -> PurePosixPath | None:
    """The inverse of format_kept; None when the answer names no file. Raises RefusedError."""
    found = [words["kept"] for words in map(split, lines_of(text)) if "kept" in words]
    return PurePosixPath(found[0]) if found else None
