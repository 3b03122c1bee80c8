# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The link between the two daemons of a qube: a unix socket at a path stands for the vchan on port 111.

dom0's end listens; the qube's end connects, asks once for the whole database, and is sent every later change. Each
end sends on what its own clients write and remove. As with the real daemon, whatever is not exactly as expected ends
the daemon: a removal of a key that is not there (so both ends removing one key kills both), an illegal message, a
second request for the database.

Not imitated: the two rings of 4096 bytes. Neither end ever waits for the other; output is buffered without limit.
"""

import socket
from collections.abc import Callable
from pathlib import Path

from lab.qubesdb.messages import LINK
from lab.qubesdb.store import Store
from lab.qubesdb.stream import Stream
from portfwd.base.qubesdb import Message, MessageType, check_value
from portfwd.wire.errors import RefusedError


class LinkError(Exception):
    """The peer broke the protocol, or the databases are out of step: the daemon cannot go on."""


def listen(path: str) -> socket.socket:
    """Open dom0's end."""
    Path(path).unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    listener.listen(1)
    listener.setblocking(False)
    return listener


def connect(path: str) -> socket.socket | None:
    """Open the qube's end; None while dom0's is not there."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.setblocking(False)
    try:
        connection.connect(path)
    except (FileNotFoundError, ConnectionRefusedError, BlockingIOError):
        connection.close()
        return None
    return connection


class Link:
    """One end of a connected link. `asks` is for the qube's end, which begins with a request for the database."""

    def __init__(self, connection: socket.socket, store: Store, changed: Callable[[str], None], *, asks: bool) -> None:
        self.stream = Stream(connection, LINK)
        self.updates = asks
        """Whether the peer is sent changes: always by the qube, by dom0 once it has sent the whole database."""
        self.syncing = asks
        """Whether the database is on its way to us."""
        self._store = store
        self._changed = changed
        if asks:
            self.stream.send(Message(MessageType.MULTIREAD))

    def forward(self, message: Message) -> None:
        """Send on a change that a local client made."""
        if self.updates:
            self.stream.send(message)

    def work(self) -> None:
        """Handle the messages that have arrived; raises LinkError."""
        try:
            while (message := self.stream.decoder.next_message()) is not None:
                self._handle(message)
        except RefusedError as refused:
            raise LinkError(str(refused)) from None

    def _handle(self, message: Message) -> None:
        match message.type:
            case MessageType.WRITE:
                self._write(message)
            case MessageType.RM:
                self._remove(message)
            case MessageType.MULTIREAD:
                self._dump(message)
            case MessageType.R_MULTIREAD:
                self._take(message)
            case MessageType.ERROR if message.data:
                raise LinkError("an error message has data")

    def _write(self, message: Message) -> None:
        try:
            check_value(message.data)
        except RefusedError:
            self.stream.send(Message(MessageType.ERROR, message.path))
            return
        try:
            self._store.write(message.path, message.data)
        except RefusedError:
            self.stream.send(Message(MessageType.ERROR, message.path))
            raise
        self.stream.send(Message(MessageType.OK, message.path))
        self._changed(message.path)

    def _remove(self, message: Message) -> None:
        if message.data:
            self.stream.send(Message(MessageType.ERROR, message.path))
        elif self._store.remove(message.path):
            self.stream.send(Message(MessageType.OK, message.path))
            self._changed(message.path)
        else:
            self.stream.send(Message(MessageType.ERROR_NOENT, message.path))
            raise LinkError(f"the peer removed {message.path}, which is not there")

    def _dump(self, message: Message) -> None:
        if self.updates:
            raise LinkError("the peer asked twice for the database")
        if message.data:
            self.stream.send(Message(MessageType.ERROR, message.path))
        else:
            # Backwards, as the real daemon: its insertion is then cheap on the other side.
            for path, value in reversed(list(self._store.matching(message.path))):
                self.stream.send(Message(MessageType.R_MULTIREAD, path, value))
            self.stream.send(Message(MessageType.R_MULTIREAD))
        self.updates = True

    def _take(self, message: Message) -> None:
        if not self.syncing:
            raise LinkError("the peer sent a database that nobody asked for")
        if not message.path:
            self.syncing = False
            return
        self._store.write(message.path, message.data)
        self._changed(message.path)
