# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The list of a qube's forwards, as dom0 gives and takes it."""

from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portfwd.api.forwards import Forwards, format_forwards, format_kept, parse_forwards, parse_kept, token
from portfwd.model.errors import RuleError
from portfwd.model.forward import ForwardRule
from portfwd.wire import limits
from portfwd.wire.errors import RefusedError
from tests.api import samples
from tests.model.strategies import forward_rules

NEW = samples.FORWARDS.replace("proto=tcp", "weather=fine proto=tcp moon=full")
rule_lists = st.lists(forward_rules(), max_size=5, unique_by=lambda rule: rule.does).map(tuple)


@given(rule_lists)
def test_it_is_read_as_it_was_meant(said: tuple[ForwardRule, ...]) -> None:
    text = format_forwards(said)
    assert parse_forwards(text) == said
    assert Forwards.parse(text) == (said, token(text))


def test_a_token_names_a_text() -> None:
    assert token("") == "e3b0c44298fc1c149afbf4c8996fb924"
    assert token("a\n") != token("b\n")


def test_a_client_keeps_the_words_of_a_newer_dom0_with_their_rule() -> None:
    rules = Forwards.parse(NEW).rules
    assert [rule.further for rule in rules] == [("weather=fine", "moon=full")] * 3 + [()]
    assert [rule.id(samples.WORK) for rule in rules] == [r.id(samples.WORK) for r in parse_forwards(samples.FORWARDS)]
    assert Forwards.parse(format_forwards(rules)).rules == rules
    assert str(rules[0]).endswith(" weather=fine moon=full comment=web")


def test_dom0_refuses_them() -> None:
    with pytest.raises(RuleError, match="line 1: 'weather=fine': unknown word"):
        parse_forwards(NEW)


@pytest.mark.parametrize("word", ["weather", "weather=", "weather=a%b", "weather=fine weather=fine"])
def test_what_is_no_word_is_refused_by_a_client_too(word: str) -> None:
    with pytest.raises(RuleError):
        Forwards.parse(samples.FORWARDS.replace("proto=tcp", f"{word} proto=tcp"))


def test_a_qube_has_a_bounded_number_of_forwards() -> None:
    many = [f"action=forward forwardtype=internal srcports={port}\n" for port in range(1, limits.FORWARDS_MAX + 2)]
    assert len(parse_forwards("".join(many[:-1]))) == limits.FORWARDS_MAX
    with pytest.raises(RuleError, match=f"line {limits.FORWARDS_MAX + 1}: "):
        parse_forwards("".join(many))


def test_where_a_file_is_kept_is_read_as_it_was_meant() -> None:
    path = PurePosixPath("/var/lib/qubes/appvms/personal/firewall.xml.damaged-2026-11-28-12:00:00")
    assert format_kept(path) == f"kept={path}\n"
    assert parse_kept(format_kept(path)) == path
    assert parse_kept("") is None
    assert parse_kept("weather=fine\n") is None
    with pytest.raises(RefusedError):
        parse_kept("kept\n")
