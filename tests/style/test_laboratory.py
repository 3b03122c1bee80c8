# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The rooms of the laboratory: who may import whom, no circle, and no room too full to be seen at once."""

import ast
from collections.abc import Iterator, Mapping, Set
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAB = ROOT / "lab"
# A room is a folder; "lab" alone is how commands, tests and scripts use a laboratory.
MAY_IMPORT = {
    "lab": {"lab/base", "lab/inside", "lab/qubesd", "lab/qubesd/life"},
    "lab/base": set[str](),
    "lab/show": {"lab", "lab/base", "lab/inside"},
    "lab/hypervisor": {"lab", "lab/base", "lab/inside", "lab/qrexec"},
    "lab/inside": {"lab/base", "lab/qubesd", "lab/qubesdb"},
    "lab/qrexec": {"lab/base"},
    "lab/qubesdb": set[str](),
    "lab/qubesd": {"lab/qubesd/api", "lab/qubesd/life", "lab/qubesd/outside", "lab/qubesd/qubes", "lab/qubesdb"},
    "lab/qubesd/api": {"lab/qrexec", "lab/qubesd/base", "lab/qubesd/life", "lab/qubesd/qubes"},
    "lab/qubesd/life": {"lab/qubesd/base", "lab/qubesd/outside", "lab/qubesd/qubes"},
    "lab/qubesd/qubes": {"lab/qubesd/base", "lab/qubesd/outside"},
    "lab/qubesd/outside": {"lab/qrexec", "lab/qubesd/base", "lab/qubesdb"},
    "lab/qubesd/base": set[str](),
}
MODULES_MAX = 12


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_of(path): path for path in sorted(LAB.rglob("*.py"))}


def imported(path: Path) -> Iterator[str]:
    """Modules of the laboratory, also those imported inside functions or for types alone."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            found = next((part for part in (name, name.rpartition(".")[0]) if part in FILES), None)
            if found is not None:
                yield found


def circle(graph: Mapping[str, Set[str]]) -> list[str]:
    """What is left when all that lead nowhere, or that nothing leads to, are taken away again and again."""
    left = {name: set(following) - {name} for name, following in graph.items()}
    while True:
        led_to = set().union(*left.values())
        kept = {name: follow & left.keys() for name, follow in left.items() if follow & left.keys() and name in led_to}
        if kept == left:
            return sorted(left)
        left = kept


def room_of(module: str) -> str:
    return str(FILES[module].parent.relative_to(ROOT))


GRAPH = {module: set(imported(path)) for module, path in FILES.items()}


def test_no_circle_of_modules() -> None:
    assert circle(GRAPH) == []


def test_no_circle_of_rooms() -> None:
    assert circle(MAY_IMPORT) == []


@pytest.mark.parametrize("room", sorted({room_of(module) for module in FILES}))
def test_a_room_imports_what_the_table_says(room: str) -> None:
    found = {room_of(other) for module in FILES if room_of(module) == room for other in GRAPH[module]}
    assert found - {room} == MAY_IMPORT[room]


def test_no_room_is_too_full() -> None:
    modules = {folder: sum(path.parent == folder for path in FILES.values()) for folder in {LAB, *LAB.rglob("*/")}}
    assert {str(folder): number for folder, number in modules.items() if number > MODULES_MAX} == {}


@pytest.mark.parametrize(
    ("graph", "found"),
    [({"a": {"b"}, "b": {"c"}, "c": set()}, []), ({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}, ["b", "c"])],
)
def test_a_circle_is_noticed(graph: dict[str, set[str]], found: list[str]) -> None:
    assert circle(graph) == found
