# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Packets and connections of the tracer. PURE but for the connection table, which remembers."""

import enum
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from portfwd.wire.values import Family, IPAddress, Proto, family_of

SYN = frozenset({"syn"})
SYN_ACK = frozenset({"syn", "ack"})
ACK = frozenset({"ack"})
RST = frozenset({"rst"})


class Packet(NamedTuple):
    """A TCP or UDP packet; `flags` are TCP's."""

    proto: Proto
    source: IPAddress
    source_port: int
    target: IPAddress
    target_port: int
    flags: frozenset[str] = frozenset()

    @property
    def family(self) -> Family:
        """IPv4 or IPv6."""
        return family_of(self.source)

    @property
    def ends(self) -> "Ends":
        """What a connection is known by."""
        return self[:5]

    def answer(self, flags: frozenset[str]) -> "Packet":
        """A packet back to its sender."""
        return Packet(self.proto, self.target, self.target_port, self.source, self.source_port, flags)


Ends = tuple[Proto, IPAddress, int, IPAddress, int]
"""Protocol, source, source port, destination, destination port."""


class Fate(enum.Enum):
    """What became of a packet."""

    LOCAL = enum.auto()
    FORWARDED = enum.auto()
    DROPPED = enum.auto()
    RESET = enum.auto()
    REJECTED = enum.auto()


class Outcome(NamedTuple):
    """A packet's fate. `packet` is as it arrives or leaves; `interface` is where it leaves; `chain` who stopped it."""

    fate: Fate
    packet: Packet
    interface: str = ""
    chain: str = ""


@dataclass(eq=False, slots=True)
class Connection:
    """One tracked connection, as conntrack holds it: how each side's packets look where they come in."""

    original: Ends
    reply: Ends
    mark: int = 0
    dnat: bool = False
    snat: bool = False
    answered: bool = False

    def translate_to(self, target: IPAddress, port: int) -> None:
        """Let another one answer."""
        proto, _, _, client, client_port = self.reply
        self.reply = proto, target, port, client, client_port
        self.dnat = True

    def translate_from(self, source: IPAddress, port: int) -> None:
        """Let it look as if it came from elsewhere."""
        proto, server, server_port, _, _ = self.reply
        self.reply = proto, server, server_port, source, port
        self.snat = True


def reversed_ends(ends: Ends) -> Ends:
    """The same in the other direction."""
    proto, source, source_port, target, target_port = ends
    return proto, target, target_port, source, source_port


@dataclass(slots=True)
class Connections:
    """The connection table of one host, with TCP picked up in mid-stream as Linux does by default (tcp_loose)."""

    _known: dict[Ends, tuple[Connection, bool]] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Connection]:
        return (connection for connection, backward in list(self._known.values()) if not backward)

    def find(self, packet: Packet) -> tuple[Connection | None, bool]:
        """The connection of a packet, made when a packet may begin one, and whether the packet goes backward."""
        found = self._known.get(packet.ends)
        if found is not None:
            return found
        if packet.proto is Proto.TCP and (packet.flags >= SYN_ACK or packet.flags & RST):
            return None, False
        return Connection(packet.ends, reversed_ends(packet.ends)), False

    def holds(self, connection: Connection) -> bool:
        """Whether a packet of this connection has passed already."""
        return self._known.get(connection.original, (None,))[0] is connection

    def taken(self, reply: Ends) -> bool:
        """Whether replies that look so belong to a connection already."""
        return reply in self._known

    def confirm(self, connection: Connection, packet: Packet, backward: bool) -> None:
        """The packet has passed: remember its connection, or forget it after a reset."""
        connection.answered = connection.answered or backward
        self._known[connection.original] = connection, False
        self._known[connection.reply] = connection, True
        if packet.flags & RST:
            self.forget(connection)

    def forget(self, connection: Connection) -> None:
        """Drop one connection; one that is gone already is no error."""
        if self.holds(connection):
            del self._known[connection.original], self._known[connection.reply]

    def clear(self) -> None:
        """Drop all."""
        self._known.clear()
