# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The agent's view of a fake host's connection table."""

from portfwd.kernel.conntrack import ALL, Flow, Which
from portfwd.wire.values import family_of
from tests.fakes.nft_trace import FakeHost
from tests.fakes.packets import Connection


class FakeFlows:
    """Same interface as the kernel's connection table in the agent."""

    def __init__(self, host: FakeHost) -> None:
        self._connections = host.connections
        self._handles: dict[bytes, Connection] = {}

    def marked(self, bit: int, which: Which = ALL) -> list[Flow]:
        """The connections with that bit in their mark."""
        return [
            self._flow(connection)
            for connection in self._connections
            if connection.mark & bit and _is(connection, which)
        ]

    def unmarked(self, bit: int, which: Which = ALL) -> list[Flow]:
        """The connections without that bit whose destination somebody has translated."""
        return [self._flow(c) for c in self._connections if c.dnat and not c.mark & bit and _is(c, which)]

    def _flow(self, connection: Connection) -> Flow:
        handle = id(connection).to_bytes(8, "big")
        self._handles[handle] = connection
        proto, client, client_port, dialled, port = connection.original
        _, server, server_port, _, _ = connection.reply
        return Flow(
            family_of(client),
            proto,
            client,
            port,
            server,
            server_port,
            connection.mark,
            handle,
            translated=connection.dnat,
            client_port=client_port,
            dialled=dialled,
            answered=connection.answered,
        )

    def forget(self, flow: Flow) -> None:
        """Delete one connection's entry; one that is gone already is no error."""
        self._connections.forget(self._handles[flow.handle])


def _is(connection: Connection, which: Which) -> bool:
    return which.proto in (None, connection.original[0]) and which.assured in (None, connection.answered)
