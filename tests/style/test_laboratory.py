# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The rooms of the laboratory: who may import whom, none too full to be seen at once; no circle there or in tests."""

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


FILES = {module_of(path): path for tree in ("bench", "lab", "tests") for path in sorted((ROOT / tree).rglob("*.py"))}


def imported(path: Path) -> Iterator[str]:
    """Modules outside the product, also those imported inside functions or for types alone."""
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
ROOMS: dict[str, set[str]] = {}
for module, others in GRAPH.items():
    ROOMS.setdefault(room_of(module), set()).update(room_of(other) for other in others)


def test_no_circle_of_modules() -> None:
    assert circle(GRAPH) == []


def test_no_circle_of_rooms() -> None:
    assert circle(ROOMS) == []


@pytest.mark.parametrize("room", [room for room in ROOMS if room.split("/")[0] == "lab"])
def test_a_room_imports_what_the_table_says(room: str) -> None:
    assert ROOMS[room] - {room} == MAY_IMPORT[room]


def test_no_room_is_too_full() -> None:
    modules = {folder: sum(path.parent == folder for path in FILES.values()) for folder in {LAB, *LAB.rglob("*/")}}
    assert {str(folder): number for folder, number in modules.items() if number > MODULES_MAX} == {}


@pytest.mark.parametrize(
    ("graph", "found"),
    [({"a": {"b"}, "b": {"c"}, "c": set()}, []), ({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}, ["b", "c"])],
)
def test_a_circle_is_noticed(graph: dict[str, set[str]], found: list[str]) -> None:
    assert circle(graph) == found
