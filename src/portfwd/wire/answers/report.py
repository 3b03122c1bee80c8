# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""A qube's report on its forwards (qrexec service qubes.PortForwardStatus). Pure text.

    version=1 entries=COUNT
    RULE.FAMILY.PROTO hits=N last=N|-                                             one line per relay entry
    RULE.FAMILY.PROTO listening=yes|no|local packets=N bytes=N connections=N      one line per accept entry

COUNT lines of entries tell a whole report from a truncated one. A number that the qube does not know is `-`. dom0
treats every byte as untrusted: a report is read as a whole or refused as a whole. It passes over words that it does not
know, and over lines that begin with such a word, so that the agents of other versions may tell more (those before the
first release told `route=` of a relay entry, and of the base firewall in lines that began with `family=`).
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from portfwd.wire import limits
from portfwd.wire.entry import parse_key, parse_number, parse_words
from portfwd.wire.errors import RefusedError, shown

_HEAD = ("version", "entries")
_RELAY = ("hits", "last")
_ACCEPT = ("listening", "packets", "bytes", "connections")


class Listening(enum.StrEnum):
    """Whether a program of the qube listens on a port of an accept entry, where the forward leads."""

    YES = "yes"
    NO = "no"
    LOCAL = "local"
    """Only on a loopback address, which no forward reaches."""


@dataclass(frozen=True, slots=True)
class RelayReport:
    """A qube's report on a relay entry.

    `hits`: connections that came in by it; `last`: seconds since the newest, None for never.
    """

    hits: int | None
    last: int | None

    @classmethod
    def parse(cls, untrusted_text: str) -> Self:
        """Read the words behind the key; raises RefusedError."""
        words = parse_words(_known(untrusted_text, _RELAY), _RELAY, _RELAY)
        return cls(_parse_count(words["hits"]), _parse_count(words["last"]))

    def __str__(self) -> str:
        return f"hits={_count(self.hits)} last={_count(self.last)}"


@dataclass(frozen=True, slots=True)
class AcceptReport:
    """The target's report on an accept entry.

    `packets`, `bytes`: from clients, since the door was opened or its end was changed; `connections`: the open ones.
    Entries that share a port share its numbers.
    """

    listening: Listening
    packets: int | None = None
    bytes: int | None = None
    connections: int | None = None

    @classmethod
    def parse(cls, untrusted_text: str) -> Self:
        """Read the words behind the key; raises RefusedError."""
        words = parse_words(_known(untrusted_text, _ACCEPT), _ACCEPT, _ACCEPT)
        if words["listening"] not in list(Listening):
            raise RefusedError(f"{shown(words['listening'])} is not yes, no or local")
        counts = (_parse_count(words[name]) for name in ("packets", "bytes", "connections"))
        return cls(Listening(words["listening"]), *counts)

    def __str__(self) -> str:
        numbers = f"packets={_count(self.packets)} bytes={_count(self.bytes)} connections={_count(self.connections)}"
        return f"listening={self.listening.value} {numbers}"


EntryReport = RelayReport | AcceptReport


@dataclass(frozen=True, slots=True)
class Report:
    """A qube's report on its entries, by entry key. Entries beyond the limit are left out."""

    entries: Mapping[str, EntryReport]

    def relay(self, key: str) -> RelayReport | None:
        """The report on a relay entry; None when there is none for it as a relay."""
        return found if isinstance(found := self.entries.get(key), RelayReport) else None

    def accept(self, key: str) -> AcceptReport | None:
        """The report on an accept entry; None when there is none for it as an accept."""
        return found if isinstance(found := self.entries.get(key), AcceptReport) else None

    def __str__(self) -> str:
        lines = [f"{key} {told}\n" for key, told in sorted(self.entries.items())[: limits.REPORT_LINES_MAX]]
        return f"version={limits.PROTOCOL_VERSION} entries={len(lines)}\n{''.join(lines)}"

    @classmethod
    def parse(cls, untrusted_report: bytes) -> Self:
        """Read it in dom0; raises RefusedError for anything that a report of this version is not."""
        words, lines = read_lines(untrusted_report, _HEAD)
        lines = [line for line in lines if "=" not in line.partition(" ")[0]]
        if parse_number(words["entries"]) != len(lines) or len(lines) > limits.REPORT_LINES_MAX:
            raise RefusedError(f"entries={shown(words['entries'])} does not match the lines of the report")
        entries = dict(_parse_line(line) for line in lines)
        if len(entries) != len(lines):
            raise RefusedError("a report names an entry twice")
        return cls(entries)


def read_lines(untrusted: bytes, head: tuple[str, ...]) -> tuple[dict[str, str], list[str]]:
    """Read the frame that all answers share: bounds, ASCII, a first line of these words with our version, whole lines.

    Raises RefusedError.
    """
    if len(untrusted) > limits.REPORT_MAX:
        raise RefusedError(f"an answer has at most {limits.REPORT_MAX} bytes")
    try:
        untrusted_text = untrusted.decode("ascii")
    except UnicodeDecodeError:
        raise RefusedError("an answer is ASCII text") from None
    first, *lines = untrusted_text.split("\n")
    words = parse_words(first, head, head)
    if words["version"] != str(limits.PROTOCOL_VERSION):
        raise RefusedError(f"protocol version {shown(words['version'])} is not spoken here")
    if not lines or lines.pop() != "":
        raise RefusedError("an answer ends with a whole line")
    return words, lines


def _known(untrusted_text: str, known: tuple[str, ...]) -> str:
    """Without the words that are not known here."""
    untrusted_words = (word for word in untrusted_text.split(" ") if word.partition("=")[0] in known)
    return " ".join(untrusted_words)


def _parse_line(untrusted_line: str) -> tuple[str, EntryReport]:
    untrusted_key, _, untrusted_words = untrusted_line.partition(" ")
    kind = AcceptReport if untrusted_words.startswith("listening=") else RelayReport
    return parse_key(untrusted_key), kind.parse(untrusted_words)


def _count(number: int | None) -> str:
    return "-" if number is None else str(number)


def _parse_count(untrusted_text: str) -> int | None:
    return None if untrusted_text == "-" else parse_number(untrusted_text)
