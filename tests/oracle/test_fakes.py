# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Random events on fakes, the same ones in every run."""

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.oracle.fakes import FakeHome
from tests.oracle.machine import Machine

EXAMPLES = 12
STEPS = 25


class OnFakes(Machine):
    """See Machine."""

    make = FakeHome


def test_whatever_happens_exactly_what_the_rules_say_is_open() -> None:
    run_state_machine_as_test(
        OnFakes,
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
