# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Make mistakes in a copy of this checkout, one by one, and tell which ones the fast lane does not notice."""

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from tests.mutants.drawing import Module, Mutant, sample
from tests.mutants.trials import Outcome, Touching, checkout, try_out

ROOT = Path(__file__).parents[2]
PRODUCT = Path("src/portfwd")
ROOMS = ("model", "wire", "base", "api", "kernel", "dom0", "agent")
NOT_PURE = {
    "kernel/nft.py": "libnftables",
}
"""Modules that do nothing without a kernel of their own, and what they need of it: tried in the laboratory only."""
NOTICED = (Outcome.TESTS, Outcome.TYPES, Outcome.TIME)


def modules(root: Path, wanted: Path) -> Iterator[tuple[str, Path]]:
    """Each room's modules below a path; one that is not pure only when the path is its own."""
    for room in ROOMS:
        for path in sorted((root / PRODUCT / room).rglob("*.py")):
            pure = str(path.relative_to(root / PRODUCT)) not in NOT_PURE
            if path.is_relative_to(root / wanted) and (pure or path == root / wanted):
                yield room, path.relative_to(root)


def drawn(root: Path, wanted: Path, count: int | None, seed: str) -> list[tuple[str, Mutant]]:
    """The mutants to try: so many of each room."""
    by_room: dict[str, list[Module]] = {}
    for room, path in modules(root, wanted):
        by_room.setdefault(room, []).append(Module(root, path))
    return [(room, mutant) for room, found in by_room.items() for mutant in sample(found, count, f"{seed} {room}")]


class Progress:
    """A line now and then."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._begin = self._told = time.monotonic()
        self._outcomes: Counter[Outcome] = Counter()

    def add(self, outcome: Outcome) -> None:
        self._outcomes[outcome] += 1
        now, done = time.monotonic(), self._outcomes.total()
        if now - self._told >= 10 or done == self._total:
            self._told = now
            left = (now - self._begin) / done * (self._total - done)
            missed = done - sum(self._outcomes[outcome] for outcome in NOTICED)
            say(f"{done} of {self._total}, {missed} not noticed, about {left / 60:.0f} min left")


def say(words: str) -> None:
    print(f"mutants: {words}", file=sys.stderr, flush=True)


def table(results: Sequence[tuple[str, Mutant, Outcome]]) -> Iterator[str]:
    """A line per room, and one for all."""
    yield f"{'room':8}" + "".join(f"{name:>10}" for name in ("mutants", *Outcome, "noticed"))
    rooms = [room for room in ROOMS if any(r == room for r, _, _ in results)]
    for name, members in (*((room, {room}) for room in rooms), ("all", set(rooms))):
        counts = Counter(outcome for room, _, outcome in results if room in members)
        percent = 100 * sum(counts[outcome] for outcome in NOTICED) / counts.total()
        yield f"{name:8}{counts.total():10}" + "".join(f"{counts[o]:10}" for o in Outcome) + f"{percent:9.1f}%"


def missed(results: Sequence[tuple[str, Mutant, Outcome]]) -> Iterator[str]:
    """Each mutant that was not noticed, with what it changes."""
    for _, mutant, outcome in sorted(results, key=lambda result: (result[1].path, result[1].number)):
        if outcome not in NOTICED:
            yield f"\n{mutant.path}:{mutant.line} number {mutant.number}, {outcome}"
            yield mutant.diff()


def main() -> None:
    parser = argparse.ArgumentParser(prog="./run mutants", description=__doc__)
    parser.add_argument(
        "path", nargs="?", type=Path, default=ROOT, help="a module or folder of src/portfwd (all that are pure)"
    )
    parser.add_argument("--sample", type=int, metavar="N", help="so many mutants of each room, not all")
    parser.add_argument("--seed", default=str(random.randrange(1 << 32)), help="draw the same sample again")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="so many trials at once")
    arguments = parser.parse_args()
    wanted = Path(os.path.relpath(arguments.path, ROOT))
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        first = checkout(ROOT, Path(folder, "0"))
        mutants = drawn(first.folder, wanted, arguments.sample, arguments.seed)
        if not mutants:
            parser.error(f"{arguments.path} has no mutants: give a module or a folder of {', '.join(ROOMS)}")
        say(f"{len(mutants)} mutants, seed {arguments.seed}; the fast lane tells which test touches which line")
        touching = Touching(first, arguments.jobs)
        free = SimpleQueue[object]()
        free.put(first)
        for number in range(1, arguments.jobs):
            free.put(type(first)(Path(shutil.copytree(first.folder, Path(folder, str(number)), symlinks=True))))
        progress = Progress(len(mutants))

        def trial(drawn: tuple[str, Mutant]) -> tuple[str, Mutant, Outcome]:
            copy = free.get()
            try:
                outcome = try_out(copy, drawn[1], touching, arguments.seed)
            finally:
                free.put(copy)
            progress.add(outcome)
            return *drawn, outcome

        with ThreadPoolExecutor(arguments.jobs) as pool:
            results = list(pool.map(trial, mutants))
    print("\n".join((*missed(results), "", *table(results))))


if __name__ == "__main__":
    main()
