# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Informs the clients of ended connections, also those that only receive and would wait for ever.

A UDP client gets an ICMP error about its own packets. A TCP reset would need the sequence numbers of the
connection, which conntrack does not give: its client gets a segment that cannot be right, answers with what it
expects (RFC 9293 section 3.10.7.4), and the guard resets it for that answer (skeleton.guard). In the target, where
the socket is, the kernel itself sends the reset. packets_for() is pure.
"""

import contextlib
import ipaddress
import logging
import socket
import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from portfwd.agent.rules.skeleton import MARK_BITS, MARK_FAREWELL, MARK_IN, UPLINK_BITS
from portfwd.kernel.conntrack import Flow
from portfwd.kernel.sockets import destroy
from portfwd.wire.values import Family, IPAddress, Proto

log = logging.getLogger(__name__)

FLOWS_MAX = 256
"""Clients informed at once, at most. Those of a flood need not be at the addresses that they came from."""
_ACK = 0x10
_TCP = struct.Struct(">HHIIBBHHH")
_UDP = struct.Struct(">HHHH")
_IP4 = struct.Struct(">BBHHHBBH4s4s")
_IP6 = struct.Struct(">IHBB16s16s")
_HALF = 1 << 31
_IPV6_CHECKSUM = 7
"""Socket option of linux/in6.h: the offset of the checksum that the kernel fills in."""


class Farewell(NamedTuple):
    """One packet without its IP header: protocol, source, destination, and the mark to send it with."""

    protocol: int
    source: IPAddress
    target: IPAddress
    mark: int
    payload: bytes


def tell(flows: Iterable[Flow]) -> None:
    """Inform the clients of those connections that the server has answered, TCP first. Never raises.

    At most FLOWS_MAX of them, since the agent does nothing else meanwhile.
    """
    ended = [flow for flow in flows if flow.answered and not flow.ended]
    ended.sort(key=lambda flow: flow.proto is not Proto.TCP)
    packets: list[Farewell] = []
    for flow in ended[:FLOWS_MAX]:
        try:
            if flow.mark & MARK_BITS != MARK_IN or not destroy(flow):
                packets += packets_for(flow)
        except OSError as error:
            log.info("a client is not told of the end of its connection: %s", error)
    _send(packets)


def packets_for(flow: Flow) -> Iterator[Farewell]:
    """The packets for a client, from the address that it dialled."""
    if flow.dialled is None:
        return
    mark = MARK_FAREWELL | flow.mark & UPLINK_BITS
    if flow.proto is Proto.TCP:
        # One of the two is out of the window, wherever that is.
        for sequence in (0, _HALF):
            segment = _TCP.pack(flow.port, flow.client_port, sequence, 0, 5 << 4, _ACK, 0, 0, 0)
            if flow.family is Family.V4:
                total = checksum(_pseudo(flow.dialled, flow.client, 6, len(segment)) + segment)
                segment = segment[:16] + total.to_bytes(2, "big") + segment[18:]
            yield Farewell(socket.IPPROTO_TCP, flow.dialled, flow.client, mark, segment)
        return
    theirs = _UDP.pack(flow.client_port, flow.port, _UDP.size, 0)
    if flow.family is Family.V4:
        header = _IP4.pack(0x45, 0, 28, 0, 0, 64, 17, 0, flow.client.packed, flow.dialled.packed)
        header = header[:10] + checksum(header).to_bytes(2, "big") + header[12:]
        body = header + theirs
        # Type 3 code 3 (RFC 792): port unreachable.
        error = struct.pack(">BBHI", 3, 3, 0, 0) + body
        error = error[:2] + checksum(error).to_bytes(2, "big") + error[4:]
        yield Farewell(socket.IPPROTO_ICMP, flow.dialled, flow.client, mark, error)
        return
    body = _IP6.pack(6 << 28, _UDP.size, 17, 64, flow.client.packed, flow.dialled.packed) + theirs
    # Type 1 code 4 (RFC 4443): port unreachable. The kernel makes the checksum.
    yield Farewell(socket.IPPROTO_ICMPV6, flow.dialled, flow.client, mark, struct.pack(">BBHI", 1, 4, 0, 0) + body)


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    padded = data + b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f">{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def _pseudo(source: IPAddress, target: IPAddress, protocol: int, length: int) -> bytes:
    return source.packed + target.packed + struct.pack(">BBH", 0, protocol, length)


def _send(packets: Iterable[Farewell]) -> None:
    sockets: dict[tuple[int, IPAddress, int], socket.socket] = {}
    with contextlib.ExitStack() as stack:
        for packet in packets:
            place = (packet.protocol, packet.source, packet.mark)
            try:
                if place not in sockets:
                    sockets[place] = stack.enter_context(_open(packet))
                sockets[place].sendto(packet.payload, (str(packet.target), 0))
            except OSError as error:
                log.info("a client is not told of the end of its connection: %s", error)


def _open(packet: Farewell) -> socket.socket:
    six = isinstance(packet.source, ipaddress.IPv6Address)
    made = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_RAW, packet.protocol)
    try:
        made.setblocking(False)
        # As bytes: the highest bit does not fit into a C int.
        made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, struct.pack("=I", packet.mark))
        # What comes in is none of ours to read.
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)
        if six and packet.protocol == socket.IPPROTO_TCP:
            made.setsockopt(socket.IPPROTO_IPV6, _IPV6_CHECKSUM, 16)
        made.bind((str(packet.source), 0))
    except BaseException:
        made.close()
        raise
    return made
