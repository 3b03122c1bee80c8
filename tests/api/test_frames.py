# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""How qubesd frames what it answers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.qubesd.api.frames import format_content, format_error, format_event
from portfwd.api.frames import (
    ErrorFrame,
    Event,
    parse_answer,
    parse_events,
)
from portfwd.wire.errors import RefusedError
from tests.api.strategies import names, sentences

details = st.dictionaries(names, sentences, max_size=3)


@given(sentences, names, sentences)
def test_answers_are_read_as_they_were_meant(content: str, kind: str, text: str) -> None:
    assert parse_answer(format_content(content)) == content.encode()
    assert parse_answer(format_error(ErrorFrame(kind, text))) == ErrorFrame(kind, text)


@given(st.lists(st.tuples(names | st.just(""), names, details), max_size=4), st.integers(0, 200))
def test_events_are_read_as_they_were_meant(said: list[tuple[str, str, dict[str, str]]], cut: int) -> None:
    stream = b"".join(format_event(Event(subject, name), words) for subject, name, words in said)
    expected = [Event(subject, name) for subject, name, _ in said]
    assert parse_events(stream) == (expected, b"")
    first, rest = parse_events(stream[:cut])
    second, end = parse_events(rest + stream[cut:])
    assert (first + second, end) == (expected, b"")


def test_content_may_hold_anything() -> None:
    assert parse_answer(b"0\x002\0A\0\0B\0") == b"2\0A\0\0B\0"
    assert parse_answer(b"0\0") == b""


@pytest.mark.parametrize(
    "answer", [b"", b"0", b"\0", b"1\0work\0x\0\0", b"2\0", b"2\0A\0B\0", b"HTTP", b"20\0", b"\xff"]
)
def test_what_is_no_frame_is_refused(answer: bytes) -> None:
    with pytest.raises(RefusedError):
        parse_answer(answer)


def test_what_is_no_event_is_refused() -> None:
    with pytest.raises(RefusedError):
        parse_events(b"2\0work\0x\0\0")
