# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""One flow, one direction: who may import whom. The table is the one of DESIGN.md: `| room | holds | may import |`."""

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "portfwd"
FILES = sorted(SOURCE.rglob("*.py"))
MODULES_MAX = 12
IN_QUBES = ("wire", "base", "kernel", "agent")
"""What ships into qubes: it needs nothing but Python."""


class Row(NamedTuple):
    """What a room may import: rooms, each without its sub-rooms, and packages beyond the standard library."""

    rooms: tuple[str, ...]
    packages: tuple[str, ...]


def read_table(text: str) -> dict[str, Row]:
    lines = iter(text.splitlines())
    assert "| room | holds | may import |" in lines, "DESIGN.md lacks the table of rooms"
    next(lines)
    table: dict[str, Row] = {}
    for line in lines:
        if not line.startswith("|"):
            break
        room, _, may_import = (cell.strip() for cell in line.strip("|").split(" | "))
        assert room.strip("`") not in table, f"{room} stands twice in the table"
        rooms, _, packages = may_import.partition(";")
        table[room.strip("`")] = Row(names(rooms), names(packages))
    return table


def names(cell: str) -> tuple[str, ...]:
    return tuple(re.findall(r"[\w/]+", cell))


TABLE = read_table((ROOT / "DESIGN.md").read_text())


def room_of(path: Path) -> str:
    return path.parent.relative_to(SOURCE).as_posix()


def target_of(name: str) -> str:
    """The room that a dotted name below portfwd leads into: its longest part that is a folder."""
    folder = SOURCE
    for part in name.split(".")[1:]:
        if not (folder / part).is_dir():
            break
        folder /= part
    return folder.relative_to(SOURCE).as_posix()


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_follow_the_flow(path: Path) -> None:
    room = room_of(path)
    for name in imports(path):
        first = name.split(".")[0]
        if first == "portfwd":
            target = target_of(name)
            assert target == room or target in TABLE[room].rooms, f"{room} must not import {target}"
        else:
            assert first in sys.stdlib_module_names or first in TABLE[room].packages, f"{room} must not need {first}"


def test_there_is_no_circle_of_rooms() -> None:
    """Each room imports from rooms that stand above it in the table, so none can lead back to itself."""
    above: set[str] = set()
    for room, row in TABLE.items():
        assert not set(row.rooms) - above, f"{room} imports from rooms that do not stand above it"
        above.add(room)


def test_there_is_no_circle_of_the_rooms_of_machines() -> None:
    """The same with every sub-room counted to the room around it."""
    arrows: dict[str, set[str]] = {}
    for room, row in TABLE.items():
        top = room.split("/")[0]
        arrows.setdefault(top, set()).update(other.split("/")[0] for other in row.rooms)
    while arrows:
        ends = {room for room, others in arrows.items() if not (others - {room}) & set(arrows)}
        assert ends, f"a circle among {sorted(arrows)}"
        for room in ends:
            del arrows[room]


def test_the_table_is_the_folders() -> None:
    """Every room is in the table, and nothing else; none has so many modules that nobody sees what it is."""
    rooms = {path.parent for path in FILES}
    assert sorted(TABLE) == sorted(room.relative_to(SOURCE).as_posix() for room in rooms)
    modules = {room_of(room / "x"): len([p for p in room.glob("*.py") if p.name != "__init__.py"]) for room in rooms}
    assert {room: count for room, count in modules.items() if count > MODULES_MAX} == {}


def test_what_ships_into_qubes_needs_nothing_but_python() -> None:
    inside = {room: row for room, row in TABLE.items() if room.split("/")[0] in IN_QUBES}
    assert {room for room, row in inside.items() if row.packages} == set()
    assert {other.split("/")[0] for row in inside.values() for other in row.rooms} <= set(IN_QUBES)


def test_the_kernels_room_knows_no_policy() -> None:
    assert {room.split("/")[0] for room in TABLE["kernel"].rooms} <= {"wire", "base"}


def test_only_one_folder_touches_qubesd() -> None:
    assert [room for room, row in TABLE.items() if "qubes" in row.packages] == ["dom0/qubesd"]


def test_the_state_of_the_windows_knows_no_qt() -> None:
    assert TABLE["gui/state"].packages == ()


def test_agent_starts_alone(tmp_path: Path) -> None:
    """What ships into qubes, nothing else, under python3 -I: as installed in a minimal template."""
    for part in IN_QUBES:
        shutil.copytree(SOURCE / part, tmp_path / "portfwd" / part, ignore=shutil.ignore_patterns("__pycache__"))
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import portfwd.agent.__main__; print('starts')"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "LC_ALL": "C"},
        check=False,
    )
    assert done.stdout == "starts\n", done.stderr


def test_lab_is_never_needed_by_the_product() -> None:
    assert not [p for p in FILES if any(name.split(".")[0] in ("lab", "tests") for name in imports(p))]
