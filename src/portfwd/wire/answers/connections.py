# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The open connections of a qube's forwards, and the request to end one. Pure text, in both directions.

qrexec service qubes.PortForwardStatus+connections gives

    version=1 connections=COUNT more=N
    RULE.FAMILY.PROTO client=ADDRESS port=N to=PORT      COUNT lines; N more are not listed

qubes.PortForwardKill takes one line and gives one:

    family=4|6 proto=tcp|udp client=ADDRESS port=N to=PORT
    version=1 result=ended|none|refused|failed

`port` is the client's, `to` the qube's. A connection that several entries let in has a line for each of them. Whoever
reads such a text treats every byte as untrusted.
"""

import enum
from dataclasses import dataclass
from typing import Self

from portfwd.wire import limits
from portfwd.wire.answers.report import read_lines
from portfwd.wire.entry import parse_key, parse_number, parse_words
from portfwd.wire.errors import RefusedError, shown
from portfwd.wire.values import Family, IPAddress, Proto, family_of, parse_address

_LIST_HEAD = ("version", "connections", "more")
_LINE = ("client", "port", "to")
_END = ("family", "proto", *_LINE)
_RESULT = ("version", "result")


class Ended(enum.StrEnum):
    """The result of a request to end a connection."""

    ENDED = "ended"
    NONE = "none"
    """There is no such open connection of a forward."""
    REFUSED = "refused"
    """The request is malformed."""
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Connection:
    """The ends of a connection at the target: the client's address and port, and the qube's port."""

    family: Family
    proto: Proto
    client: IPAddress
    port: int
    to: int

    def __post_init__(self) -> None:
        if family_of(self.client) is not self.family:
            raise RefusedError(f"{shown(self.client)} is not an IPv{int(self.family)} address")
        if not (0 <= self.port <= limits.PORT_MAX and 1 <= self.to <= limits.PORT_MAX):
            raise RefusedError(f"port {shown(self.port)} or {shown(self.to)} is out of range")

    @property
    def words(self) -> str:
        """The words of the line, without family and protocol."""
        return f"client={self.client} port={self.port} to={self.to}"

    def __str__(self) -> str:
        return f"family={int(self.family)} proto={self.proto.value} {self.words}"

    @classmethod
    def parse(cls, untrusted_text: str) -> Self:
        """Read a request, without the line's end; raises RefusedError."""
        words = parse_words(untrusted_text, _END, _END)
        if words["family"] not in ("4", "6") or words["proto"] not in list(Proto):
            raise RefusedError(f"{shown(untrusted_text)} does not name a family and a protocol")
        return cls._of(Family(int(words["family"])), Proto(words["proto"]), words)

    @classmethod
    def parse_words(cls, key: str, untrusted_text: str) -> Self:
        """Read the words behind an entry's key, which tells family and protocol; raises RefusedError."""
        _, family, proto = key.split(".")
        return cls._of(Family(int(family)), Proto(proto), parse_words(untrusted_text, _LINE, _LINE))

    @classmethod
    def _of(cls, family: Family, proto: Proto, words: dict[str, str]) -> Self:
        return cls(
            family, proto, parse_address(words["client"]), parse_number(words["port"]), parse_number(words["to"])
        )


@dataclass(frozen=True, slots=True)
class Connections:
    """Pairs of entry key and connection; `more` counts those that are not listed."""

    listed: tuple[tuple[str, Connection], ...]
    more: int = 0

    def __str__(self) -> str:
        lines = [f"{key} {connection.words}\n" for key, connection in self.listed[: limits.REPORT_CONNECTIONS_MAX]]
        more = self.more + len(self.listed) - len(lines)
        return f"version={limits.PROTOCOL_VERSION} connections={len(lines)} more={more}\n{''.join(lines)}"

    @classmethod
    def parse(cls, untrusted: bytes) -> Self:
        """Read it in dom0; raises RefusedError."""
        words, lines = read_lines(untrusted, _LIST_HEAD)
        if parse_number(words["connections"]) != len(lines) or len(lines) > limits.REPORT_CONNECTIONS_MAX:
            raise RefusedError(f"connections={shown(words['connections'])} does not match the lines")
        return cls(tuple(_parse_line(line) for line in lines), parse_number(words["more"]))


def _parse_line(untrusted_line: str) -> tuple[str, Connection]:
    untrusted_key, _, untrusted_words = untrusted_line.partition(" ")
    key = parse_key(untrusted_key)
    return key, Connection.parse_words(key, untrusted_words)


def format_result(result: Ended) -> str:
    """The answer to a request."""
    return f"version={limits.PROTOCOL_VERSION} result={result.value}\n"


def parse_result(untrusted: bytes) -> Ended:
    """Read it in dom0; raises RefusedError."""
    words, lines = read_lines(untrusted, _RESULT)
    if lines or words["result"] not in list(Ended):
        raise RefusedError(f"{shown(words['result'])} is not a result")
    return Ended(words["result"])
