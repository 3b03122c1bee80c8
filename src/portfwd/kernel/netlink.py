# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Netlink: framing of messages and attributes, a socket for requests, and sockets for the kernel's notifications.

Formats: netlink(7), linux/netlink.h. Numbers are in host byte order unless the kernel says otherwise.
"""

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

NETLINK_ROUTE = 0
NETLINK_SOCK_DIAG = 4
NETLINK_NETFILTER = 12
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 0x1, 0x4, 0x300
NLM_F_NEW = 0x600
"""NLM_F_CREATE and NLM_F_EXCL: make it, and fail when it is there."""
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_HEADER = struct.Struct("=IHHII")
_ATTR = struct.Struct("=HH")
_TYPE_MASK = 0x3FFF
_NESTED = 0x8000
_SOL_NETLINK, _ADD_MEMBERSHIP, _DROP_MEMBERSHIP = 270, 1, 2
_RECEIVE = 1 << 18


class Message(NamedTuple):
    """One netlink message: its type and what follows the header."""

    kind: int
    body: bytes


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded to 4 bytes."""
    return _ATTR.pack(_ATTR.size + len(value), kind) + value + b"\0" * (-len(value) % 4)


def nested(kind: int, *values: bytes) -> bytes:
    """An attribute that holds attributes."""
    return attribute(kind | _NESTED, b"".join(values))


def attributes(data: bytes) -> dict[int, bytes]:
    """Attributes by type; the last of a repeated type counts."""
    found = {}
    place, end = 0, len(data)
    while end - place >= _ATTR.size:
        length, kind = _ATTR.unpack_from(data, place)
        if not _ATTR.size <= length <= end - place:
            break
        found[kind & _TYPE_MASK] = data[place + _ATTR.size : place + length]
        place += length + (-length % 4)
    return found


def messages(data: bytes) -> Iterator[Message]:
    """Split a datagram into messages."""
    place, end = 0, len(data)
    while end - place >= _HEADER.size:
        length, kind, _, _, _ = _HEADER.unpack_from(data, place)
        if not _HEADER.size <= length <= end - place:
            break
        yield Message(kind, data[place + _HEADER.size : place + length])
        place += length + (-length % 4)


class Netlink:
    """A socket for requests. Raises OSError with the kernel's errno."""

    def __init__(self, protocol: int) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._socket.bind((0, 0))
        self._socket.settimeout(5)

    def dump(self, kind: int, body: bytes) -> list[Message]:
        """Send a dump request; returns all messages of the answer."""
        return list(self.stream(kind, body))

    def stream(self, kind: int, body: bytes) -> Iterator[Message]:
        """Send a dump request; gives the messages of the answer as the kernel makes them.

        Until the last one is taken, nothing else may be asked for on this socket.
        """
        for message in self._ask(kind, body, NLM_F_DUMP):
            if message.kind == _NLMSG_DONE:
                return
            yield message

    def request(self, kind: int, body: bytes, flags: int = 0) -> list[Message]:
        """Send a request that is acknowledged; returns the messages before the acknowledgement."""
        found: list[Message] = []
        for message in self._ask(kind, body, NLM_F_ACK | flags):
            if message.kind == _NLMSG_ERROR:
                break
            found.append(message)
        return found

    def _ask(self, kind: int, body: bytes, flags: int) -> Iterator[Message]:
        header = _HEADER.pack(_HEADER.size + len(body), kind, NLM_F_REQUEST | flags, 0, 0)
        self._socket.send(header + body)
        while True:
            for message in messages(self._socket.recv(_RECEIVE)):
                _raise_error(message)
                yield message

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def _raise_error(message: Message) -> None:
    """Raise what a message says of its request. The end of a dump, too, says when the kernel could not go on."""
    if message.kind in (_NLMSG_ERROR, _NLMSG_DONE) and len(message.body) >= 4:
        code = -struct.unpack_from("=i", message.body)[0]
        if code > 0:
            raise OSError(code, os.strerror(code))


class Listener:
    """A socket for the kernel's notifications of some groups."""

    def __init__(self, protocol: int, groups: tuple[int, ...]) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self._socket.bind((0, 0))
        self.join(groups)
        self._socket.setblocking(False)

    def join(self, groups: tuple[int, ...]) -> None:
        """Join these groups, too."""
        for group in groups:
            self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, group)

    def leave(self, groups: tuple[int, ...]) -> None:
        """Leave these groups."""
        for group in groups:
            self._socket.setsockopt(_SOL_NETLINK, _DROP_MEMBERSHIP, group)

    def fileno(self) -> int:
        """For select."""
        return self._socket.fileno()

    def read(self) -> tuple[list[Message], bool]:
        """The notifications that came in, and whether some were lost because we were too slow."""
        found: list[Message] = []
        lost = False
        with contextlib.suppress(BlockingIOError):
            while True:
                try:
                    found += messages(self._socket.recv(_RECEIVE))
                except OSError as error:
                    if error.errno != errno.ENOBUFS:
                        raise
                    lost = True
        return found, lost

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
