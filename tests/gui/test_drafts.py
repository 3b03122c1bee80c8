# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""What stands in the dialogs and what it amounts to; no window is needed for that."""

import ipaddress

import pytest
from hypothesis import given

from portfwd.client.typed.arguments import lookup_service
from portfwd.gui.state.draft import Draft, Field, Holder, Lasting, Place, Reach, check, draft_of, suggestion
from portfwd.gui.state.outbound_draft import OutboundDraft, OutboundList, check_outbound, draft_of_outbound, hint
from portfwd.model.forward import ForwardRule, ForwardType, parse_forward
from portfwd.model.ordinary import OrdinaryRule, parse_ordinary
from portfwd.wire.sources import source_fault
from portfwd.wire.values import Family, PortRange, Proto, QubeName
from tests.model.strategies import forward_rules, ordinary_rules

NOW = 1_800_000_000.0
WORK = QubeName("work")
PLACE = Place(
    WORK,
    QubeName("sys-firewall"),
    QubeName("sys-net"),
    frozenset((Family.V4,)),
    (ipaddress.ip_interface("192.168.1.10/24"),),
    (Holder(ForwardType.EXTERNAL, (Proto.TCP,), PortRange(443, 443), QubeName("personal")),),
)


def rule_of(**fields: object) -> str:
    return str(check(Draft(**fields), PLACE, NOW, lookup_service).rule)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"ports": "8443"}, "forwardtype=external proto=tcp srcports=8443-8443 dstports=8443-8443"),
        ({"ports": "ssh"}, "forwardtype=external proto=tcp srcports=22-22 dstports=22-22"),
        ({"ports": "8443", "entrance": "444"}, "forwardtype=external proto=tcp srcports=444-444 dstports=8443-8443"),
        ({"ports": "5000-5010", "proto": None}, "forwardtype=external srcports=5000-5010 dstports=5000-5010"),
        ({"ports": "1", "reach": Reach.ANYONE}, "forwardtype=external proto=tcp srcports=1-1 dstports=1-1 srchost=any"),
        ({"ports": "1", "reach": Reach.INTERNAL}, "forwardtype=internal proto=tcp srcports=1-1 dstports=1-1"),
        (
            {"ports": "1", "reach": Reach.ADDRESS, "address": "192.168.1.20"},
            "forwardtype=external proto=tcp srcports=1-1 dstports=1-1 srchost=192.168.1.20/32",
        ),
        (
            {"ports": "1", "lasting": Lasting.MINUTES_15, "comment": "tea"},
            "forwardtype=external proto=tcp srcports=1-1 dstports=1-1 expire=1800000900 comment=tea",
        ),
        (
            {"ports": "1", "lasting": Lasting.SHUTDOWN},
            "forwardtype=external proto=tcp srcports=1-1 dstports=1-1 expire=shutdown",
        ),
    ],
)
def test_fields_make_a_rule(fields: dict[str, object], line: str) -> None:
    assert rule_of(**fields) == f"action=forward {line}"


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({}, Field.PORTS, "a port"),
        ({"ports": "80443"}, Field.PORTS, "65535"),
        ({"ports": "sssh"}, Field.PORTS, "services database"),
        ({"ports": "443:8443"}, Field.PORTS, "a port, a range or a service"),
        ({"ports": "5000-5010", "entrance": "6000-6003"}, Field.ENTRANCE, "as many"),
        ({"ports": "443"}, Field.ENTRANCE, "443 is taken by a forward of personal"),
        ({"ports": "1", "reach": Reach.ADDRESS}, Field.ADDRESS, "an address"),
        ({"ports": "1", "reach": Reach.ADDRESS, "address": "10.0.0.0/99"}, Field.ADDRESS, ""),
        ({"ports": "1", "lasting": Lasting.DATE}, Field.DATE, "a date"),
        ({"ports": "1", "lasting": Lasting.DATE, "date": "1999-01-01 10:00"}, Field.DATE, "over"),
        ({"ports": "1", "comment": "\N{SNOWMAN}"}, Field.COMMENT, ""),
    ],
)
def test_an_error_belongs_to_a_field(fields: dict[str, object], field: Field, words: str) -> None:
    checked = check(Draft(**fields), PLACE, NOW, lookup_service)  # type: ignore[arg-type]
    assert checked.rule is None
    assert words in checked.errors[field]


def test_the_sentence_says_where_clients_will_find_it() -> None:
    checked = check(Draft(ports="8443", lasting=Lasting.REBOOT), PLACE, NOW, lookup_service)
    assert checked.sentence == (
        "LAN hosts will reach work's port 8443 at tcp 192.168.1.10:8443 until the computer restarts"
    )
    inside = check(Draft(ports="443", reach=Reach.INTERNAL), PLACE, NOW, lookup_service)
    assert inside.sentence == "Qubes behind sys-firewall will reach work's port 443 at tcp port 443 of sys-firewall"


def test_a_free_port_is_suggested_only_when_the_wanted_one_is_taken() -> None:
    assert suggestion(Draft(ports="443"), PLACE, lookup_service) == "1024"
    assert suggestion(Draft(ports="443", proto=Proto.UDP), PLACE, lookup_service) is None
    assert suggestion(Draft(ports="444"), PLACE, lookup_service) is None


@given(forward_rules().filter(lambda rule: not source_fault(rule.srchost)))
def test_a_rule_that_is_edited_and_not_touched_stays_as_it_is(rule: ForwardRule) -> None:
    assert check(draft_of(rule), Place(WORK), NOW, lookup_service).rule == rule


def test_the_own_port_of_an_edited_rule_is_not_taken() -> None:
    rule = parse_forward("action=forward forwardtype=external proto=tcp srcports=443-443")
    own = Holder(ForwardType.EXTERNAL, (Proto.TCP,), PortRange(443, 443), WORK)
    assert check(draft_of(rule), Place(WORK, holders=(own,)), NOW, lookup_service).rule == rule
    assert (
        "another forward of work"
        in check(Draft(ports="443"), Place(WORK, holders=(own,)), NOW, lookup_service).errors[Field.ENTRANCE]
    )


@given(ordinary_rules())
def test_every_ordinary_rule_can_be_edited_and_stays_as_it_is(rule: OrdinaryRule) -> None:
    assert check_outbound(draft_of_outbound(rule), NOW, lookup_service).rule == rule


def test_the_list_says_what_a_user_would_like_to_know() -> None:
    accept, drop = parse_ordinary("action=accept"), parse_ordinary("action=drop dst4=1.2.3.4")
    assert hint((drop, accept)) == ""
    assert hint((drop,)) == "What no rule accepts is dropped."
    assert hint((accept, drop)) == "Rule 0 decides about everything; the 1 after it never matter."
    edited = OutboundList((drop, accept), (drop, accept))
    assert not edited.dirty
    assert edited.move(0, 1).rules == (accept, drop)
    assert edited.move(0, -1) == edited
    assert edited.move(0, 1).move(0, 1) == edited
    assert check_outbound(OutboundDraft(host="1.2.3.4"), NOW, lookup_service).sentence == "Accept everything to 1.2.3.4"


def test_f17_a_range_that_shifts_too_many_ports_is_told_in_the_dialog() -> None:
    """One that stands already can still be edited in its other fields."""
    draft = Draft(ports="31001-61000", entrance="1001-31000")
    checked = check(draft, PLACE, NOW, lookup_service)
    assert checked.rule is None
    assert "1024 ports" in checked.errors[Field.ENTRANCE]
    assert check(Draft(ports="31001-32024", entrance="1001-2024"), PLACE, NOW, lookup_service).rule is not None
    old = parse_forward("action=forward forwardtype=external proto=tcp srcports=1001-31000 dstports=31001-61000")
    assert check(draft_of(old), PLACE, NOW, lookup_service).rule == old
