# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""./run soak MINUTES: random events on fakes and in the laboratory for that long, and the net qube switches.

Prints figures, and for each violation its seed and its steps. The exit code is 1 if there was one.
"""

import argparse
import os
import secrets
import sys
import time
import traceback
from collections.abc import Sequence

import hypothesis
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.oracle.house import running
from tests.oracle.machine import Machine
from tests.oracle.switches import measure
from tests.oracle.test_fakes import OnFakes
from tests.oracle.test_house import machine

_FAKES_SHARE = 0.25
"""Of the time: events on fakes are about fifty times faster."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print, and give the exit code."""
    parser = argparse.ArgumentParser(prog="./run soak", description=__doc__)
    parser.add_argument("minutes", type=float)
    parser.add_argument("--seed", type=int, default=secrets.randbits(32), help="to repeat a run")
    parser.add_argument("--switches", type=int, default=200, metavar="N", help="changes of net qube to be measured")
    arguments = parser.parse_args(argv)
    seconds = arguments.minutes * 60
    print(f"seed {arguments.seed}", flush=True)
    violations = _run("fakes", OnFakes, arguments.seed, seconds * _FAKES_SHARE, 40)
    with running(f"soak-{os.getpid()}") as house:
        in_house = machine(house)
        violations += _run("laboratory", in_house, arguments.seed, seconds * (1 - _FAKES_SHARE), 25)
        print(f"laboratory: from an event until every kernel is right, in seconds: {_spread(house.seconds)}")
        house.close()
        if arguments.switches:
            found = measure(house, arguments.switches)
            print(f"{arguments.switches} changes of net qube of a qube with 20 forwards, until all answer the laptop:")
            print(f"  from the end of the call:   {_spread(found.after)}")
            print(f"  from the begin of the call: {_spread(found.whole)}")
            for qube, sent in found.sent.items():
                print(f"  meanwhile {sent} datagrams to {qube} and back, lost: {found.lost[qube]}")
            violations += sum(found.lost.values())
    print(f"violations: {violations}")
    return 1 if violations else 0


def _run(name: str, kind: type[Machine], first: int, seconds: float, steps: int) -> int:
    """Run after run, each with a seed of its own, until the time is over; the number of those that failed."""
    end = time.monotonic() + seconds
    violations, seed = 0, first
    while time.monotonic() < end:
        try:
            run_state_machine_as_test(
                hypothesis.seed(seed)(kind),
                settings=settings(
                    max_examples=3,
                    stateful_step_count=steps,
                    deadline=None,
                    database=None,
                    phases=[Phase.generate],
                    print_blob=False,
                    suppress_health_check=list(HealthCheck),
                ),
            )
        except Exception:
            violations += 1
            print(f"{name}: VIOLATION with seed {seed}\n{traceback.format_exc()}", flush=True)
        seed += 1
    figures = kind.figures
    total = sum(figures.events.values())
    print(f"{name}: {total} events, {figures.questions} questions by packet, {violations} violations")
    print("".join(f"  {count:6} {event}\n" for event, count in figures.events.most_common()), end="")
    print(f"{name}: seconds for an event with all its checks: {_spread(figures.seconds)}", flush=True)
    return violations


def _spread(seconds: list[float]) -> str:
    """The usual quantiles."""
    if not seconds:
        return "none"
    sorted_ = sorted(seconds)
    places = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return ", ".join(f"{k} {sorted_[min(len(sorted_) - 1, int(q * len(sorted_)))]:.3f}" for k, q in places.items())


if __name__ == "__main__":
    sys.exit(main())
