# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Trials of mutants: copies of the checkout, the tests that touch a line, and what they say of a mutant.

Each trial has namespaces of its own for processes, so that a mutant can kill nothing else, and ends with all of them.
"""

import ast
import contextlib
import enum
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from xml.etree import ElementTree

from coverage import CoverageData

from tests.mutants.drawing import Mutant

_PATIENCE = 30.0
"""Seconds that a trial may take beyond five times what its tests took without a mutant."""
_WHOLE_LANE = 1800.0
"""Seconds for the fast lane, and for the types of the whole tree."""
_ROOM = 4 << 30
"""Bytes of memory for each process of a trial."""


class Outcome(enum.StrEnum):
    """What the fast lane says of a mutant."""

    TESTS = "tests"
    TYPES = "types"
    TIME = "timeout"
    SURVIVED = "survived"
    UNTOUCHED = "no test"


class Copy:
    """A copy of the checkout, to be mutated, in a folder that is its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, *argv: str, timeout: float) -> int:
        """Run a Python module in the copy, alone in its PID namespace. Errors: subprocess.TimeoutExpired."""
        user = [] if os.geteuid() == 0 else ["--user", "--map-current-user"]
        alone = ["unshare", *user, "--pid", "--fork", "--kill-child", "--mount-proc"]
        path = os.pathsep.join(str(self.folder / part) for part in ("src", "."))
        done = subprocess.run(
            [*alone, sys.executable, "-P", "-m", *argv],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "COVERAGE_CORE": "ctrace"},
            stdin=subprocess.DEVNULL,
            stdout=(self.folder / "last-output").open("wb"),
            stderr=subprocess.STDOUT,
            timeout=timeout,
            check=False,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (_ROOM, _ROOM)),
        )
        return done.returncode

    @contextlib.contextmanager
    def holding(self, mutant: Mutant) -> Iterator[None]:
        """The mutant stands in the copy meanwhile."""
        path = self.folder / mutant.path
        before = path.read_bytes()
        path.write_text(mutant.code)
        try:
            yield
        finally:
            path.write_bytes(before)
            # What failed before is not tried again first: a trial knows nothing of the others.
            shutil.rmtree(self.folder / ".hypothesis", ignore_errors=True)

    def last_words(self) -> str:
        return (self.folder / "last-output").read_text(errors="replace")[-3000:]


def checkout(root: Path, folder: Path) -> Copy:
    """Copy what git knows of, and what it would, as it stands."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=root, stdout=-1, check=True
    ).stdout
    for name in filter(None, os.fsdecode(listed).split("\0")):
        if (root / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, folder / name, follow_symlinks=False)
    return Copy(folder)


class Touching:
    """Which tests touch which line, and how long each takes; learned by one run of the fast lane in a copy."""

    def __init__(self, copy: Copy, workers: int) -> None:
        data, junit = copy.folder / ".coverage", copy.folder / "times.xml"
        argv = ["--fast", f"--numprocesses={workers}", f"--junitxml={junit}", "-o", "junit_family=xunit1"]
        code = copy.run("pytest", *argv, "--cov=portfwd", "--cov-context=test", "--cov-report=", timeout=_WHOLE_LANE)
        if code != 0 or copy.run("mypy", timeout=_WHOLE_LANE) != 0:
            raise RuntimeError(f"the fast lane does not pass without a mutant:\n{copy.last_words()}")
        self._root = copy.folder
        self._data = CoverageData(basename=str(data))
        self._data.read()
        cases = ElementTree.parse(junit).iter("testcase")  # noqa: S314 - pytest has just written it
        self._times = {_test_id(case): float(case.get("time", 0)) for case in cases}
        self._by_line: dict[Path, Mapping[int, set[str]]] = {}
        self._importers = _importers(copy.folder)

    def lines(self, path: Path) -> Mapping[int, set[str]]:
        """The tests of each line of a module."""
        if path not in self._by_line:
            found = self._data.contexts_by_lineno(str(self._root / path))
            self._by_line[path] = {
                line: {context.rpartition("|")[0] for context in contexts} - {""} for line, contexts in found.items()
            }
        return self._by_line[path]

    def tests(self, mutant: Mutant) -> list[str]:
        """Those that may notice it, the quickest first.

        What is made at import may be noticed by all of the module and of who imports it.
        """
        if mutant.lines:
            found = set().union(*(tests for line, tests in self.lines(mutant.path).items() if line in mutant.lines))
        else:
            users = [mutant.path, *self._importers.get(mutant.path, ())]
            found = {test for path in users for tests in self.lines(path).values() for test in tests}
        return sorted(found & self._times.keys(), key=lambda test: (self._times[test], test))

    def seconds(self, tests: list[str]) -> float:
        return sum(self._times[test] for test in tests)


def try_out(copy: Copy, mutant: Mutant, touching: Touching, seed: str) -> Outcome:
    """What the fast lane says of the mutant."""
    tests = touching.tests(mutant)
    with copy.holding(mutant):
        try:
            if tests:
                (copy.folder / "selected").write_text("\n".join(tests))
                argv = ["--fast", "-x", "--tb=no", "-p", "no:xdist", "-p", "no:cov", f"--hypothesis-seed={seed}"]
                if copy.run("pytest", *argv, "@selected", timeout=_PATIENCE + 5 * touching.seconds(tests)) != 0:
                    return Outcome.TESTS
            if copy.run("mypy", timeout=_WHOLE_LANE) != 0:
                return Outcome.TYPES
        except subprocess.TimeoutExpired:
            return Outcome.TIME
    return Outcome.SURVIVED if tests else Outcome.UNTOUCHED


def _test_id(case: ElementTree.Element) -> str:
    """pytest's name for a test, of what the report says about it."""
    file = case.get("file", "")
    classes = case.get("classname", "").split(".")[len(Path(file).parts) :]
    return "::".join([file, *classes, case.get("name", "")])


def _importers(root: Path) -> dict[Path, list[Path]]:
    """Who imports each module of the product directly."""
    found: dict[Path, list[Path]] = {}
    for path in sorted((root / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                names = {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
                for name in names:
                    module = Path("src", *name.split(".")).with_suffix(".py")
                    found.setdefault(module, []).append(path.relative_to(root))
    return found
