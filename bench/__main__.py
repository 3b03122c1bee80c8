# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The program: python -m bench [--quick] [--output FILE]. Works in namespaces of its own; root is not needed."""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bench import commands, forwards, gui
from bench.bed import Bed, Layout, Variant
from bench.changes import changes, sweeps
from bench.entries import Clients
from bench.load import cuts, losses
from bench.packets import PLAIN, client_cost, measure
from bench.report import Results, machine, page

_OURS = Layout.OURS


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    mode: str
    variants: tuple[Variant, ...]
    repetitions: int
    effort: float
    changes: tuple[tuple[int, Clients], ...]
    change_repetitions: int
    sweeps: tuple[tuple[int, int, int], ...]
    sweep_repetitions: int
    losses: tuple[tuple[int, Clients], ...]
    loss_changes: int
    cut_flows: int


QUICK = Plan(
    mode="quick",
    variants=(
        PLAIN,
        *(Variant(_OURS, count) for count in (1, 100, 1000)),
        Variant(_OURS, 1000, guard=True),
        Variant(_OURS, 1000, Clients.ONE_PREFIX),
        Variant(Layout.MARKED, 1000),
    ),
    repetitions=4,
    effort=0.7,
    changes=((10, Clients.ANYONE), (1000, Clients.ANYONE)),
    change_repetitions=5,
    sweeps=((0, 0, 100), (1000, 1, 100), (1000, 1000, 100)),
    sweep_repetitions=2,
    losses=((100, Clients.ANYONE),),
    loss_changes=40,
    cut_flows=20,
)
FULL = Plan(
    mode="full",
    variants=(
        PLAIN,
        *(Variant(_OURS, count) for count in (1, 100, 1000, 10000)),
        *(Variant(_OURS, count, guard=True) for count in (1, 10000)),
        Variant(_OURS, 1000, numbered=True),
        Variant(_OURS, 1000, target=True),
        Variant(_OURS, 1000, Clients.NEIGHBOURS),
        Variant(_OURS, 1000, Clients.ONE_PREFIX),
        *(Variant(_OURS, count, Clients.THREE_PREFIXES) for count in (1000, 10000)),
        Variant(_OURS, 1000, width=2),
        *(Variant(Layout.MARKED, count) for count in (1, 10000)),
        *(Variant(Layout.LINEAR, count) for count in (1, 100, 1000)),
    ),
    repetitions=5,
    effort=1.0,
    changes=(
        *((count, Clients.ANYONE) for count in (10, 1000, 10000)),
        *((count, Clients.THREE_PREFIXES) for count in (10, 1000, 10000)),
    ),
    change_repetitions=5,
    sweeps=((0, 0, 100), (1000, 1, 100), (1000, 1000, 100), (20000, 1, 100), (20000, 1000, 100), (20000, 1000, 1000)),
    sweep_repetitions=2,
    losses=((100, Clients.ANYONE), (100, Clients.ONE_PREFIX)),
    loss_changes=200,
    cut_flows=100,
)


def run(plan: Plan, say: Callable[[str], None]) -> Results:
    """Measure everything in the plan."""
    beds = Bed(), Bed()
    results = Results(plan.mode, client_cost(), measure(beds, plan.variants, plan.repetitions, plan.effort, say))
    bed = beds[0]
    results.changes += changes(bed, plan.changes, plan.change_repetitions, say)
    results.sweeps += sweeps(bed, plan.sweeps, plan.sweep_repetitions, say)
    results.cuts += cuts(bed, 100, plan.cut_flows, say)
    results.losses += losses(bed, plan.losses, plan.loss_changes, say)
    return results


def main() -> int:
    """Measure, print the page, and write it where asked to."""
    parser = argparse.ArgumentParser(prog="./run bench", description="Measure what forwards cost, in namespaces.")
    parser.add_argument(
        "what",
        nargs="?",
        choices=("packets", "commands", "gui", "forwards"),
        default="packets",
        help="packets and changes of rules; the start of commands and a long list; the dashboard; or 5,000 forwards",
    )
    parser.add_argument("--quick", action="store_true", help="a rough look, under a minute; else under ten")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the page there (docs/benchmarks.md)")
    options = parser.parse_args()
    begin = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - begin:5.0f} s  {text}", file=sys.stderr, flush=True)

    if options.what == "commands":
        text = commands.run(say)
    elif options.what == "gui":
        text = gui.run(say)
    elif options.what == "forwards":
        text = forwards.run(say)
    else:
        described = machine()
        text = page(run(QUICK if options.quick else FULL, say), described)
    sys.stdout.write(text)
    if options.output:
        options.output.write_text(text, encoding="utf-8")
    say("done")
    return 0


if __name__ == "__main__":
    sys.exit(main())
