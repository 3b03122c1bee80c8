# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""A QubesDB client over the unix socket, with the methods and results of the C module `qubesdb`.

Used in its place, in qubes and in dom0, since the C module lets a stranger stop or fill its user. Here:
- every command ends within a timeout, whatever the daemon does;
- an answer is bounded (a qube can write as many keys as it likes into the database that dom0 reads);
- events that come while a command waits for its answer are kept in order, each path once, in a bounded queue;
- a connection whose answer is late or too long stays open, and the next command waits for its end first: the daemon in
  dom0 is killed (SIGPIPE) when it answers someone who has left;
- a connection is never replaced silently, since another daemon may hold other keys: the command that finds it dead
  raises DisconnectedError, and only the one after it connects anew.

As with the C module, an event that came during a command is returned by read_watch() but does not make watch_fd()
readable. So use one connection for watches and one for commands, and read the state once after the last watch().
Not for use by several threads at once.
"""

import contextlib
import socket
import struct
import time
from typing import Protocol

from portfwd.base import qubesdb
from portfwd.base.qubesdb import HEADER_SIZE, Message, MessageType
from portfwd.wire import limits
from portfwd.wire.errors import RefusedError, shown

SOCKET_DIRECTORY = "/var/run/qubes"
TIMEOUT = 5.0
"""Seconds that a command may take, connecting included."""
ANSWER_MAX = limits.SUBTREE_MAX
"""Bytes of one answer to list or multiread, headers included."""
EVENTS_MAX = 1024
"""Different paths in the queue of events; more of them end the connection."""

_SERIES = (MessageType.R_MULTIREAD, MessageType.R_LIST)
_Paths = list[str]
_Messages = list[Message]


class Error(RuntimeError):
    """A command failed or was refused."""


class DisconnectedError(Error):
    """The daemon went away; watches are lost, and what was read before may be out of date."""


class SilentError(Error):
    """The daemon did not answer in time."""


class TooLongError(Error):
    """The answer is longer than the bound."""


class Store(Protocol):
    """Keys and values, without events.

    read gives None for a missing key; multiread gives all keys that begin with `path`; rm of 'X/' removes what is
    below X. All raise Error.
    """

    def read(self, path: str, /) -> bytes | None: ...
    def multiread(self, path: str, /) -> dict[str, bytes]: ...
    def write(self, path: str, value: str | bytes, /) -> None: ...
    def rm(self, path: str, /) -> None: ...


class Database(Store, Protocol):
    """The interface that the client below, the tests' fake and the C module share.

    list and multiread take a prefix, not a folder: '/a' also finds '/ab'. rm of 'X/' removes what is below X but not
    X itself. watch('X/') is for everything below X, watch('X') for this key alone. read_watch waits for the next event
    and gives its path; watch_fd is readable when it would not wait. All raise Error.
    """

    def list(self, path: str, /) -> _Paths: ...
    def watch(self, path: str, /) -> None: ...
    def read_watch(self) -> str: ...
    def watch_fd(self) -> int: ...
    def close(self) -> None: ...


def socket_paths(path_or_vmname: str | None) -> tuple[str, ...]:
    """The sockets to try, in order: writable, then read-only. A text with a slash is itself the path."""
    if path_or_vmname is not None and "/" in path_or_vmname:
        return (path_or_vmname,)
    stem = f"{SOCKET_DIRECTORY}/qubesdb" if path_or_vmname is None else f"{SOCKET_DIRECTORY}/qubesdb.{path_or_vmname}"
    return (f"{stem}.sock", f"{stem}.ro.sock")


def _connect(paths: tuple[str, ...], timeout: float) -> socket.socket:
    reason = ""
    for path in paths:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # connect() on a unix socket blocks while the backlog is full, and heeds this option but no Python timeout.
        limit = struct.pack("@ll", int(timeout), int(timeout % 1 * 1_000_000))
        try:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
            connection.connect(path)
        except (OSError, ValueError) as error:
            connection.close()
            reason = reason or f"cannot connect to {shown(path)}: {getattr(error, 'strerror', None) or error}"
        else:
            return connection
    raise Error(reason)


class QubesDB:
    """A connection to a QubesDB daemon. `timeout` is in seconds, for each command; a lazy one opens with the first."""

    def __init__(self, path_or_vmname: str | None = None, timeout: float = TIMEOUT, *, lazy: bool = False) -> None:
        self._paths = socket_paths(path_or_vmname)
        self._timeout = timeout
        self._events: dict[str, None] = {}
        self._closed = False
        self._owed = False
        self._untrusted_begun = b""
        self._socket: socket.socket | None = None if lazy else _connect(self._paths, timeout)

    def connect(self) -> None:
        """Open a lazy connection before its first command. Raises DisconnectedError."""
        self._reconnected(time.monotonic() + self._timeout)

    def read(self, path: str) -> bytes | None:
        """The value of a key, None when there is no such key."""
        answer = self._command(MessageType.READ, path)
        return None if answer.type is MessageType.ERROR_NOENT else self._expect(answer, MessageType.R_READ).data

    def multiread(self, path: str) -> dict[str, bytes]:
        """All keys that begin with `path`, and their values."""
        return {part.path: part.data for part in self._series(MessageType.MULTIREAD, path, MessageType.R_MULTIREAD)}

    def list(self, path: str) -> _Paths:
        """All keys that begin with `path`, sorted."""
        return [part.path for part in self._series(MessageType.LIST, path, MessageType.R_LIST)]

    def write(self, path: str, value: str | bytes) -> None:
        """Set a key."""
        if not isinstance(value, (str, bytes)):
            raise TypeError(f"a value is str or bytes, not {type(value).__name__}")
        try:
            qubesdb.check_key(path)
            data = qubesdb.check_value(value.encode() if isinstance(value, str) else value)
        except RefusedError as refused:
            raise Error(str(refused)) from None
        self._expect(self._command(MessageType.WRITE, path, data), MessageType.OK)

    def rm(self, path: str) -> None:
        """Remove a key, or all that is below `path` when that ends with a slash. No error when there is nothing."""
        self._simple(MessageType.RM, path)

    def watch(self, path: str) -> None:
        """Ask for an event at each change of the key `path`, or of what is below when it ends with a slash."""
        self._simple(MessageType.WATCH, path)

    def read_watch(self) -> str:
        """Wait, without limit, for the next event and return the path that changed.

        Raises DisconnectedError when the daemon went away: open, watch and read everything anew.
        """
        if self._events:
            path = next(iter(self._events))
            del self._events[path]
            return path
        message = self._receive(None)
        return self._expect(message, MessageType.R_WATCH).path

    def watch_fd(self) -> int:
        """The descriptor that becomes readable when read_watch() would not block."""
        return self._connected().fileno()

    def close(self) -> None:
        """End the connection; any later command raises Error."""
        self._closed = True
        self._drop()

    def leave(self) -> socket.socket | None:
        """End the connection; while an answer is due, the caller must keep the returned socket until its end comes."""
        self._closed = True
        left = self._socket if self._owed else None
        if left is not None:
            self._socket = None
            left.setblocking(False)
            with contextlib.suppress(OSError):
                left.shutdown(socket.SHUT_WR)
        self._drop()
        return left

    def _simple(self, kind: MessageType, path: str) -> None:
        answer = self._command(kind, path)
        if answer.type is not MessageType.ERROR_NOENT:
            self._expect(answer, MessageType.OK)

    def _command(self, kind: MessageType, path: str, data: bytes = b"") -> Message:
        deadline = time.monotonic() + self._timeout
        self._send(kind, path, data, deadline)
        return self._answer(deadline)

    def _series(self, kind: MessageType, path: str, part_kind: MessageType) -> _Messages:
        deadline = time.monotonic() + self._timeout
        self._send(kind, path, b"", deadline)
        parts: _Messages = []
        size = 0
        while (part := self._expect(self._answer(deadline), part_kind)).path:
            parts.append(part)
            size += HEADER_SIZE + len(part.data)
            if size > ANSWER_MAX:
                raise TooLongError(f"the answer for {shown(path)} is longer than {ANSWER_MAX} bytes")
        return parts

    def _send(self, kind: MessageType, path: str, data: bytes, deadline: float) -> None:
        if self._closed:
            raise Error("the connection to QubesDB is closed")
        if not isinstance(path, str):
            raise TypeError(f"a path is str, not {type(path).__name__}")
        if not path.startswith("/"):
            raise Error(f"path {shown(path)} does not begin with a slash")
        try:
            encoded = Message(kind, path, data).encode()
        except RefusedError as refused:
            raise Error(str(refused)) from None
        try:
            connection = self._reconnected(deadline)
            while self._owed:
                self._answer(deadline)
            connection.settimeout(self._left(deadline))
            connection.sendall(encoded)
            self._owed = True
        except TimeoutError:
            # Half a command, to which no answer comes.
            self._drop()
            raise self._timed_out() from None
        except OSError:
            self._drop()
            raise DisconnectedError("QubesDB disconnected") from None

    def _reconnected(self, deadline: float) -> socket.socket:
        if self._socket is None:
            try:
                self._socket = _connect(self._paths, self._left(deadline))
            except Error as error:
                raise DisconnectedError(f"QubesDB disconnected: {error}") from None
        return self._socket

    def _answer(self, deadline: float) -> Message:
        while (message := self._receive(deadline)).type is MessageType.R_WATCH:
            self._events[self._expect(message, MessageType.R_WATCH).path] = None
            if len(self._events) > EVENTS_MAX:
                self._drop()
                raise DisconnectedError(f"more than {EVENTS_MAX} events were waiting")
        if message.type not in _SERIES or not message.path:
            self._owed = False
        return message

    def _receive(self, deadline: float | None) -> Message:
        if deadline is None:
            if not self._untrusted_begun:
                self._untrusted_begun = self._receive_some(HEADER_SIZE, None)
            deadline = time.monotonic() + self._timeout
        self._fill(HEADER_SIZE, deadline)
        try:
            header = qubesdb.decode_header(self._untrusted_begun[:HEADER_SIZE], qubesdb.ANSWERS)
        except RefusedError as refused:
            self._drop()
            raise Error(f"the QubesDB daemon breaks the protocol: {refused}") from None
        self._fill(HEADER_SIZE + header.size, deadline)
        message = Message(header.type, header.path, self._untrusted_begun[HEADER_SIZE:])
        self._untrusted_begun = b""
        return message

    def _fill(self, size: int, deadline: float) -> None:
        # Never one byte more: what is left in the socket keeps watch_fd() readable.
        while len(self._untrusted_begun) < size:
            self._untrusted_begun += self._receive_some(size - len(self._untrusted_begun), deadline)

    def _receive_some(self, size: int, deadline: float | None) -> bytes:
        connection = self._connected()
        try:
            connection.settimeout(None if deadline is None else self._left(deadline))
            untrusted = connection.recv(size)
        except TimeoutError:
            raise self._timed_out() from None
        except OSError:
            untrusted = b""
        if not untrusted:
            self._drop()
            raise DisconnectedError("QubesDB disconnected")
        return untrusted

    def _expect(self, message: Message, kind: MessageType) -> Message:
        if message.type is kind and (not message.data or kind in (MessageType.R_READ, MessageType.R_MULTIREAD)):
            return message
        if message.type is MessageType.ERROR and not message.data:
            raise Error(f"the QubesDB daemon refused the command for {shown(message.path)}")
        self._drop()
        raise Error(f"the QubesDB daemon breaks the protocol: {message.type.name} instead of {kind.name}")

    def _connected(self) -> socket.socket:
        if self._closed:
            raise Error("the connection to QubesDB is closed")
        if self._socket is None:
            raise DisconnectedError("QubesDB disconnected")
        return self._socket

    def _left(self, deadline: float) -> float:
        left = deadline - time.monotonic()
        if left <= 0:
            raise self._timed_out()
        return left

    def _timed_out(self) -> Error:
        return SilentError(f"the QubesDB daemon did not answer within {self._timeout:g} seconds")

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None
        self._owed, self._untrusted_begun = False, b""
        self._events.clear()
