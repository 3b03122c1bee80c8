# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The answer of Get+forward.connections and the payload of Set+forward.kill: printers and parsers. No I/O.

    rule=ID family=4 proto=tcp client=192.168.1.20 port=50123 to=8443
    more=N                              so many are left out

The payload of Set+forward.kill is the line of one connection without its rule.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from portfwd.api.lines import join, lines_of, need, split, text_of
from portfwd.wire.answers.connections import Connection
from portfwd.wire.entry import parse_number
from portfwd.wire.values import Family, Proto, RuleId

_CONNECTION = ("family", "proto", "client", "port", "to")


@dataclass(frozen=True, slots=True)
class Client:
    """A connection, and the forward by which it came."""

    rule: RuleId
    connection: Connection

    @property
    def peer(self) -> str:
        """The client as kill takes it: 192.168.1.20:50123, [2001:db8::1]:50123."""
        address, port = self.connection.client, self.connection.port
        return f"{f'[{address}]' if self.connection.family is Family.V6 else address}:{port}"


class Clients(NamedTuple):
    """The listed connections, and how many more there are."""

    told: tuple[Client, ...]
    more: int = 0


def format_connections(clients: Clients) -> str:
    """The text of the answer."""
    return text_of(_lines(clients))


def _lines(clients: Clients) -> Iterator[str]:
    yield from (f"rule={client.rule} {client.connection}" for client in clients.told)
    if clients.more:
        yield f"more={clients.more}"


def parse_connections(text: str) -> Clients:
    """The inverse of format_connections; connections of unknown protocols count as left out. Raises RefusedError."""
    found, more = [], 0
    for words in map(split, lines_of(text)):
        if "rule" in words:
            if need(words, "proto") not in list(Proto):
                more += 1
                continue
            connection = Connection.parse(join({key: need(words, key) for key in _CONNECTION}))
            found.append(Client(RuleId(words["rule"]), connection))
        elif "more" in words:
            more += parse_number(words["more"])
    return Clients(tuple(found), more)


def format_kill(connection: Connection) -> str:
    """The payload of Set+forward.kill."""
    return text_of([str(connection)])


def parse_kill(untrusted_payload: str) -> Connection:
    """The inverse of format_kill; unknown words are refused. Raises RefusedError."""
    return Connection.parse(untrusted_payload.removesuffix("\n"))
