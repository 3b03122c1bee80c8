# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The answer of Get+forward.connections, and what Set+forward.kill is given."""

import pytest
from hypothesis import given

from portfwd.api.connections import Clients, format_connections, format_kill, parse_connections, parse_kill
from portfwd.client.typed.shorthand import parse_peer
from portfwd.wire.answers.connections import Connection
from portfwd.wire.errors import RefusedError
from tests.api import samples, strategies

ONE = samples.CONNECTIONS.splitlines()[0] + "\n"
SIX = ONE.replace("family=4", "family=6").replace("192.168.1.20", "2001:db8:1::14")


@given(strategies.clients)
def test_it_is_read_as_it_was_meant(said: Clients) -> None:
    assert parse_connections(format_connections(said)) == said


@given(strategies.connections())
def test_the_connection_that_is_to_end_is_read_as_it_was_meant(said: Connection) -> None:
    assert parse_kill(format_kill(said)) == said


def test_a_client_is_named_as_it_is_typed() -> None:
    found = parse_connections(ONE + SIX)
    assert [client.peer for client in found.told] == ["192.168.1.20:50123", "[2001:db8:1::14]:50123"]
    assert [parse_peer(c.peer) for c in found.told] == [(c.connection.client, c.connection.port) for c in found.told]


def test_what_cannot_be_listed_is_counted() -> None:
    assert format_connections(Clients((), 0)) == ""
    assert parse_connections(ONE.replace("proto=tcp", "proto=sctp") + "more=3\n") == Clients((), 4)


@pytest.mark.parametrize(
    "text",
    [
        ONE.replace("family=4", "family=6"),
        ONE.replace("port=50123", "port=65536"),
        ONE.replace("port=50123", "port=50123 port=1"),
        ONE.replace("proto=tcp ", ""),
        ONE.replace(" to=8443", ""),
        ONE.replace("client=", "client=fe80::1%"),
        ONE.replace("rule=0", "rule="),
        "more=-1\n",
        "\x1b[2J\n",
        "\n",
    ],
)
def test_what_contradicts_itself_or_is_cut_is_refused(text: str) -> None:
    with pytest.raises(RefusedError):
        parse_connections(text)


@pytest.mark.parametrize("more", [" weather=fine", "\n\n", " rule=0000000000000000"])
def test_dom0_refuses_what_it_does_not_know(more: str) -> None:
    with pytest.raises(RefusedError):
        parse_kill(ONE.partition(" ")[2].rstrip() + more)
