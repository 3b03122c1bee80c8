# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The codec: layout, round trips, and that nothing but RefusedError comes of a stranger's bytes."""

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.qubesdb.messages import COMMANDS, LINK, Decoder, RefusedHeaderError
from portfwd.base.qubesdb import ANSWERS, HEADER_SIZE, Message, MessageType, check_key, decode_header
from portfwd.wire import limits
from portfwd.wire.errors import RefusedError

PATHS = st.from_regex(r"\A(?!-)[A-Za-z0-9_./:@-]{0,63}\Z")
MESSAGES = st.builds(Message, st.sampled_from(MessageType), PATHS, st.binary(max_size=limits.QDB_VALUE_MAX))
EVERYTHING = frozenset(MessageType)


def pieces(stream: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    return [stream[a:b] for a, b in itertools.pairwise(edges)]


def drain(decoder: Decoder) -> list[Message]:
    found = []
    while (message := decoder.next_message()) is not None:
        found.append(message)
    return found


def test_the_header_has_the_layout_of_the_real_one() -> None:
    encoded = Message(MessageType.WRITE, "/a/b", b"value").encode()
    assert HEADER_SIZE == 72
    assert encoded[0] == 1
    assert encoded[1:65] == b"/a/b".ljust(64, b"\0")
    assert encoded[65:68] == b"\0\0\0"
    assert encoded[68:72] == struct.pack("=I", 5)
    assert encoded[72:] == b"value"


@given(st.lists(MESSAGES, max_size=5), st.lists(st.integers(min_value=0), max_size=8))
def test_messages_come_out_as_they_went_in_however_the_stream_is_cut(messages: list[Message], cuts: list[int]) -> None:
    decoder = Decoder(EVERYTHING)
    found = []
    for piece in pieces(b"".join(message.encode() for message in messages), cuts):
        decoder.feed(piece)
        found += drain(decoder)
    assert found == messages


@given(st.binary(max_size=300), st.sampled_from([COMMANDS, ANSWERS, LINK]))
def test_a_strangers_bytes_give_messages_or_are_refused(untrusted: bytes, accepted: frozenset[MessageType]) -> None:
    decoder = Decoder(accepted)
    decoder.feed(untrusted)
    for _ in range(len(untrusted) + 1):
        try:
            message = decoder.next_message()
        except RefusedError:
            continue
        if message is None:
            break
        assert message.type in accepted
        assert message.encode()


@given(PATHS, st.binary(min_size=64, max_size=64))
def test_what_stands_behind_the_paths_end_is_ignored(path: str, rubbish: bytes) -> None:
    field = (path.encode() + b"\0" + rubbish)[:64]
    header = decode_header(bytes([4]) + field + rubbish[:3] + struct.pack("=I", 0), COMMANDS)
    assert header.path == path


def test_a_path_without_end_is_cut_to_its_field() -> None:
    header = decode_header(bytes([0]) + b"/" + b"x" * 63 + bytes(3) + bytes(4), COMMANDS)
    assert header.path == "/" + "x" * 62


@given(
    st.integers(min_value=limits.QDB_VALUE_MAX + 1, max_value=20_000), st.lists(st.integers(min_value=0), max_size=5)
)
def test_a_refused_message_is_refused_once_and_its_data_dropped(size: int, cuts: list[int]) -> None:
    refused = bytes([1]) + b"/a".ljust(67, b"\0") + struct.pack("=I", size) + b"\7" * size
    decoder = Decoder(COMMANDS)
    after = Message(MessageType.READ, "/b")
    refusals = 0
    found = []
    for piece in pieces(refused + after.encode(), cuts):
        decoder.feed(piece)
        while True:
            try:
                message = decoder.next_message()
            except RefusedHeaderError as error:
                assert error.path == "/a"
                refusals += 1
                continue
            if message is None:
                break
            found.append(message)
    assert (refusals, found) == (1, [after])


@pytest.mark.parametrize("kind", sorted(EVERYTHING - LINK))
def test_the_link_takes_only_its_own_messages(kind: MessageType) -> None:
    with pytest.raises(RefusedError, match="not expected here"):
        decode_header(Message(kind, "/a").encode(), LINK)


@pytest.mark.parametrize("path", ["/a b", "/a\0", "-a", "/%s", "ä", "x" * 64])
def test_a_path_that_could_not_be_read_back_is_not_sent(path: str) -> None:
    with pytest.raises(RefusedError):
        Message(MessageType.READ, path).encode()


@given(st.text(max_size=80))
def test_a_key_is_a_path_from_slash_to_a_name(text: str) -> None:
    try:
        check_key(text)
    except RefusedError as refused:
        assert str(refused).isascii()
        assert "%" not in str(refused)
    else:
        assert Message(MessageType.WRITE, text).encode()[1:2] == b"/"
        assert not text.endswith("/")
