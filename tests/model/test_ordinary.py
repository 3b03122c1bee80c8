# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
import pytest
from hypothesis import given
from hypothesis import strategies as st

from portfwd.model.errors import RuleError
from portfwd.model.ordinary import KEYS, parse_ordinary
from portfwd.wire.errors import RefusedError

# Read by a real qubesd (R4.4): what it is given, what admin.vm.firewall.Get then prints.
ACCEPTED = [
    ("action=accept", "action=accept"),
    ("action=drop proto=icmp icmptype=008", "action=drop proto=icmp icmptype=8"),
    ("action=accept dsthost=1.2.3.4", "action=accept dst4=1.2.3.4/32"),
    ("action=accept dst6=1.2.3.4", "action=accept dst4=1.2.3.4/32"),
    ("action=accept dst4=2001:DB8::/32", "action=accept dst6=2001:DB8::/32"),
    ("action=accept dstname=a.example", "action=accept dsthost=a.example"),
    ("action=accept dsthost=1.2.3.4/024", "action=accept dst4=1.2.3.4/024"),
    ("action=accept dst4=0.0.0.0/0", "action=accept dst4=0.0.0.0/0"),
    ("action=accept dsthost=01.2.3.4", "action=accept dsthost=01.2.3.4"),
    ("action=accept dsthost=1.2.3", "action=accept dsthost=1.2.3"),
    ("action=accept dsthost=-x", "action=accept dsthost=-x"),
    ("action=accept dsthost=", "action=accept dsthost="),
    ("action=accept proto=tcp dstports=+80", "action=accept proto=tcp dstports=80-80"),
    ("action=accept proto=tcp dstports=080-1_000", "action=accept proto=tcp dstports=80-1000"),
    ("action=accept proto=udp dstports=0", "action=accept proto=udp dstports=0-0"),
    ("dstports=1-2 proto=tcp action=accept", "action=accept proto=tcp dstports=1-2"),
    ("action=accept expire=03000000000", "action=accept expire=03000000000"),
    ("action=accept comment=", "action=accept"),
    ("action=accept comment= a  b ", "action=accept comment= a  b "),
    ("action=accept\tcomment=x", "action=accept comment=x"),
    (" action=accept ", "action=accept"),
    (
        "icmptype=8 specialtarget=dns proto=icmp dst4=1.2.3.4/8 expire=3000000000 action=drop comment=last",
        "action=drop expire=3000000000 dst4=1.2.3.4/8 proto=icmp specialtarget=dns icmptype=8 comment=last",
    ),
]


@pytest.mark.parametrize(("given_line", "printed"), ACCEPTED)
def test_as_a_stock_qubesd_reads_and_prints_it(given_line: str, printed: str) -> None:
    assert parse_ordinary(given_line).api_line() == printed


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("", "a word is KEY=VALUE"),
        ("dsthost=a", "'action=': this word is missing"),
        ("action=Accept", "'action=Accept': action is accept or drop; did you mean 'accept'?"),
        ("action=forward", "'action=forward': action is accept or drop"),
        ("action=accept  proto=tcp", "parted by exactly one space"),
        ("action=accept action=drop", "this word is given twice"),
        ("action=accept dst4=1.2.3.4 dsthost=a", "'dst4': the same as dsthost, which is already given"),
        ("action=accept srcports=443", "'srcports=443': unknown word; did you mean"),
        ("action=accept proto=TCP", "proto is tcp or udp or icmp"),
        ("action=accept dstports=80", "'dstports=80-80': dstports goes with proto=tcp or proto=udp only"),
        ("action=accept proto=icmp dstports=80", "dstports goes with"),
        ("action=accept proto=tcp icmptype=8", "icmptype goes with proto=icmp only"),
        ("action=accept proto=tcp dstports=65536", "'dstports=65536': a port is at most 65535"),
        ("action=accept proto=tcp dstports=2-1", "the range ends before it begins"),
        ("action=accept proto=tcp dstports=1,2", "dstports is a port or a range of ports"),
        ("action=accept proto=tcp dstports=0--0", "dstports is a port or a range of ports"),
        ("action=accept proto=icmp icmptype=256", "an ICMP type is 0 to 255"),
        ("action=accept dsthost=A.example", "neither an address nor a host name in lower case"),
        ("action=accept dsthost=1.2.3.4/33", "a prefix length is 0 to 32"),
        ("action=accept dsthost=1.2.3/24", "there is no address before the prefix length"),
        ("action=accept dsthost=::1/129", "a prefix length is 0 to 128"),
        ("action=accept dsthost=1.2.3.4/", "a prefix length is a number"),
        ("action=accept dsthost=fe80::1%eth0", "a value has only"),
        ("action=accept specialtarget=ntp", "specialtarget is dns"),
        ("action=accept expire=+300", "expire is seconds since 1970"),
        ("action=accept expire=99999999999999", "a time is at most"),
        ("action=accept comment=b dst4=1.2.3.4", "a comment has only"),
        ("action=accept comment=wow!", "a comment has only"),
        ("action=accept\naction=drop", "a rule is one line of ASCII"),
        ("action=accept comment=é", "a rule is one line of ASCII"),
    ],
)
def test_refused_with_the_word_and_the_reason(line: str, error: str) -> None:
    with pytest.raises(RuleError) as caught:
        parse_ordinary(line)
    assert error in str(caught.value)


def test_the_stock_client_has_an_order_of_its_own() -> None:
    rule = parse_ordinary(
        "action=drop specialtarget=dns expire=3000000000 dst4=1.2.3.4/8 proto=tcp dstports=1 comment=z"
    )
    words = "action=drop proto=tcp dst4=1.2.3.4/8 dstports=1-1 specialtarget=dns expire=3000000000 comment=z"
    assert rule.line() == words


@pytest.mark.parametrize("everything", ["0.0.0.0/0", "::/0"])
def test_the_stock_client_leaves_out_a_whole_family(everything: str) -> None:
    rule = parse_ordinary(f"action=accept dsthost={everything} proto=tcp")
    assert rule.line() == "action=accept proto=tcp"
    assert everything in rule.line(everything=True)


words = st.tuples(
    st.sampled_from((*KEYS, "comment", "x")),
    st.sampled_from(("accept", "drop", "tcp", "udp", "icmp", "1.2.3.4", "::1", "a.b", "8", "1-2", "dns", ""))
    | st.text(max_size=8),
)
lines = st.lists(words.map("=".join), max_size=6).map(" ".join)


@given(st.text() | lines | lines.map(lambda line: f"action=accept {line}"))
def test_any_text_is_either_a_rule_that_reads_back_or_refused(line: str) -> None:
    try:
        rule = parse_ordinary(line)
    except RefusedError as error:
        assert all(" " <= letter <= "~" and letter != "%" for letter in str(error))
    else:
        assert parse_ordinary(rule.api_line()) == rule
        assert parse_ordinary(rule.line(everything=True)) == rule


def test_an_expired_rule_is_known_as_such() -> None:
    rule = parse_ordinary("action=accept expire=1000")
    assert not rule.expired(999.5)
    assert rule.expired(1000.5)
