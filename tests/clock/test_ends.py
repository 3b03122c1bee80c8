# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""No clock step, no suspend and no restart makes anything last longer."""

import select
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portfwd.agent.rules.diff import difference, settle
from portfwd.agent.rules.elements import Elements, Surroundings
from portfwd.agent.rules.kinds import build
from portfwd.base.clock import ClockWatch, Moment, read_clocks
from portfwd.base.expiry import Ends
from tests.agent.world import relay

STEPS = st.lists(st.tuples(st.integers(0, 100), st.integers(-200, 200)), max_size=20)


def at(wall: float, boot: float) -> Moment:
    return Moment(wall, boot, boot)


@given(end=st.integers(1, 300), steps=STEPS, restarts=st.sets(st.integers(0, 19)))
def test_c24_u15_the_earlier_of_both_clocks_counts_and_what_is_over_stays_over(
    tmp_path_factory: pytest.TempPathFactory, end: int, steps: list[tuple[int, int]], restarts: set[int]
) -> None:
    kept = tmp_path_factory.mktemp("ends") / "ends"
    ends = Ends(kept, "boot")
    wall, boot, over = 0, 0, False
    assert ends.left({"rule": end}, at(wall, boot)) == {"rule": end}
    for number, (passed, stepped) in enumerate(steps):
        if number in restarts:
            ends = Ends(kept, "boot")
        wall, boot = wall + passed + stepped, boot + passed
        left = ends.left({"rule": end}, at(wall, boot))["rule"]
        assert left <= end - boot
        assert left <= end - wall
        assert not (over and left > 0)
        over = left <= 0


def test_suspend_counts() -> None:
    ends = Ends()
    ends.left({"rule": 1000}, Moment(0, 0, 0))
    # The machine has slept an hour, and its wall clock has not been set yet.
    assert ends.left({"rule": 1000}, Moment(1, 3600, 1))["rule"] <= 0


def test_a_new_end_is_a_new_wish() -> None:
    ends = Ends()
    ends.left({"rule": 10}, at(0, 0))
    assert ends.left({"rule": 10}, at(11, 11))["rule"] <= 0
    assert ends.left({"rule": 60}, at(11, 11)) == {"rule": 49}


@pytest.mark.parametrize(
    "text", ["", "boot\nrule\n", "boot\nrule x 1\n", "boot\nrule 9 nan\n", "other\nrule 10 0.0\n", "\xff"]
)
def test_a_file_that_is_not_ours_counts_as_empty(tmp_path: Path, text: str) -> None:
    kept = tmp_path / "ends"
    kept.write_text(text, encoding="latin-1")
    assert Ends(kept, "boot").left({"rule": 10}, at(0, 0)) == {"rule": 10}


def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert Ends(tmp_path / "file" / "ends", "boot").left({"rule": 10}, at(0, 0)) == {"rule": 10}


def test_u15_a_timeout_that_stood_still_in_suspend_is_written_anew() -> None:
    entry = relay(443, expire=1000)

    def elements(now: float, end: float) -> tuple[Elements, Surroundings]:
        around = Surroundings(now, ends={entry.key: end})
        return build([entry], around)[0], around

    before, _ = elements(0, 1000)
    steady, around = elements(10, 1000.2)
    assert difference(before, settle(before, steady), around.now) == "", "the clocks were read at two moments"
    woken, around = elements(10, 400)
    text = difference(before, settle(before, woken), around.now)
    assert "delete element ip qubes-port-forward up-port { tcp . 443 }" in text
    assert "tcp . 443 timeout 390000ms" in text
    later, around = elements(10, 2000)
    assert "timeout 1990000ms" in difference(before, settle(before, later), around.now)


def test_the_watch_is_silent_while_the_clock_just_runs() -> None:
    watch = ClockWatch()
    assert select.select([watch], [], [], 0)[0] == []
    assert not watch.read()
    watch.close()


def test_the_clocks_run() -> None:
    first, second = read_clocks(), read_clocks()
    assert second.boot >= first.boot >= first.monotonic - 1
