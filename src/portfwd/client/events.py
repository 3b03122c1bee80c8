# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""admin.Events: what happens in dom0, as it happens.

Source: the Admin API of Qubes OS. Each event is 1 NUL SUBJECT NUL NAME NUL, KEY NUL VALUE NUL for each detail, then
NUL. The first one, connection-established, says that from now on nothing is missed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from portfwd.client.adminapi import CallError, Transport, parse_answer
from portfwd.client.streams import Stream
from portfwd.wire.errors import RefusedError

ESTABLISHED = "connection-established"
_EVENT_MAX = 1 << 20


@dataclass(frozen=True, slots=True)
class Event:
    """`subject` is a qube, or empty for what concerns the whole system."""

    subject: str
    name: str


class EventTransport(Transport, Protocol):
    """A transport that can also carry an endless answer."""

    def stream(self, dest: str, method: str) -> Stream:
        """The answer of a call that has no end. Raises CallError."""


def events(stream: Stream) -> Iterator[Event]:
    """Every event until the stream ends. Raises CallError when it is refused, RefusedError for what is no event."""
    received = b""
    while chunk := stream.read():
        received += chunk
        if received[:2] not in (b"1", b"1\0"):
            while chunk := stream.read():
                received += chunk
            parse_answer(received)
            raise CallError("the answer to admin.Events is not a stream of events")
        found, received = parse_events(received)
        yield from found
        if len(received) > _EVENT_MAX:
            raise RefusedError("an event has no end")


def parse_events(received: bytes) -> tuple[list[Event], bytes]:
    """The whole events at its begin, and the rest. Raises RefusedError."""
    fields = received.split(b"\0")
    found: list[Event] = []
    place = used = 0
    while True:
        end = place + 3
        # Pairs of key and value, until a key is empty; the last field of all is not finished yet.
        while end < len(fields) - 1 and fields[end]:
            end += 2
        if end >= len(fields) - 1:
            return found, received[used:]
        if fields[place] != b"1":
            raise RefusedError("what came is not an event")
        subject, name = (field.decode("utf-8", "replace") for field in fields[place + 1 : place + 3])
        found.append(Event(subject, name))
        used += sum(len(field) + 1 for field in fields[place : end + 1])
        place = end + 1
