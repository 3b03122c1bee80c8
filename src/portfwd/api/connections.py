# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The lines of Get+forward.connections: who is connected through which forward at the moment. Pure text.

rule=ID family=4 proto=tcp client=192.168.1.20 port=50123 to=8443
more=N                                                            so many are left out
"""

from dataclasses import dataclass
from typing import NamedTuple

from portfwd.model.errors import RuleError
from portfwd.wire.answers.connections import Connection
from portfwd.wire.entry import parse_number
from portfwd.wire.errors import RefusedError, shown
from portfwd.wire.values import Family, IPAddress, RuleId, parse_address, parse_port


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
    """Those that are told, and how many more there are."""

    told: tuple[Client, ...]
    more: int


def parse_connections(text: str) -> Clients:
    """Read the answer. Raises RefusedError."""
    found, more = [], 0
    for line in text.splitlines():
        first, _, rest = line.partition(" ")
        key, _, value = first.partition("=")
        if key == "more" and not rest:
            more = parse_number(value)
        elif key == "rule":
            found.append(Client(RuleId(value), Connection.parse(rest)))
        else:
            raise RefusedError(f"{shown(line)} is not a line of connections")
    return Clients(tuple(found), more)


def parse_peer(text: str) -> tuple[IPAddress, int]:
    """CLIENT:PORT as the user types it; brackets around an IPv6 address. Raises RuleError."""
    client, colon, port = text.rpartition(":")
    bare = client.removeprefix("[").removesuffix("]") if client.startswith("[") else client
    try:
        if not colon or (":" in client and bare == client):
            raise RefusedError("a connection is like 192.168.1.20:50123 or [2001:db8::1]:50123")
        return parse_address(bare), parse_port(port)
    except RefusedError as error:
        raise RuleError(text, str(error)) from None
