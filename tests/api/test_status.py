# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The answer of Get+forward.status: what dom0 prints, clients read back as the same value."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portfwd.api.status import (
    NO_WAY,
    NOT_KNOWN,
    Doors,
    HopState,
    Outbound,
    PathStatus,
    Status,
    doors_of,
    format_status,
    parse_status,
)
from portfwd.wire.errors import RefusedError
from tests.api import samples, strategies

LINES = samples.STATUS.splitlines()
HEAD, HOPS = LINES[0], LINES[1:4]


def one(*lines: str) -> str:
    return "".join(f"{line}\n" for line in (HEAD, *lines))


@given(strategies.statuses())
def test_it_is_read_as_it_was_meant(said: Status) -> None:
    assert parse_status(format_status(said)) == said


@given(strategies.statuses(), st.integers(0, 300), st.integers(0, 60), st.text(max_size=100))
def test_whatever_stands_there_only_a_refusal_comes_out(said: Status, at: int, gone: int, put: str) -> None:
    text = format_status(said)
    try:
        parse_status(text[:at] + put + text[at + gone :])
    except RefusedError as error:
        assert str(error).isprintable()


def test_it_is_printed_in_one_way() -> None:
    assert format_status(parse_status(samples.STATUS)) == samples.STATUS
    assert format_status(Status()) == ""
    assert parse_status("") == Status()


def test_a_forward_of_which_nothing_is_told() -> None:
    (forward,) = parse_status(one()).forwards
    assert forward.path == PathStatus()
    assert (forward.doors, forward.server, forward.silent, forward.siblings) == (None, None, (), {})


def test_only_the_first_problem_counts() -> None:
    rule = HEAD.split(" ")[1]
    text = one(f"{rule} hop=sys-net state=problem reason=halted text=one", f"{rule} hop=work state=problem reason=x")
    obstacle = parse_status(text).forwards[0].path.obstacle
    assert obstacle is not None
    assert (obstacle.hop, obstacle.kind, obstacle.text) == ("sys-net", "halted", "one")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("doors=unknown", (Doors.UNKNOWN, None, ())),
        ("doors=shut server=sleeping silent=a", (Doors.SHUT, None, ("a",))),
        ("doors=ajar server=no silent=a,b", (Doors.UNKNOWN, "no", ("a", "b"))),
    ],
)
def test_what_dom0_judges(line: str, words: tuple[object, ...]) -> None:
    (forward,) = parse_status(one(f"{HEAD.split(' ')[1]} {line}")).forwards
    assert (forward.doors, forward.server, forward.silent) == words


def test_a_new_word_for_a_sibling_is_not_known() -> None:
    (forward,) = parse_status(one(f"{HEAD.split(' ')[1]} sibling=dmz outbound=slowly")).forwards
    assert forward.siblings == {"dmz": Outbound.UNKNOWN}


def test_hops_that_are_not_understood_are_named_once() -> None:
    first, second, third = HOPS
    text = one(first.replace("relay", "mirror"), first.replace("=uplink", "=tunnel"), second, third)
    (forward,) = parse_status(text).forwards
    assert forward.path.passed_over == ("sys-net",)
    assert [hop.hop for hop in forward.path.hops] == ["sys-firewall", "work"]
    waiting = one(f"{HEAD.split(' ')[1]} hop=work state=waiting")
    assert parse_status(waiting).forwards[0].path == PathStatus(passed_over=(samples.WORK,))


@pytest.mark.parametrize(
    "text",
    [
        one(HEAD),
        one(HOPS[0].replace("rule=0", "rule=1")),
        "".join(f"{line}\n" for line in HOPS),
        one(HOPS[0].partition(" state=")[0]),
        one(HOPS[0].replace("family=4", "family=5")),
        one(HOPS[0].replace("family=4 ", "")),
        one(HOPS[0].replace("proto=tcp ", "")),
        one(HOPS[0].replace("side=uplink ", "")),
        one(HOPS[0].replace("listen=443-443", "listen=443-")),
        one(HOPS[0].replace("hop=sys-net", "hop=../net")),
        one(HOPS[0].replace("hits=12", "hits=-12")),
        one(HOPS[0].replace(" to=10.137.0.5", "")),
        one(HOPS[2].replace("listening=yes", "listening=\x1b[31m")),
        one(f"{HEAD.split(' ')[1]} hop=sys-net state=problem"),
        one(f"{HEAD.split(' ')[1]} sibling=dmz"),
        one(f"{HEAD.split(' ')[1]} doors=open silent="),
        HEAD.replace("number=0", "number=x"),
        HEAD.replace("number=0 ", ""),
        HEAD.replace("rule=0", "rule=1"),
        HEAD.replace("rule=", "rules="),
        HEAD.partition(" action=")[0],
        HEAD.replace("qube=work", "qube=personal"),
        "entrance=sys-net\n",
        "entrance=sys-net uplinks=192.168.1.300/24\n",
        "entrance=sys-net uplinks=\n",
        "entrance=../net uplinks=-\n",
        "unread=../net text=x\n",
    ],
)
def test_what_contradicts_itself_or_is_cut_is_refused(text: str) -> None:
    with pytest.raises(RefusedError) as caught:
        parse_status(text)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("states", "doors"),
    [
        ([], Doors.UNKNOWN),
        ([("a", HopState.APPLIED)], Doors.OPEN),
        ([("a", HopState.APPLIED), ("a", HopState.APPLIED)], Doors.OPEN),
        ([("a", HopState.APPLIED), ("a", HopState.OCCUPIED)], Doors.SHUT),
        ([("a", HopState.APPLIED), ("a", HopState.WRITTEN)], Doors.UNKNOWN),
        ([("a", HopState.WRITTEN), ("a", HopState.OCCUPIED)], Doors.SHUT),
        ([("a", HopState.OCCUPIED), ("b", HopState.APPLIED)], Doors.OPEN),
        ([("a", HopState.OCCUPIED), ("b", HopState.WRITTEN)], Doors.UNKNOWN),
        ([("a", HopState.OCCUPIED), ("b", HopState.REFUSED)], Doors.SHUT),
    ],
)
def test_open_and_shut_are_said_on_evidence_only(states: list[tuple[str, HopState]], doors: Doors) -> None:
    assert doors_of(states) is doors


@pytest.mark.parametrize("state", HopState)
def test_each_state_says_yes_or_no_or_nothing(state: HopState) -> None:
    expected = Doors.UNKNOWN if state in NOT_KNOWN | NO_WAY else Doors.OPEN if state is HopState.APPLIED else Doors.SHUT
    assert doors_of([("a", state)]) is expected
