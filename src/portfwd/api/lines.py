# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The grammar that all answers of dom0 share: lines of words KEY=VALUE. Does no I/O.

Words are parted by one blank, each key stands once in a line, and `action=`, `element=` and `text=` take the rest of
it. The keys of a line tell its kind. A client passes over keys and kinds that it does not know, so that a
newer dom0 may say more. A malformed line is refused, since nothing that a user sees is guessed.
"""

import enum
import functools
import re
from collections.abc import Iterable, Mapping
from typing import NewType, TypeVar

from portfwd.wire.entry import parse_number
from portfwd.wire.errors import RefusedError, shown

UNKNOWN = "-"
"""Stands for a number that nobody has reported."""
TAKE_THE_REST = frozenset(("action", "element", "text"))
NewWord = NewType("NewWord", str)
"""An unknown word of a newer dom0, fit to be shown."""
_KEY = re.compile(r"[a-z][a-z0-9-]*")
_WORD = re.compile(r"[a-z][a-z0-9-]{0,39}")
_YES_NO = {"yes": True, "no": False}
Choice = TypeVar("Choice", bound=enum.StrEnum)


def text_of(lines: Iterable[str]) -> str:
    """An answer of these lines."""
    return "".join(f"{line}\n" for line in lines)


def lines_of(text: str) -> list[str]:
    """The lines of an answer."""
    return text.removesuffix("\n").split("\n") if text else []


def split(line: str) -> dict[str, str]:
    """The words of a line. Raises RefusedError."""
    words: dict[str, str] = {}
    place = 0
    for word in line.split(" "):
        key, equals, value = word.partition("=")
        if not equals or key in words or not _is_key(key):
            raise RefusedError(f"{shown(word)} is not a word of an answer")
        if key in TAKE_THE_REST:
            words[key] = line[place + len(key) + 1 :]
            break
        words[key] = value
        place += len(word) + 1
    return words


@functools.lru_cache(maxsize=1024)
def _is_key(text: str) -> bool:
    return _KEY.fullmatch(text) is not None


def need(words: Mapping[str, str], key: str) -> str:
    """The value of a word that its line must have. Raises RefusedError."""
    if key not in words:
        raise RefusedError(f"{key}= is missing in {shown(join(words))}")
    return words[key]


def join(words: Mapping[str, object]) -> str:
    """The line of these words, in order; words with the value None are left out."""
    return " ".join(f"{key}={value}" for key, value in words.items() if value is not None)


def choice(kind: type[Choice], text: str, otherwise: Choice) -> Choice:
    """The member of an enum; `otherwise` for an unknown word. Raises RefusedError for a malformed one."""
    return known if isinstance(known := choice_or_new(kind, text), kind) else otherwise


def choice_or_new(kind: type[Choice], text: str) -> Choice | NewWord:
    """The member of an enum, or the word itself when it is unknown. Raises RefusedError for a malformed one."""
    try:
        return kind(text)
    except ValueError:
        if not _WORD.fullmatch(text):
            raise RefusedError(f"{shown(text)} is not a word of an answer") from None
        return NewWord(text)


def yes_or_no(text: str, *, otherwise: bool) -> bool:
    """The value of yes or no; `otherwise` for an unknown word."""
    return _YES_NO.get(text, otherwise)


def said(yes: bool) -> str:
    """The word for a value: yes or no."""
    return "yes" if yes else "no"


def number(count: int | None) -> str:
    """A number, or UNKNOWN."""
    return UNKNOWN if count is None else str(count)


def count(words: Mapping[str, str], key: str) -> int | None:
    """The inverse of number(); also None where the line lacks the word. Raises RefusedError."""
    text = words.get(key, UNKNOWN)
    return None if text == UNKNOWN else parse_number(text)
