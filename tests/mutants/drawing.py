# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The mutants of a module, by mutmut's operators, and a sample of them.

mutmut leaves alone what an annotation, a decorator or a decorated function (a property, say) holds. Its own runner
makes no mutants outside of functions, and knows the tests of a function only; so what runs them is in trials.py.
"""

import ast
import difflib
import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from libcst import Module as Tree
from libcst.metadata import MetadataWrapper, PositionProvider
from mutmut.mutation.file_mutation import create_mutations, deep_replace


@dataclass(frozen=True)
class Mutant:
    """One change of one module; `lines` are those whose execution may show it, none when it is made at import."""

    path: Path
    number: int
    line: int
    lines: frozenset[int]
    before: str
    code: str

    def diff(self) -> str:
        """What it changes, without the lines around."""
        lines = difflib.unified_diff(self.before.splitlines(), self.code.splitlines(), lineterm="", n=0)
        return "\n".join(line for line in list(lines)[2:] if not line.startswith("@@"))


class Module:
    """A module and its mutants, by their numbers in the order of the source; each is made when it is asked for."""

    def __init__(self, root: Path, path: Path) -> None:
        self._path = path
        self._code = (root / path).read_text()
        self._tree, self._mutations, _, _ = create_mutations(str(path), self._code)
        self._positions = MetadataWrapper(self._tree, unsafe_skip_copy=True).resolve(PositionProvider)
        self._statements = Statements(self._code)

    def __len__(self) -> int:
        return len(self._mutations)

    def mutant(self, number: int) -> Mutant | None:
        """None when the change changes nothing, or is no Python."""
        mutation = self._mutations[number]
        tree = deep_replace(self._tree, mutation.original_node, mutation.mutated_node)
        assert isinstance(tree, Tree)
        position = self._positions.get(mutation.original_node)
        line = position.start.line if position else _first_difference(self._code, tree.code)
        if tree.code == self._code or not _is_python(tree.code):
            return None
        return Mutant(self._path, number, line, self._statements.shown_by(line), self._code, tree.code)


def sample(modules: Sequence[Module], count: int | None, seed: str) -> Iterator[Mutant]:
    """So many mutants of these modules, or all, in an order that follows from the seed alone."""
    numbers = [(module, number) for module in modules for number in range(len(module))]
    random.Random(seed).shuffle(numbers)
    made = (mutant for module, number in numbers if (mutant := module.mutant(number)))
    return itertools.islice(made, count)


def _first_difference(before: str, after: str) -> int:
    pairs = zip(before.splitlines(), after.splitlines(), strict=False)
    return next((number for number, (old, new) in enumerate(pairs, 1) if old != new), 1)


def _is_python(code: str) -> bool:
    try:
        compile(code, "mutant", "exec")
    except SyntaxError:
        return False
    return True


class Statements:
    """The statements of a module by their lines."""

    def __init__(self, code: str) -> None:
        self._tree = ast.parse(code)

    def shown_by(self, line: int) -> frozenset[int]:
        """The lines of the statement at a line; of a function's head those of its body; none outside of functions."""
        function = _around(self._tree, line, (ast.FunctionDef, ast.AsyncFunctionDef))
        if function is None:
            return frozenset()
        statement = _around(function, line, (ast.stmt,)) or function
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
            return _span(statement.body)
        body = getattr(statement, "body", None) or getattr(statement, "cases", None)
        if not body:
            return _span([statement])
        # The head of an if, a loop or a match; where its parts begin on that line, those are its execution, too.
        first = body[0].pattern if isinstance(body[0], ast.match_case) else body[0]
        return frozenset(range(statement.lineno, max(first.lineno, statement.lineno + 1)))


def _around(tree: ast.AST, line: int, kinds: tuple[type[ast.stmt], ...]) -> ast.stmt | None:
    """The smallest of these that the line is in, by its own lines or a decorator's."""
    found = [
        node
        for node in ast.walk(tree)
        if isinstance(node, kinds) and node.lineno <= line <= (node.end_lineno or node.lineno)
    ]
    return min(found, key=lambda node: (node.end_lineno or 0) - node.lineno, default=None)


def _span(statements: Iterable[ast.stmt]) -> frozenset[int]:
    return frozenset(n for s in statements for n in range(s.lineno, (s.end_lineno or s.lineno) + 1))
