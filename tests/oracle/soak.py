# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""./run soak MINUTES: random events on fakes and in laboratories for that long, and the net qube switches.

Prints figures, and for each violation its seed, what was wrong and its steps, on fakes the fewest that were found. Goes
on after it, with a new laboratory. The exit code is 1 if there was one. Ends on time, whatever hangs.
"""

import argparse
import contextlib
import secrets
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from types import FrameType

import hypothesis
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.oracle.base import ViolationError
from tests.oracle.house import House
from tests.oracle.machine import Machine
from tests.oracle.switches import measure
from tests.oracle.test_fakes import OnFakes
from tests.oracle.test_house import InHouse

_FAKES_SHARE = 0.25
"""Of the time: events on fakes are about thirty times faster."""
_LONGEST = 600.0
"""Seconds for some runs: many times what they take. What takes longer hangs, which is a violation."""
_AGAIN = 30.0
"""Seconds that the end of an interrupted run may take."""
_SHRINKING = 60.0
"""Seconds in which fewer steps are looked for."""


class OvertimeError(BaseException):
    """Not to be caught by hypothesis."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run, print, and give the exit code."""
    parser = argparse.ArgumentParser(prog="./run soak", description=__doc__)
    parser.add_argument("minutes", type=float)
    parser.add_argument("--seed", type=int, default=secrets.randbits(32), help="to repeat a run")
    parser.add_argument("--switches", type=int, default=200, metavar="N", help="changes of net qube to be measured")
    arguments = parser.parse_args(argv)
    end = time.monotonic() + arguments.minutes * 60
    print(f"seed {arguments.seed}", flush=True)
    violations = _switch(arguments.switches, end) if arguments.switches else 0
    fakes_end = time.monotonic() + (end - time.monotonic()) * _FAKES_SHARE
    violations += _run("fakes", OnFakes, arguments.seed, fakes_end, 40)
    violations += _run("laboratory", InHouse, arguments.seed, end, 30)
    print(f"laboratory: from an event until every kernel is right, in seconds: {_spread(InHouse.arrivals)}")
    print(f"violations: {violations}")
    return 1 if violations else 0


def _switch(count: int, end: float) -> int:
    try:
        with _bounded(end - time.monotonic()), contextlib.closing(House([])) as house:
            found = measure(house, count)
    except (Exception, OvertimeError):
        print(f"net qube switches: VIOLATION\n{traceback.format_exc()}", flush=True)
        return 1
    print(f"{count} changes of net qube of a qube with 20 forwards, until all answer the laptop, in seconds:")
    print(f"  from the end of the call:   {_spread(found.after)}")
    print(f"  from the begin of the call: {_spread(found.whole)} (aim: p99 below 1)")
    for qube, sent in found.sent.items():
        print(f"  meanwhile {sent} datagrams to {qube} and back, lost: {found.lost[qube]}")
        print(f"  meanwhile {found.lines[qube]} lines over TCP to {qube} and back, lost: {found.lines_lost[qube]}")
    sys.stdout.flush()
    return sum(1 for lost in (*found.lost.values(), *found.lines_lost.values()) if lost)


def _run(name: str, kind: type[Machine], first: int, end: float, steps: int) -> int:
    """Run after run, each with a seed of its own, until the time is over; the number of those that failed."""
    violations, seed = 0, first
    while (left := end - time.monotonic()) > 0:
        error = _once(kind, seed, steps, min(left, _LONGEST), [Phase.generate])
        if error and not (isinstance(error, OvertimeError) and left <= _LONGEST):
            violations += 1
            print(f"{name}: VIOLATION with seed {seed}\n{_describe(error)}", flush=True)
            if kind.repeatable:
                error = _once(kind, seed, steps, _SHRINKING, [Phase.generate, Phase.shrink])
                print(f"{name}: the fewest steps found for seed {seed}\n{_describe(error)}")
                print("\n".join(f"  {number}. {step}" for number, step in enumerate(kind.figures.steps, 1)), flush=True)
        seed += 1
    figures = kind.figures
    total = sum(figures.events.values())
    print(f"{name}: {total} events, {figures.questions} questions by packet, {violations} violations")
    senders = ", ".join(f"{name} {count}" for name, count in sorted(figures.forged.items()))
    print(f"{name}: datagrams with made up sources: {senders or 'none'}")
    print("".join(f"  {count:6} {event}\n" for event, count in figures.events.most_common()), end="")
    print(f"{name}: seconds for an event with all its checks: {_spread(figures.seconds)}", flush=True)
    return violations


def _once(kind: type[Machine], seed: int, steps: int, seconds: float, phases: list[Phase]) -> BaseException | None:
    """Some runs; what was wrong, or None."""
    try:
        with _bounded(seconds):
            run_state_machine_as_test(
                hypothesis.seed(seed)(kind),
                settings=settings(
                    # In the first of them nothing happens (Base.step).
                    max_examples=10 if kind is OnFakes else 8,
                    stateful_step_count=steps,
                    deadline=None,
                    database=None,
                    phases=phases,
                    print_blob=False,
                    report_multiple_bugs=False,
                    suppress_health_check=list(HealthCheck),
                ),
            )
    except (Exception, OvertimeError, ViolationError) as error:
        # hypothesis may complain, on its way out, that a run that was cut short was not like the one before.
        return next((e for e in _behind(error) if isinstance(e, (OvertimeError, ViolationError))), error)
    return None


def _behind(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those during whose handling it was raised."""
    while error is not None:
        yield error
        error = error.__context__


@contextlib.contextmanager
def _bounded(seconds: float) -> Iterator[None]:
    def over(_number: int, _frame: FrameType | None) -> None:
        raise OvertimeError(f"not over after {seconds:.0f} seconds")

    before = signal.signal(signal.SIGALRM, over)
    # Again and again: what is done on the way out of an interrupted run may hang as well.
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001), _AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _describe(error: BaseException | None) -> str:
    return "it does not happen again" if error is None else "".join(traceback.format_exception(error))


def _spread(seconds: list[float]) -> str:
    """The usual quantiles."""
    if not seconds:
        return "none"
    sorted_ = sorted(seconds)
    places = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return ", ".join(f"{k} {sorted_[min(len(sorted_) - 1, int(q * len(sorted_)))]:.3f}" for k, q in places.items())


if __name__ == "__main__":
    sys.exit(main())
