# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The answer of Get+forward.plan."""

import pytest
from hypothesis import given

from portfwd.api.plan import PlanAnswer, format_plan, parse_plan
from portfwd.wire.answers.preview import Preview
from portfwd.wire.errors import RefusedError
from tests.api import samples, strategies


@given(strategies.plans())
def test_it_is_read_as_it_was_meant(said: PlanAnswer) -> None:
    assert parse_plan(format_plan(said)) == said


def test_it_is_printed_in_one_way() -> None:
    assert format_plan(parse_plan(samples.PLAN)) == samples.PLAN
    assert "state=planned\n" in samples.PLAN
    assert "hits=" not in samples.PLAN


def test_what_hops_tell_is_no_part_of_a_plan() -> None:
    said = parse_plan(samples.STATUS)
    assert "hits=" not in format_plan(said)
    assert [len(path.hops) for path in said.paths.values()] == [3, 0, 0, 0]


def test_elements_are_kept_in_their_order_and_counted() -> None:
    text = "hop=a element=ip x { 1 }\nhop=b elements=unknown\nhop=a element=ip x { 2 }\nhop=a element=... and 12 more\n"
    assert parse_plan(text).elements == {"a": Preview(("ip x { 1 }", "ip x { 2 }"), 12), "b": None}


@pytest.mark.parametrize(
    "text", ["hop=../a element=x\n", "hop=a element=\x1b[31m\n", "rule=1 hop=a state=paused\n", "hop\n"]
)
def test_what_contradicts_itself_or_is_cut_is_refused(text: str) -> None:
    with pytest.raises(RefusedError):
        parse_plan(text)
