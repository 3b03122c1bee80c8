# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
import contextlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from portfwd.api.forwards import format_forwards, parse_forwards, token
from portfwd.model.errors import RuleError
from portfwd.model.forward import (
    KEYS,
    ForwardRule,
    ForwardType,
    parse_forward,
)
from portfwd.wire.errors import RefusedError
from portfwd.wire.values import HostName, PortRange, Proto, QubeName
from tests.model.strategies import forward_rules

WORK = QubeName("work")


@given(forward_rules())
def test_what_is_printed_reads_back_as_the_same_rule(rule: ForwardRule) -> None:
    assert parse_forward(str(rule)) == rule


@given(st.lists(forward_rules(), max_size=5, unique_by=lambda rule: rule.does))
def test_a_whole_list_reads_back(many: list[ForwardRule]) -> None:
    assert parse_forwards(format_forwards(many)) == tuple(many)


words = st.tuples(st.sampled_from((*KEYS, "dst4", "x")), st.text(max_size=12) | st.sampled_from(("443", "tcp")))
nearly = st.lists(words.map("=".join), max_size=8).map(" ".join)


@given(st.text() | nearly | nearly.map(lambda line: f"action=forward forwardtype=external srcports=1-2 {line}"))
@example("action=forward forwardtype=external srcports=1 dstports=1--2")
@example("action=forward forwardtype=external srcports=1 srchost=1.2.3.4/")
@example("action=forward forwardtype=external srcports=1 srchost=/")
@example("action=forward forwardtype=external srcports=²")
@example("\x00")
def test_any_text_is_either_a_rule_or_refused_in_words_that_a_stock_client_can_show(line: str) -> None:
    for parse in (parse_forward, parse_forwards):
        try:
            parse(line)
        except RefusedError as error:
            assert str(error)
            assert all(" " <= letter <= "~" and letter != "%" for letter in str(error))
            assert not str(error).endswith(".")


@given(st.binary())
def test_any_payload_is_either_a_list_or_refused(untrusted: bytes) -> None:
    with contextlib.suppress(RefusedError):
        parse_forwards(untrusted.decode("latin-1"))


def test_canonical_form_has_one_order_long_ports_and_the_target_ports() -> None:
    line = "comment=web server for [friends], since 2026"
    rule = parse_forward(f"srcports=443 srchost=192.168.1.77/24 proto=tcp action=forward forwardtype=external {line}")
    assert str(rule) == (
        f"action=forward forwardtype=external proto=tcp srcports=443-443 dstports=443-443 srchost=192.168.1.0/24 {line}"
    )


@pytest.mark.parametrize(
    ("word", "printed"),
    [
        ("", ""),
        (" srchost=neighbours", ""),
        (" srchost=any", " srchost=any"),
        (" srchost=0.0.0.0/0", " srchost=0.0.0.0/0"),
        (" src6=::/0", " srchost=::/0"),
        (" src4=2001:DB8::1", " srchost=2001:db8::1/128"),
        (" src4=10.0.0.1", " srchost=10.0.0.1/32"),
        (" srchost=laptop.lan", " srchost=laptop.lan"),
        (" enabled=yes", ""),
        (" enabled=no", " enabled=no"),
        (" expire=reboot", " expire=reboot"),
        (" expire=0003000000000", " expire=3000000000"),
    ],
)
def test_spellings(word: str, printed: str) -> None:
    start = "action=forward forwardtype=internal srcports=53-53"
    assert str(parse_forward(start + word)) == f"{start} dstports=53-53{printed}"


def test_without_proto_both_are_forwarded() -> None:
    rule = parse_forward("action=forward forwardtype=external srcports=53")
    assert rule.protos == (Proto.TCP, Proto.UDP)


GOOD = "action=forward forwardtype=external srcports=443"


@pytest.mark.parametrize(
    ("line", "error"),
    [
        (
            "action=forward forwardtype=external proto=tcp srcports=443-443 dstports=80443-80443",
            "'dstports=80443-80443': port '80443' is out of range: a port is 1 to 65535",
        ),
        (f"{GOOD} dsthost=10.0.0.1", "'dsthost=10.0.0.1': the qube's own address is always the target"),
        (f"{GOOD} dst4=10.0.0.1", "'dst4=10.0.0.1': the qube's own address is always the target"),
        (f"{GOOD} dst6=::1", "'dst6=::1': the qube's own address is always the target"),
        (f"{GOOD} specialtarget=dns", "'specialtarget=dns': this word does not go with action=forward"),
        (f"{GOOD} icmptype=8", "'icmptype=8': this word does not go with action=forward"),
        (f"{GOOD} proto=icmp", "'proto=icmp': proto is tcp or udp"),
        (f"{GOOD} srcport=443", "'srcport=443': unknown word; did you mean 'srcports'?"),
        (f"{GOOD} srcports=444", "'srcports=444': this word is given twice"),
        (f"{GOOD} srchost=a src4=1.2.3.4", "'src4': the same as srchost, which is already given"),
        (f"{GOOD} dstports=8443-8444", "'dstports=8443-8444': dstports is one port, or as many as srcports=443-443"),
        (f"{GOOD}-446 dstports=1-2", "'dstports=1-2': dstports is one port, or as many as srcports=443-446"),
        (f"{GOOD} dstports=0", "'dstports=0': port '0' is out of range: a port is 1 to 65535"),
        (f"{GOOD} dstports=2-1", "'dstports=2-1': port range '2-1' ends before it begins"),
        (f"{GOOD} dstports=+80", "'dstports=+80': a value has only letters, digits and : ; , . / - _ [ ]"),
        (f"{GOOD} enabled=true", "'enabled=true': enabled is yes or no"),
        (f"{GOOD} expire=+300", "'expire=+300': a time from now is understood on the command line only"),
        (f"{GOOD} expire=rebot", "'expire=rebot': expire is seconds since 1970, reboot or shutdown; did you mean"),
        (f"{GOOD} expire=253402300800", "'expire=253402300800': a time is at most 253402300799 seconds since 1970"),
        (f"{GOOD} srchost=neighbors", "'srchost=neighbors': not a host name; did you mean 'neighbours'?"),
        (f"{GOOD} srchost=Laptop", "'srchost=Laptop': 'Laptop' is not a host name"),
        (f"{GOOD} srchost=1.2.3.4/33", "'srchost=1.2.3.4/33': '1.2.3.4/33' has a wrong prefix length"),
        (f"{GOOD} srchost=fe80::1%eth0", "'srchost=fe80::1?eth0': a value has only"),
        (f"{GOOD} comment=100% sure", "'comment=100? sure': a comment has only"),
        (f"{GOOD} comment=a=b", "'comment=a=b': a comment has only"),
        (f"{GOOD} comment=", "'comment=': the value is empty"),
        (f"{GOOD} proto=", "'proto=': a word is KEY=VALUE"),
        (f"{GOOD}  proto=tcp", "words are parted by exactly one space"),
        (f" {GOOD}", "words are parted by exactly one space"),
        (f"{GOOD} ", "words are parted by exactly one space"),
        ("", "'': the line is empty"),
        ("action=forward srcports=443", "'forwardtype=': this word is missing: external or internal"),
        ("action=forward forwardtype=external", "'srcports=': this word is missing"),
        (
            "action=forward forwardtype=extern srcports=1",
            "forwardtype is external or internal; did you mean 'external'?",
        ),
        ("action=accept forwardtype=external srcports=1", "'action=accept': a forward rule has action=forward"),
        ("forwardtype=external srcports=1", "'action=': a forward rule has action=forward"),
    ],
)
def test_refused_with_the_word_and_the_reason(line: str, error: str) -> None:
    with pytest.raises(RuleError) as caught:
        parse_forward(line)
    assert error in str(caught.value)


def test_an_error_can_be_taken_apart() -> None:
    with pytest.raises(RuleError) as caught:
        parse_forwards(f"{GOOD}\n{GOOD} srcprots=1\n")
    error = caught.value
    assert (error.line, error.word, error.hint) == (2, "srcprots=1", "srcports")
    assert str(error) == "line 2: 'srcprots=1': unknown word; did you mean 'srcports'?"


def test_two_rules_that_do_the_same_are_refused_whatever_else_differs() -> None:
    with pytest.raises(RuleError, match=r"line 3: .*: does the same as line 1"):
        parse_forwards(f"{GOOD}\n{GOOD} proto=udp\n{GOOD} dstports=443 enabled=no comment=again\n")


def test_a_cut_payload_is_refused() -> None:
    with pytest.raises(RuleError, match=r"line 2: .*has no line end"):
        parse_forwards(f"{GOOD}\n{GOOD} proto=tcp")


@pytest.mark.parametrize("end", ["\r\n", "\x0b", "\x1c", "\u2028"])
def test_only_a_line_feed_ends_a_line(end: str) -> None:
    with pytest.raises(RefusedError):
        parse_forwards(f"{GOOD}{end}{GOOD} proto=tcp\n")


def test_id_follows_what_the_rule_does_and_nothing_else() -> None:
    rule = parse_forward(f"{GOOD} srchost=10.0.0.1/8")
    same = ("comment=other", "enabled=no", "expire=reboot", "dstports=443-443")
    assert {parse_forward(f"{GOOD} srchost=10.0.0.0/8 {word}").id(WORK) for word in same} == {rule.id(WORK)}
    other = ("proto=tcp", "dstports=8443", "srchost=any", "src4=10.0.0.0/9")
    assert rule.id(WORK) not in {parse_forward(f"{GOOD} {word}").id(WORK) for word in other}
    assert rule.id(QubeName("personal")) != rule.id(WORK)


def test_id_is_the_same_in_every_release() -> None:
    assert parse_forward(f"{GOOD} proto=tcp").id(WORK) == "eb3a4a90ec13f5b0"


def test_token_changes_with_the_list() -> None:
    text = format_forwards(parse_forwards(f"{GOOD}\n"))
    assert len(token(text)) == 32
    assert token(text) == token(text) != token(text + f"{GOOD} proto=tcp\n")


def test_a_host_name_cannot_be_one_of_the_words_for_sources() -> None:
    ports = PortRange(1, 1)
    with pytest.raises(RuleError, match="not a host name"):
        ForwardRule(ForwardType.EXTERNAL, ports, ports, srchost=HostName("any"))
