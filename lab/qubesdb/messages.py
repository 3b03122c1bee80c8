# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""A daemon's side of the QubesDB protocol: a stream of bytes cut into messages, and which of them are legal where."""

from collections.abc import Set as AbstractSet

from portfwd.base.qubesdb import HEADER, HEADER_SIZE, Header, Message, MessageType, check_path, decode_header
from portfwd.wire.errors import RefusedError

COMMANDS: frozenset[MessageType] = frozenset(kind for kind in MessageType if kind < MessageType.OK)
"""Legal from a local client."""
LINK: frozenset[MessageType] = frozenset(
    {
        MessageType.WRITE,
        MessageType.RM,
        MessageType.MULTIREAD,
        MessageType.OK,
        MessageType.ERROR,
        MessageType.R_MULTIREAD,
    }
)
"""Legal between the two daemons of a qube; anything else ends the link."""


class RefusedHeaderError(RefusedError):
    """A header that the protocol does not allow. `path` is the sender's if that is well formed, else empty."""

    def __init__(self, reason: str, path: str) -> None:
        super().__init__(reason)
        self.path = path


class Decoder:
    """Cuts a stream into messages. Holds at most what was fed since next_message() last answered None."""

    def __init__(self, accepted: AbstractSet[MessageType]) -> None:
        self._accepted = accepted
        self._untrusted = bytearray()
        self._header: Header | None = None
        self._skip = 0

    def feed(self, untrusted: bytes) -> None:
        """Take the next bytes of the stream."""
        self._untrusted += untrusted

    def next_message(self) -> Message | None:
        """The next whole message, or None when bytes are missing.

        Raises RefusedHeaderError once for each header that is not allowed, as soon as the header is there; its data
        will be dropped, so that the caller may go on (a daemon towards its clients) or give up (the link).
        """
        dropped = min(self._skip, len(self._untrusted))
        del self._untrusted[:dropped]
        self._skip -= dropped
        if self._header is None:
            if self._skip or len(self._untrusted) < HEADER_SIZE:
                return None
            untrusted_header = bytes(self._untrusted[:HEADER_SIZE])
            del self._untrusted[:HEADER_SIZE]
            try:
                self._header = decode_header(untrusted_header, self._accepted)
            except RefusedError as refused:
                _, untrusted_field, self._skip = HEADER.unpack(untrusted_header)
                raise RefusedHeaderError(str(refused), _path(untrusted_field)) from None
        header = self._header
        if len(self._untrusted) < header.size:
            return None
        data = bytes(self._untrusted[: header.size])
        del self._untrusted[: header.size]
        self._header = None
        return Message(header.type, header.path, data)


def _path(untrusted_field: bytes) -> str:
    try:
        return check_path(untrusted_field[:-1].partition(b"\0")[0].decode("latin-1"))
    except RefusedError:
        return ""
