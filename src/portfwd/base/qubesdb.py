# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The QubesDB protocol, as spoken on the unix sockets and on the link between dom0 and a qube. Does no I/O.

Takes bytes, gives messages, and the reverse. A message is a header of 72 bytes in host byte order (type, path of 64
bytes ended by NUL, three bytes of padding, length of the data) and its data. What stands behind the path's NUL and in
the padding is whatever the sender's memory held, and is ignored.

Source: qubesdb.h of qubes-core-qubesdb, checked against its daemon.
"""

import enum
import re
import struct
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from portfwd.wire import limits
from portfwd.wire.errors import RefusedError, shown

HEADER = struct.Struct("=B64s3xI")
"""Type, path field, size of the data."""
HEADER_SIZE = HEADER.size
_PATH = re.compile(r"(?!-)[A-Za-z0-9_./:@-]*")


class MessageType(enum.IntEnum):
    """The first byte of a message. Commands come first, answers begin with OK."""

    READ = 0
    WRITE = 1
    MULTIREAD = 2
    LIST = 3
    RM = 4
    WATCH = 5
    UNWATCH = 6
    OK = 7
    ERROR_NOENT = 8
    ERROR = 9
    R_READ = 10
    R_MULTIREAD = 11
    R_LIST = 12
    R_WATCH = 13


ANSWERS: frozenset[MessageType] = frozenset(kind for kind in MessageType if kind >= MessageType.OK)
"""Legal from a daemon to its local client."""


def check_path(path: str) -> str:
    """A path or prefix as it may stand in a header: at most 63 of [A-Za-z0-9_./:@-], no leading dash, maybe empty."""
    if len(path) > limits.QDB_PATH_MAX:
        raise RefusedError(f"path {shown(path)} is longer than {limits.QDB_PATH_MAX} bytes")
    if not _PATH.fullmatch(path):
        raise RefusedError(f"path {shown(path)} has a character that QubesDB does not allow")
    return path


def check_key(path: str) -> str:
    """The path of one value: begins with a slash, does not end with one."""
    check_path(path)
    if not path.startswith("/"):
        raise RefusedError(f"path {shown(path)} does not begin with a slash")
    if path.endswith("/"):
        raise RefusedError(f"path {shown(path)} ends with a slash")
    return path


def check_value(value: bytes) -> bytes:
    """A value: at most 3071 bytes, none of them NUL."""
    if len(value) > limits.QDB_VALUE_MAX:
        raise RefusedError(f"a value of {len(value)} bytes is longer than {limits.QDB_VALUE_MAX}")
    if 0 in value:
        raise RefusedError("a value may not contain a NUL byte")
    return value


@dataclass(frozen=True, slots=True)
class Message:
    """One message. An answer of many parts (R_LIST, R_MULTIREAD) ends with an empty path."""

    type: MessageType
    path: str = ""
    data: bytes = b""

    def encode(self) -> bytes:
        """The bytes of header and data; raises RefusedError for a path or a size that does not fit."""
        if len(self.data) > limits.QDB_VALUE_MAX:
            raise RefusedError(f"a value of {len(self.data)} bytes is longer than {limits.QDB_VALUE_MAX}")
        return HEADER.pack(self.type, check_path(self.path).encode("ascii"), len(self.data)) + self.data


@dataclass(frozen=True, slots=True)
class Header:
    """A checked header; `size` bytes of data follow it."""

    type: MessageType
    path: str
    size: int


def decode_header(untrusted: bytes | bytearray, accepted: AbstractSet[MessageType]) -> Header:
    """Read a header, all of it and no more, whose type is one of `accepted`. Raises RefusedError."""
    if len(untrusted) != HEADER_SIZE:
        raise RefusedError(f"a header has {HEADER_SIZE} bytes, not {len(untrusted)}")
    untrusted_type, untrusted_field, untrusted_size = HEADER.unpack(untrusted)
    path = check_path(untrusted_field[: limits.QDB_PATH_MAX].partition(b"\0")[0].decode("latin-1"))
    if untrusted_type not in accepted:
        raise RefusedError(f"message type {untrusted_type} is not expected here")
    if untrusted_size > limits.QDB_VALUE_MAX:
        raise RefusedError(f"data of {untrusted_size} bytes is longer than {limits.QDB_VALUE_MAX}")
    return Header(MessageType(untrusted_type), path, untrusted_size)
