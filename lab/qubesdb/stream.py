# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""A non-blocking connection that carries QubesDB messages."""

import socket
from collections.abc import Set as AbstractSet

from lab.qubesdb.messages import Decoder
from portfwd.base.qubesdb import Message, MessageType

_CHUNK = 65536


class Stream:
    """One connection: decoded input, buffered output. Never blocks and never raises for what the peer does."""

    def __init__(self, connection: socket.socket, accepted: AbstractSet[MessageType]) -> None:
        connection.setblocking(False)
        self.socket = connection
        self.decoder = Decoder(accepted)
        self._out = bytearray()

    @property
    def pending(self) -> int:
        """Bytes that wait until the peer reads."""
        return len(self._out)

    def fill(self) -> bool:
        """Take what has arrived; False when the peer is gone."""
        try:
            untrusted = self.socket.recv(_CHUNK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self.decoder.feed(untrusted)
        return bool(untrusted)

    def send(self, message: Message) -> None:
        """Queue a message; flush() sends it."""
        self._out += message.encode()

    def flush(self) -> None:
        """Send what the peer takes. What a vanished peer did not take is dropped; fill() then tells that it is gone."""
        try:
            while self._out:
                del self._out[: self.socket.send(self._out[:_CHUNK])]
        except BlockingIOError:
            pass
        except OSError:
            self._out.clear()
