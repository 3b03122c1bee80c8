# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""What forward and ordinary rules share: characters, comment, and the words of a line. Does no I/O.

Source: qubes.firewall of qubes-core-admin, which is what a stock qubesd accepts.
"""

import re
from typing import Self

from portfwd.model.errors import RuleError

_VALUE = re.compile(r"[A-Za-z0-9:;,./_\[\]-]*")
_COMMENT = re.compile(r"[A-Za-z0-9:;,./_\[\] -]*")
_COMMENT_KEY = "comment="


class Comment(str):
    """The user's words on a rule: letters, digits, spaces and : ; , . / - _ [ ], at least one of them."""

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        if not text:
            raise RuleError(_COMMENT_KEY, "the comment is empty")
        if not _COMMENT.fullmatch(text):
            allowed = "letters, digits, spaces and : ; , . / - _ [ ]"
            raise RuleError(_COMMENT_KEY + text, f"a comment has only {allowed}")
        return super().__new__(cls, text)


def check_value(key: str, value: str) -> str:
    """The value itself. Raises RuleError for a character that must not stand in a rule."""
    if not _VALUE.fullmatch(value):
        raise RuleError(f"{key}={value}", "a value has only letters, digits and : ; , . / - _ [ ]")
    return value


def split_line(line: str) -> dict[str, str]:
    """The KEY=VALUE words of a line, parted by exactly one space each; comment= takes the rest of the line.

    Raises RuleError for a word without value, a word given twice, and a stray space.
    """
    options, found, comment = f" {line}".partition(f" {_COMMENT_KEY}")
    words: dict[str, str] = {}
    if not line:
        raise RuleError(line, "the line is empty")
    for word in options[1:].split(" ") if options else ():
        if not word:
            raise RuleError(line, "words are parted by exactly one space")
        key, equals, value = word.partition("=")
        if not equals or not value:
            raise RuleError(word, "a word is KEY=VALUE")
        if key in words:
            raise RuleError(word, "this word is given twice")
        words[key] = value
    if found:
        words["comment"] = comment
    return words
