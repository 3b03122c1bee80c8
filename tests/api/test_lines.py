# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The grammar of all answers."""

import enum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portfwd.api import lines
from portfwd.wire.errors import RefusedError

keys = st.from_regex(r"[a-z][a-z0-9-]{0,6}", fullmatch=True).filter(lambda key: key not in lines.TAKE_THE_REST)
values = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=8)


class Weather(enum.StrEnum):
    FINE = "fine"
    UNKNOWN = "unknown"


@given(st.dictionaries(keys, values, min_size=1, max_size=5))
def test_words_are_read_as_they_were_joined(words: dict[str, str]) -> None:
    assert lines.split(lines.join(words)) == words
    assert list(lines.split(lines.join(words))) == list(words)


@pytest.mark.parametrize("key", sorted(lines.TAKE_THE_REST))
@pytest.mark.parametrize("rest", ["", "a", "a = b  c=d ", "text=x action=y"])
def test_some_words_take_the_rest_of_the_line(key: str, rest: str) -> None:
    assert lines.split(f"one=1 {key}={rest}") == {"one": "1", key: rest}
    assert lines.split(f"{key}={rest}") == {key: rest}


@pytest.mark.parametrize(
    "line", ["", " ", "a", "a=1 ", " a=1", "a=1  b=2", "a=1 a=2", "A=1", "=1", "1=1", "-a=1", "a_=1"]
)
def test_what_is_no_line_of_words_is_refused(line: str) -> None:
    with pytest.raises(RefusedError) as caught:
        lines.split(line)
    assert str(caught.value).isprintable()


def test_a_value_may_be_empty_and_hold_an_equals_sign() -> None:
    assert lines.split("a= b=c=d") == {"a": "", "b": "c=d"}


def test_words_without_a_value_are_left_out() -> None:
    assert lines.join({"a": 1, "b": None, "c": "x"}) == "a=1 c=x"


def test_a_word_that_is_missing_is_named() -> None:
    assert lines.need({"a": "1"}, "a") == "1"
    with pytest.raises(RefusedError, match="b= is missing in 'a=1'"):
        lines.need({"a": "1"}, "b")


@given(st.lists(st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=8), max_size=5))
def test_lines_are_read_as_they_were_printed(texts: list[str]) -> None:
    assert lines.lines_of(lines.text_of(texts)) == texts
    assert lines.text_of([]) == ""


def test_the_end_of_the_last_line_may_be_missing() -> None:
    assert lines.lines_of("a=1\nb=2") == ["a=1", "b=2"]
    # Only a line feed ends a line.
    assert lines.lines_of("a=1\x0bb=2\n") == ["a=1\x0bb=2"]


def test_a_new_word_is_taken_for_the_one_that_means_nothing() -> None:
    assert lines.choice(Weather, "fine", Weather.UNKNOWN) is Weather.FINE
    assert lines.choice(Weather, "stormy", Weather.UNKNOWN) is Weather.UNKNOWN
    assert lines.choice_or_new(Weather, "fine") is Weather.FINE
    assert lines.choice_or_new(Weather, "as-it-2-was") == "as-it-2-was"


@pytest.mark.parametrize("word", ["", "Fine", "2fine", "-fine", "fine day", "\x1b[31m", "x" * 41, "fine\n"])
def test_what_is_no_word_is_refused(word: str) -> None:
    with pytest.raises(RefusedError):
        lines.choice(Weather, word, Weather.UNKNOWN)
    with pytest.raises(RefusedError):
        lines.choice_or_new(Weather, word)


@pytest.mark.parametrize("yes", [True, False])
def test_yes_and_no(yes: bool) -> None:
    assert lines.yes_or_no(lines.said(yes), otherwise=not yes) is yes
    assert lines.yes_or_no("perhaps", otherwise=yes) is yes


@given(st.none() | st.integers(0, 10**20 - 1))
def test_numbers_are_read_as_they_were_printed(number: int | None) -> None:
    assert lines.count({"n": lines.number(number)}, "n") == number
    assert lines.count({}, "n") is None


@pytest.mark.parametrize("text", ["", "-1", "1.0", "0x1", "1" * 21, "unknown"])
def test_what_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(RefusedError):
        lines.count({"n": text}, "n")
