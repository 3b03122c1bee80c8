# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The frames of qubesd's answers: a content, an error, or endless events. Their parsers; no I/O.

    0 NUL CONTENT
    2 NUL CLASS NUL TRACEBACK NUL TEXT NUL
    1 NUL SUBJECT NUL NAME NUL (KEY NUL VALUE NUL)... NUL            again and again

Source: the Admin API of Qubes OS. qubesd prints them.
"""

from dataclasses import dataclass
from typing import NamedTuple

from portfwd.wire.errors import RefusedError

ESTABLISHED = "connection-established"
"""The first event of a stream: from now on nothing is missed."""
EVENT = b"1"


class ErrorFrame(NamedTuple):
    """An error: the name of its class in qubesd (api/errors.py), and the text for people."""

    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Event:
    """`subject` is a qube, or empty for what concerns the whole system."""

    subject: str
    name: str


def parse_answer(answer: bytes) -> bytes | ErrorFrame:
    """The content, or the error. Raises RefusedError for what is neither."""
    kind, nul, content = answer.partition(b"\0")
    if kind == b"0" and nul:
        return content
    fields = [field.decode("utf-8", "replace") for field in content.split(b"\0")]
    if kind == b"2" and len(fields) >= 4:
        return ErrorFrame(fields[0], fields[2])
    raise RefusedError("Invalid response format")


def parse_events(received: bytes) -> tuple[list[Event], bytes]:
    """Split off the whole events, without their details; returns them and the rest. Raises RefusedError."""
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
        if fields[place] != EVENT:
            raise RefusedError("what came is not an event")
        subject, name = (field.decode("utf-8", "replace") for field in fields[place + 1 : place + 3])
        found.append(Event(subject, name))
        used += sum(len(field) + 1 for field in fields[place : end + 1])
        place = end + 1
