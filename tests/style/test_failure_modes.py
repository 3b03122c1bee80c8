# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""docs/failure-modes.md is made from the tests: every failure mode with the tests that prove it absent.

After adding such a test run REGENERATE=1 ./run test tests/style and commit the table.
"""

import ast
import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "docs" / "failure-modes.md"
NUMBERS = re.compile(r"test_((?:[cuf]\d+_)+)")
HEAD = """# Failure modes, and the tests that prove them absent

Made by the test run (`tests/style/test_failure_modes.py`) from the names of the tests; not edited by hand. C: seen in
the scripts and branches before this project. U: traps of the system around it. F: found here by attack, by the real
parts of Qubes OS and by reading.

| | failure | proved absent by |
|---|---|---|
"""


def proofs() -> Iterator[tuple[str, str]]:
    """(number, file and name of the test) of every test whose name begins with numbers."""
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and (found := NUMBERS.match(node.name)):
                for number in found[1].rstrip("_").split("_"):
                    yield number.upper(), f"`{path.relative_to(ROOT)}` {node.name}"


def table() -> str:
    known = tomllib.loads((Path(__file__).parent / "failure_modes.toml").read_text())
    tests: dict[str, list[str]] = {}
    for number, test in proofs():
        assert number in known, f"{test}: there is no failure mode {number}"
        tests.setdefault(number, []).append(test)
    rows = []
    for number, words in known.items():
        proof = "<br>".join(tests.get(number, [])) or words.get("reason", "**open**")
        rows.append(f"| {number} | {words['title']} | {proof} |\n")
    return HEAD + "".join(rows)


def test_the_table_of_failure_modes_is_that_of_the_tests() -> None:
    made = table()
    if os.environ.get("REGENERATE"):
        TABLE.write_text(made)
    assert TABLE.read_text() == made
