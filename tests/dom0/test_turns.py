# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""While thousands of forwards are planned, nothing else stops qubesd's loop: neither long turns nor the collector."""

import asyncio
import gc
import sys
from collections.abc import Iterator

import pytest

from portfwd.dom0.publishing.databases import Workers
from portfwd.dom0.publishing.turns import Turns


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = sys.getswitchinterval(), gc.isenabled()
    yield
    assert (sys.getswitchinterval(), gc.isenabled()) == before


def test_f18_no_collection_and_short_turns_while_a_thread_of_ours_computes() -> None:
    """Mistake: a walk over all objects, 90 ms long, again and again."""

    def state() -> tuple[bool, bool]:
        return gc.isenabled(), sys.getswitchinterval() <= 0.001

    async def use() -> None:
        workers = Workers()
        assert await workers.compute(state) == (False, True)
        assert await workers.run(state) == (False, True)
        with workers.turns:
            await workers.compute(state)
            assert state() == (False, True), "until all is done"
        assert state() == (True, False)
        workers.close()

    asyncio.run(use())


def test_f18_garbage_is_collected_after_ten_seconds_however_many_calls_there_are() -> None:
    now = 0.0
    turns = Turns(lambda: now)
    with turns:
        for now in (1.0, 9.0, 11.0):
            with turns:
                assert gc.isenabled() == (now > 10.0)
        assert gc.isenabled()


def test_f18_who_collects_by_hand_is_left_alone() -> None:
    gc.disable()
    try:
        with Turns():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_f18_an_error_ends_the_turns() -> None:
    with pytest.raises(ValueError, match="on purpose"), Turns():
        raise ValueError("on purpose")
