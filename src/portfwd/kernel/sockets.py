# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Listening sockets of this network namespace, and the end of a connection by its socket.

Formats: sock_diag(7), linux/inet_diag.h. read_sockets() and destroy() ask the kernel; the rest is pure. Listening means
a TCP socket in state LISTEN or a UDP socket without a peer. Network namespaces inside the qube (containers) are not
seen.
"""

import errno
import ipaddress
import struct
from collections.abc import Iterable
from typing import NamedTuple

from portfwd.kernel.conntrack import Flow
from portfwd.kernel.netlink import NETLINK_SOCK_DIAG, Message, Netlink, attributes
from portfwd.wire.values import Family, IPAddress, Proto

DESTROY_GROUPS = (1, 2, 3, 4)
"""SKNLGRP_INET_TCP_DESTROY, INET_UDP, INET6_TCP, INET6_UDP: sockets that closed. They need CAP_NET_ADMIN."""
_SOCK_DIAG_BY_FAMILY = 20
_SOCK_DESTROY = 21
_AF_INET, _AF_INET6 = 2, 10
_TCP_CLOSE, _TCP_LISTEN = 7, 10
_STATES = {Proto.TCP: 1 << _TCP_LISTEN, Proto.UDP: 1 << _TCP_CLOSE}
_REQUEST = struct.Struct("=BBBxI48x")
"""inet_diag_req_v2: family, protocol, extensions, states, and an id that matches every socket."""
_EXACT = struct.Struct("=BBBxI2s2s16s16sI8s")
"""The same with its id: ports, addresses, interface, cookie."""
_ANY_COOKIE = b"\xff" * 8
_MESSAGE = struct.Struct("=BBBB2s2s16s16sI8s20x")
"""inet_diag_msg: family, state, timer, retrans; source and destination port and address, interface, cookie."""
_SKV6ONLY = 11
_LOOPBACK_INTERFACE = 1


class Socket(NamedTuple):
    """A listening port of the qube, in one family. `local`: on a loopback address only."""

    family: Family
    proto: Proto
    port: int
    local: bool


def read_sockets() -> frozenset[Socket]:
    """Every listening socket of this network namespace. Raises OSError."""
    netlink = Netlink(NETLINK_SOCK_DIAG)
    try:
        found: set[Socket] = set()
        for proto, states in _STATES.items():
            for family in (_AF_INET, _AF_INET6):
                request = _REQUEST.pack(family, proto.number, 0, states)
                for message in netlink.dump(_SOCK_DIAG_BY_FAMILY, request):
                    found.update(sockets_of(message, proto))
        return frozenset(found)
    finally:
        netlink.close()


def destroy(flow: Flow) -> bool:
    """End the TCP connection by its socket in this qube, as by a reset from both sides.

    False when there is no such socket (UDP, a container), or the kernel cannot do that. Raises OSError otherwise.
    """
    if flow.proto is not Proto.TCP:
        return False
    netlink = Netlink(NETLINK_SOCK_DIAG)
    try:
        # Without a cookie the kernel would find, and end, a listening socket where there is no connection.
        for message in netlink.request(_SOCK_DIAG_BY_FAMILY, _exact(flow, _ANY_COOKIE)):
            if message.kind == _SOCK_DIAG_BY_FAMILY and len(message.body) >= _MESSAGE.size:
                _, state, *_, cookie = _MESSAGE.unpack_from(message.body)
                if state != _TCP_LISTEN:
                    netlink.request(_SOCK_DESTROY, _exact(flow, cookie))
                    return True
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EOPNOTSUPP, errno.ESTALE):
            raise
    finally:
        netlink.close()
    return False


def _exact(flow: Flow, cookie: bytes) -> bytes:
    ports = (flow.server_port.to_bytes(2, "big"), flow.client_port.to_bytes(2, "big"))
    addresses = (flow.server.packed.ljust(16, b"\0"), flow.client.packed.ljust(16, b"\0"))
    family = _AF_INET if flow.family is Family.V4 else _AF_INET6
    return _EXACT.pack(family, flow.proto.number, 0, 0xFFFFFFFF, *ports, *addresses, 0, cookie)


def sockets_of(message: Message, proto: Proto) -> list[Socket]:
    """The ports of one answer of the kernel: an IPv6 socket may serve IPv4, too."""
    if message.kind != _SOCK_DIAG_BY_FAMILY or len(message.body) < _MESSAGE.size:
        return []
    family, _, _, _, raw_port, _, raw_address, _, interface, _ = _MESSAGE.unpack_from(message.body)
    port = int.from_bytes(raw_port, "big")
    inside = interface == _LOOPBACK_INTERFACE
    if family == _AF_INET:
        address: IPAddress = ipaddress.IPv4Address(raw_address[:4])
        return [Socket(Family.V4, proto, port, inside or address.is_loopback)]
    if family != _AF_INET6:
        return []
    address = ipaddress.IPv6Address(raw_address)
    if address.ipv4_mapped is not None:
        return [Socket(Family.V4, proto, port, inside or address.ipv4_mapped.is_loopback)]
    found = [Socket(Family.V6, proto, port, inside or address.is_loopback)]
    only = attributes(message.body[_MESSAGE.size :]).get(_SKV6ONLY, b"\0")
    if address.is_unspecified and only == b"\0":
        found.append(Socket(Family.V4, proto, port, inside))
    return found


def freed_ports(messages: Iterable[Message]) -> set[int]:
    """The ports of closed sockets that had no peer, from messages of DESTROY_GROUPS."""
    ports = set()
    for message in messages:
        if message.kind == _SOCK_DIAG_BY_FAMILY and len(message.body) >= _MESSAGE.size:
            _, _, _, _, port, peer, *_ = _MESSAGE.unpack_from(message.body)
            if peer == b"\0\0":
                ports.add(int.from_bytes(port, "big"))
    return ports
