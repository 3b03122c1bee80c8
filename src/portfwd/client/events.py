# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""admin.Events: dom0's events as they happen.

Source: the Admin API of Qubes OS. Each event is 1 NUL SUBJECT NUL NAME NUL, KEY NUL VALUE NUL for each detail, then
NUL. The first one, connection-established, says that from now on nothing is missed.
"""

from collections.abc import Iterator
from typing import Protocol

from portfwd.api.frames import EVENT, Event, parse_events
from portfwd.client.adminapi import CallError, NotDoneError, Transport, nothing_done, parse_answer
from portfwd.client.streams import Stream
from portfwd.wire.errors import RefusedError

_EVENT_MAX = 1 << 20


class EventTransport(Transport, Protocol):
    """A transport that can carry endless answers, too."""

    def stream(self, dest: str, method: str) -> Stream:
        """The endless answer of a call (admin.Events). Raises CallError."""


def events(stream: Stream) -> Iterator[Event]:
    """Every event until the stream ends. Raises RefusedError, also for what is no event."""
    received = b""
    while chunk := stream.read():
        received += chunk
        if received[:2] not in (EVENT, EVENT + b"\0"):
            while chunk := stream.read():
                received += chunk
            try:
                parse_answer(received)
            except CallError as error:
                raise nothing_done(error) from None
            raise NotDoneError("the answer to admin.Events is not a stream of events")
        found, received = parse_events(received)
        yield from found
        if len(received) > _EVENT_MAX:
            raise RefusedError("an event has no end")
