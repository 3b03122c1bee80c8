# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""What stands in the dialog of an ordinary rule and what it amounts to, and the list of them; no window is needed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portfwd.client.text.sentences import local_time
from portfwd.gui.state.outbound_draft import (
    Ending,
    OutboundDraft,
    OutboundList,
    OutField,
    Target,
    check_outbound,
    describe,
    draft_of_outbound,
    hint,
)
from portfwd.model.ordinary import Action, OrdinaryRule, Protocol, parse_ordinary
from portfwd.wire.values import Proto
from tests.model.strategies import ordinary_rules

NOW = 1_800_000_000.0
A, B, C = (parse_ordinary(f"action=drop dst4=10.0.0.{number}") for number in (1, 2, 3))
ALL = parse_ordinary("action=accept")


def lookup(name: str) -> dict[Proto, int]:
    """A small services database, the same on every machine."""
    return {"https": {Proto.TCP: 443, Proto.UDP: 443}, "9pfs": {Proto.TCP: 564}}.get(name, {})


def line_of(**fields: object) -> str:
    checked = check_outbound(OutboundDraft(**fields), NOW, lookup)  # type: ignore[arg-type]
    assert checked.rule is not None, checked.errors
    return checked.rule.line(everything=True)


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"target": Target.ANYWHERE}, "action=accept"),
        ({"target": Target.ANYWHERE, "host": "of no use"}, "action=accept"),
        ({"action": Action.DROP, "host": " 1.2.3.4 "}, "action=drop dst4=1.2.3.4/32"),
        ({"host": "2001:db8::/32"}, "action=accept dst6=2001:db8::/32"),
        ({"host": "example.com"}, "action=accept dsthost=example.com"),
        ({"target": Target.DNS}, "action=accept specialtarget=dns"),
        (
            {"host": "1.2.3.4", "proto": Protocol.TCP, "ports": "80-90"},
            "action=accept proto=tcp dst4=1.2.3.4/32 dstports=80-90",
        ),
        (
            {"host": "1.2.3.4", "proto": Protocol.UDP, "ports": "https"},
            "action=accept proto=udp dst4=1.2.3.4/32 dstports=443-443",
        ),
        (
            {"host": "1.2.3.4", "proto": Protocol.TCP, "ports": "9pfs"},
            "action=accept proto=tcp dst4=1.2.3.4/32 dstports=564-564",
        ),
        ({"host": "1.2.3.4", "ports": "80"}, "action=accept dst4=1.2.3.4/32"),
        (
            {"host": "1.2.3.4", "proto": Protocol.ICMP, "icmptype": "8", "ports": "80"},
            "action=accept proto=icmp dst4=1.2.3.4/32 icmptype=8",
        ),
        ({"host": "a", "ending": Ending.MINUTES_15}, "action=accept dsthost=a expire=1800000900"),
        (
            {"host": "a", "ending": Ending.HOURS_2, "comment": "tea"},
            "action=accept dsthost=a expire=1800007200 comment=tea",
        ),
    ],
)
def test_fields_make_a_rule(fields: dict[str, object], line: str) -> None:
    assert line_of(**fields) == line


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({"host": ""}, OutField.HOST, "an address, a network"),
        ({"host": "10.0.0.0/33"}, OutField.HOST, "0 to 32"),
        ({"host": "Example.com"}, OutField.HOST, "lower case"),
        ({"proto": Protocol.TCP, "ports": "70000"}, OutField.PORTS, "65535"),
        ({"proto": Protocol.TCP, "ports": "90-80"}, OutField.PORTS, "ends before it begins"),
        ({"proto": Protocol.TCP, "ports": "htps"}, OutField.PORTS, "services database has no tcp"),
        ({"proto": Protocol.UDP, "ports": "9pfs"}, OutField.PORTS, "services database has no udp"),
        ({"proto": Protocol.TCP, "ports": "8_0"}, OutField.PORTS, "services database"),
        ({"proto": Protocol.ICMP, "icmptype": "256"}, OutField.ICMP, "0 to 255"),
        ({"proto": Protocol.ICMP, "icmptype": "9" * 5000}, OutField.ICMP, "0 to 255"),
        ({"ending": Ending.DATE, "date": "1999-01-01 10:00"}, OutField.DATE, "over"),
        ({"ending": Ending.DATE, "date": ""}, OutField.DATE, "a date and time such as"),
        ({"ending": Ending.DATE, "date": "reboot"}, OutField.DATE, "a date and time such as"),
        ({"comment": "\N{SNOWMAN}"}, OutField.COMMENT, "letters, digits"),
    ],
)
def test_an_error_belongs_to_a_field(fields: dict[str, object], field: OutField, words: str) -> None:
    checked = check_outbound(OutboundDraft(**{"host": "1.2.3.4", **fields}), NOW, lookup)  # type: ignore[arg-type]
    assert checked.rule is None
    assert list(checked.errors) == [field]
    assert words in checked.errors[field]


@given(ordinary_rules())
def test_every_ordinary_rule_can_be_edited_and_stays_as_it_is(rule: OrdinaryRule) -> None:
    assert check_outbound(draft_of_outbound(rule), NOW, lookup).rule == rule


@pytest.mark.parametrize(
    "line",
    [
        "action=drop dsthost=",
        "action=accept dsthost= specialtarget=dns",
        "action=accept dst4=1.2.3.4 specialtarget=dns proto=udp dstports=53",
        "action=accept dst6=2001:DB8::1/32 expire=007",
        "action=accept dst4=10.1.2.3/008 proto=tcp dstports=+080-090",
        "action=drop proto=udp dstports=0",
        "action=drop proto=icmp icmptype=0 comment= two  blanks ",
    ],
)
def test_so_can_the_oddest_that_a_server_takes(line: str) -> None:
    rule = parse_ordinary(line)
    assert check_outbound(draft_of_outbound(rule), NOW, lookup).rule == rule


@given(
    st.builds(
        OutboundDraft,
        target=st.sampled_from(Target),
        host=st.text(),
        proto=st.none() | st.sampled_from(Protocol),
        ports=st.text() | st.text("0123456789-+ "),
        icmptype=st.text() | st.text("0123456789"),
        ending=st.sampled_from(Ending),
        date=st.text() | st.text("0123456789-: T"),
        comment=st.text(),
    )
)
def test_whatever_is_typed_is_a_rule_or_an_error(draft: OutboundDraft) -> None:
    checked = check_outbound(draft, NOW, lookup)
    assert (checked.rule is None) == bool(checked.errors)
    if checked.rule is not None:
        assert parse_ordinary(checked.rule.line(everything=True)) == checked.rule


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("action=accept", "Accept everything to anywhere"),
        ("action=accept proto=tcp dst4=192.168.1.0/24 dstports=80-90", "Accept tcp to 192.168.1.0/24, ports 80-90"),
        ("action=drop proto=udp dst4=1.2.3.4 dstports=53", "Drop udp to 1.2.3.4, port 53"),
        ("action=drop proto=icmp dst6=::1 icmptype=8", "Drop icmp to ::1, type 8"),
        # An address of IPv4 has 32 bits; of IPv6, that is a network.
        ("action=drop dst6=2001:db8::/32", "Drop everything to 2001:db8::/32"),
        ("action=accept specialtarget=dns", "Accept everything to the name servers"),
        ("action=accept specialtarget=dns dst4=1.1.1.1", "Accept everything to the name servers at 1.1.1.1"),
        ("action=drop dsthost=", "Drop everything to a host without name"),
    ],
)
def test_a_rule_in_a_sentence(line: str, sentence: str) -> None:
    assert describe(parse_ordinary(line), NOW) == sentence


def test_the_sentence_names_the_end() -> None:
    rule = parse_ordinary("action=accept expire=1800003600")
    assert describe(rule, NOW) == f"Accept everything to anywhere, until {local_time(NOW + 3600, NOW)}"


def test_the_hint_tells_of_rules_that_never_matter_and_of_the_end_of_the_list() -> None:
    assert hint((A, ALL)) == ""
    assert hint(()) == hint((A,)) == "What no rule accepts is dropped."
    assert hint((A, ALL, B, C)) == "Rule 1 decides about everything; the 2 after it never matter."
    # It ends, or is about one family only, so what follows matters.
    for line in ("action=accept expire=4000000000", "action=accept dst4=0.0.0.0/0", "action=accept proto=tcp"):
        assert hint((parse_ordinary(line), A)) == "What no rule accepts is dropped."


def test_the_list_is_dirty_until_it_is_as_it_was_read() -> None:
    read = OutboundList((A, B), (A, B))
    assert not read.dirty
    assert read.insert(1, C).rules == (A, C, B)
    assert read.replace(1, C).rules == (A, C)
    assert read.remove(0).rules == (B,)
    assert read.move(0, 1).rules == (B, A)
    assert read.move(0, -1) == read.move(1, 1) == read
    assert read.everything(Action.DROP).rules == (OrdinaryRule(Action.DROP),)
    assert read.insert(1, C).dirty
    assert not read.insert(1, C).remove(1).dirty


def test_a_rule_is_found_again_in_a_list_that_was_read_anew() -> None:
    assert OutboundList((), (A, B, A)).place_of(A, 2) == 2
    assert OutboundList((), (B, C)).place_of(C, 2) == 1
    assert OutboundList((), (B, C)).place_of(A, 0) is None
