# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Random events in the laboratory, the same ones in every run."""

import os

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.oracle.house import House, running
from tests.oracle.machine import Figures, Machine

EXAMPLES = 2
STEPS = 10


def machine(house: House) -> type[Machine]:
    """A machine whose runs take place in that laboratory, one after the other."""

    class InHouse(Machine):
        make = lambda: house  # noqa: E731
        figures = Figures()
        sample = 10
        lifetimes = (2, 4)

    return InHouse


def test_whatever_happens_exactly_what_the_rules_say_is_open() -> None:
    with running(f"oracle-{os.getpid()}") as house:
        run_state_machine_as_test(
            machine(house),
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
