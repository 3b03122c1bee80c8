# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""What a daemon answers to its local clients, command by command. Does no I/O of its own."""

from collections.abc import Callable

from lab.qubesdb.messages import RefusedHeaderError
from lab.qubesdb.store import Store, Watches
from lab.qubesdb.stream import Stream
from portfwd.base.qubesdb import Message, MessageType, check_value
from portfwd.wire.errors import RefusedError

_ENOUGH = 65536
"""Bytes of output after which a client has to read before its next command is looked at."""


class Client:
    """A connected client."""

    def __init__(self, stream: Stream, *, can_write: bool) -> None:
        self.stream = stream
        self.can_write = can_write


class Clients:
    """The commands of all clients on one database. `forward` hands a change to the link."""

    def __init__(self, store: Store, forward: Callable[[Message], None]) -> None:
        self._store = store
        self._forward = forward
        self._watches: Watches[Client] = Watches()
        self.told: set[Client] = set()
        """Clients that have events to be flushed."""

    def changed(self, path: str) -> None:
        """Queue the events for a change."""
        for client in self._watches.concerned(path):
            client.stream.send(Message(MessageType.R_WATCH, path))
            self.told.add(client)

    def leave(self, client: Client) -> None:
        """Forget a client that is gone."""
        self._watches.forget(client)
        self.told.discard(client)

    def work(self, client: Client) -> bool:
        """Answer what has arrived from a client; False when the connection has to be closed."""
        while client.stream.pending < _ENOUGH:
            try:
                message = client.stream.decoder.next_message()
            except RefusedHeaderError as refused:
                client.stream.send(Message(MessageType.ERROR, refused.path))
                continue
            if message is None:
                break
            if not self._answer(client, message):
                return False
        return True

    def _answer(self, client: Client, message: Message) -> bool:
        kind, path, send = message.type, message.path, client.stream.send
        if kind is MessageType.READ and message.data:
            return False
        if kind is MessageType.WRITE and client.can_write:
            return self._write(client, message)
        if message.data or (kind in (MessageType.WRITE, MessageType.RM) and not client.can_write):
            send(Message(MessageType.ERROR, path))
            return True
        match kind:
            case MessageType.READ:
                value = self._store.read(path)
                send(
                    Message(MessageType.ERROR_NOENT, path)
                    if value is None
                    else Message(MessageType.R_READ, path, value)
                )
            case MessageType.MULTIREAD:
                found = list(self._store.matching(path))
                for key, value in found if path else reversed(found):
                    send(Message(MessageType.R_MULTIREAD, key, value))
                send(Message(MessageType.R_MULTIREAD))
            case MessageType.LIST:
                for key, _ in self._store.matching(path):
                    send(Message(MessageType.R_LIST, key))
                send(Message(MessageType.R_LIST))
            case MessageType.RM:
                if self._store.remove(path):
                    self._forward(message)
                    send(Message(MessageType.OK, path))
                    self.changed(path)
                else:
                    send(Message(MessageType.ERROR_NOENT, path))
            case MessageType.WATCH:
                self._watches.add(path, client)
                send(Message(MessageType.OK, path))
            case MessageType.UNWATCH:
                removed = self._watches.remove(path, client)
                send(Message(MessageType.OK if removed else MessageType.ERROR_NOENT, path))
        return True

    def _write(self, client: Client, message: Message) -> bool:
        try:
            check_value(message.data)
        except RefusedError:
            client.stream.send(Message(MessageType.ERROR, message.path))
            return True
        try:
            self._store.write(message.path, message.data)
        except RefusedError:
            client.stream.send(Message(MessageType.ERROR, message.path))
            return False
        self._forward(message)
        client.stream.send(Message(MessageType.OK, message.path))
        self.changed(message.path)
        return True
