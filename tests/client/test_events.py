# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""admin.Events as a client reads it."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portfwd.client.adminapi import ApiError
from portfwd.client.events import Event, events, parse_events
from portfwd.wire.errors import RefusedError

BEGIN = b"1\0\0connection-established\0\0"
CHANGED = b"1\0work\0firewall-changed\0\0"
SET = b"1\0work\0property-set:netvm\0name\0netvm\0newvalue\0sys-net\0\0"
ALL = [Event("", "connection-established"), Event("work", "firewall-changed"), Event("work", "property-set:netvm")]


class Pieces:
    """An answer that comes in these pieces."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = list(pieces)

    def read(self) -> bytes:
        return self._pieces.pop(0) if self._pieces else b""

    def stop(self) -> None: ...
    def close(self) -> None: ...


@given(st.lists(st.integers(1, len(BEGIN + CHANGED + SET) - 1), max_size=6))
def test_events_come_whole_however_they_are_cut(cuts: list[int]) -> None:
    text, places = BEGIN + CHANGED + SET, sorted({0, *cuts, len(BEGIN + CHANGED + SET)})
    pieces = [text[first:last] for first, last in itertools.pairwise(places)]
    assert list(events(Pieces(*pieces))) == ALL


def test_an_event_that_is_not_finished_waits() -> None:
    found, rest = parse_events(BEGIN + CHANGED[:-1])
    assert (found, rest) == (ALL[:1], CHANGED[:-1])


def test_a_refusal_is_told_as_dom0_words_it() -> None:
    with pytest.raises(ApiError, match="not allowed"):
        list(events(Pieces(b"2\0PermissionDenied\0\0not ", b"allowed\0")))


@pytest.mark.parametrize("text", [b"x", b"12\0", b"1\0work\0a\0\0x\0work\0b\0\0", b"1\0" + b"a" * (1 << 21)])
def test_what_is_no_event_is_refused(text: bytes) -> None:
    with pytest.raises(RefusedError):
        list(events(Pieces(text)))
