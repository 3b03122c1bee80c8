# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The answer of Get+forward.hops."""

import pytest
from hypothesis import given

from portfwd.api.hops import Confirmation, format_hops, parse_hops
from portfwd.model.forward import ForwardType
from portfwd.wire.errors import RefusedError
from portfwd.wire.values import QubeName
from tests.api import strategies

NET = QubeName("sys-net")


@given(strategies.confirmations())
def test_it_is_read_as_it_was_meant(said: tuple[Confirmation, ...]) -> None:
    assert parse_hops(format_hops(said)) == said


def test_it_is_printed_in_one_way() -> None:
    assert format_hops([Confirmation(NET, confirmed=True, internal=False)]) == "hop=sys-net internal=no confirmed=yes\n"


def test_internal_forwards_pass_some_hops_only() -> None:
    outer, inner = (Confirmation(NET, confirmed=True, internal=internal) for internal in (False, True))
    assert [hop.passes(ForwardType.EXTERNAL) for hop in (outer, inner)] == [True, True]
    assert [hop.passes(ForwardType.INTERNAL) for hop in (outer, inner)] == [False, True]


def test_of_words_that_are_not_known_the_worse_is_taken() -> None:
    (hop,) = parse_hops("hop=sys-net internal=partly confirmed=almost\n")
    assert hop == Confirmation(NET, confirmed=False, internal=True)


@pytest.mark.parametrize(
    "text",
    [
        "hop=sys-net internal=no confirmed=yes\nhop=sys-net internal=no confirmed=yes\n",
        "hop=sys-net internal=no\n",
        "hop=sys-net confirmed=yes\n",
        "hop=../net internal=no confirmed=yes\n",
    ],
)
def test_what_contradicts_itself_or_is_cut_is_refused(text: str) -> None:
    with pytest.raises(RefusedError):
        parse_hops(text)
