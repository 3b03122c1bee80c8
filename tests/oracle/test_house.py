# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Random events in the laboratory, the same ones in every run."""

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.oracle.base import Figures
from tests.oracle.house import House
from tests.oracle.machine import Machine

pytestmark = pytest.mark.slow

EXAMPLES = 3
STEPS = 8


class InHouse(Machine):
    """See Machine. Each run has a laboratory of its own."""

    arrivals: list[float] = []  # noqa: RUF012 - shared by all runs, as the other figures
    make = lambda: House(InHouse.arrivals)  # noqa: E731
    figures = Figures()
    repeatable = False
    sample = 10
    lifetimes = (2, 600, 3600)


def test_whatever_happens_exactly_what_the_rules_say_is_open() -> None:
    run_state_machine_as_test(
        InHouse,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
