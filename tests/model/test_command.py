# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
import pytest
from hypothesis import given
from hypothesis import strategies as st

from portfwd.model.command import parse_match
from portfwd.model.errors import RuleError
from portfwd.model.forward import ForwardRule
from portfwd.model.ordinary import OrdinaryRule
from portfwd.wire.errors import RefusedError

NOW = 1_800_000_000.7


# The syntax of the stock tool, which must not change.
@pytest.mark.parametrize(
    ("tokens", "line"),
    [
        (["accept"], "action=accept"),
        (["drop", "1.2.3.4", "tcp", "443"], "action=drop proto=tcp dst4=1.2.3.4/32 dstports=443-443"),
        (["accept", "1.2.3.4", "icmp", "8"], "action=accept proto=icmp dst4=1.2.3.4/32 icmptype=8"),
        (["proto=tcp", "accept", "a.b", "80"], "action=accept proto=tcp dsthost=a.b dstports=80-80"),
        (["accept", "dst6=fd00::1"], "action=accept dst6=fd00::1/128"),
        (["accept", "dst4=1.2.3.4", "udp", "1-2"], "action=accept proto=udp dst4=1.2.3.4/32 dstports=1-2"),
        (["action=accept", "specialtarget=dns"], "action=accept specialtarget=dns"),
        (["accept", "comment=with spaces, ok"], "action=accept comment=with spaces, ok"),
        (["accept", "expire=3000000000"], "action=accept expire=3000000000"),
        (["accept", "expire=+300"], "action=accept expire=1800000300"),
        (["accept", "0.0.0.0/0", "tcp"], "action=accept proto=tcp"),
        (["drop", "action=accept"], "action=accept"),
    ],
)
def test_ordinary_rules_as_always(tokens: list[str], line: str) -> None:
    rule = parse_match(tokens, NOW)
    assert isinstance(rule, OrdinaryRule)
    assert rule.line(everything=True) == line


FORWARD = "action=forward forwardtype=external proto=tcp srcports=443-443 dstports=8443-8443"


@pytest.mark.parametrize(
    ("tokens", "line"),
    [
        (["forward", "external", "tcp", "443", "8443"], FORWARD),
        (["forward", "external", "tcp", "443", "8443", "10.1.2.3/8"], f"{FORWARD} srchost=10.0.0.0/8"),
        (FORWARD.split(), FORWARD),
        (["proto=tcp", "action=forward", "external", "443", "8443", "any"], f"{FORWARD} srchost=any"),
        (["dstports=8443", "forward", "external", "tcp", "443"], FORWARD),
        (["src4=1.2.3.4", "forward", "external", "tcp", "443", "8443"], f"{FORWARD} srchost=1.2.3.4/32"),
        (["forward", "external", "tcp", "443", "8443", "comment=for my friends"], f"{FORWARD} comment=for my friends"),
        (["forward", "external", "srcports=53"], "action=forward forwardtype=external srcports=53-53 dstports=53-53"),
        ([*FORWARD.split(), "expire=+300"], f"{FORWARD} expire=1800000300"),
        ([*FORWARD.split(), "expire=+30m"], f"{FORWARD} expire=1800001800"),
        ([*FORWARD.split(), "expire=+2h"], f"{FORWARD} expire=1800007200"),
        ([*FORWARD.split(), "expire=+7d"], f"{FORWARD} expire=1800604800"),
        ([*FORWARD.split(), "expire=shutdown"], f"{FORWARD} expire=shutdown"),
    ],
)
def test_forwards(tokens: list[str], line: str) -> None:
    rule = parse_match(tokens, NOW)
    assert isinstance(rule, ForwardRule)
    assert str(rule) == line


@pytest.mark.parametrize(
    ("tokens", "error"),
    [
        ([], "'action=': this word is missing"),
        ([""], "invalid rule description"),
        (["accept", "comment=a=b"], "'comment=a=b': invalid rule description"),
        (["accept", "comment="], "'comment=': invalid rule description"),
        (["accept", "foo=bar"], "'foo=bar': invalid rule element"),
        (["accept", "dstport=80"], "'dstport=80': invalid rule element; did you mean 'dstports'?"),
        (["foward", "external", "tcp", "443"], "action is accept or drop or forward; did you mean 'forward'?"),
        (["accept", "srcports=443"], "'srcports=443': goes with action=forward only"),
        (["accept", "forwardtype=external"], "goes with action=forward only"),
        (["accept", "1.2.3.4", "tcp", "1", "8"], "'8': one value too many"),
        (["foward", "external"], "did you mean 'forward'?"),
        (["accept", "expire=+x"], "a time from now is like +300 (seconds), +30m, +2h or +7d"),
        (["accept", "expire=reboot"], "expire is seconds since 1970"),
        (["forward"], "'forwardtype=': this word is missing: external or internal"),
        (["forward", "external", "tcp"], "'srcports=': this word is missing"),
        (["forward", "external", "443"], "'proto=443': proto is tcp or udp"),
        (["forward", "external", "tcp", "80443"], "port '80443' is out of range"),
        (["forward", "external", "tcp", "1", "1", "any", "x"], "'x': one value too many"),
        (
            ["forward", "forwardtype=external", "forwardtype=internal"],
            "'forwardtype=internal': this word is given twice",
        ),
        (["forward", "action=accept"], "'action=accept': this word is given twice"),
        ([*FORWARD.split(), "dsthost=10.0.0.1"], "the qube's own address is always the target"),
        ([*FORWARD.split(), "expire=1000"], "'expire=1000': this time is over"),
        ([*FORWARD.split(), "expire=+0"], "this time is over"),
        ([*FORWARD.split(), "expire=+999999999999d"], "a time is at most"),
    ],
)
def test_refused_with_the_word_and_the_reason(tokens: list[str], error: str) -> None:
    with pytest.raises(RuleError) as caught:
        parse_match(tokens, NOW)
    assert error in str(caught.value)


vocabulary = ("accept", "forward", "external", "tcp", "icmp", "443", "a.b", "expire=+1h", "proto=udp", "srchost=any")


@given(st.lists(st.sampled_from(vocabulary) | st.text(max_size=10), max_size=7))
def test_any_words_are_either_a_rule_or_refused(tokens: list[str]) -> None:
    try:
        parse_match(tokens, NOW)
    except RefusedError as error:
        assert all(" " <= letter <= "~" and letter != "%" for letter in str(error))
