# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""One flow, one direction: who may import whom (DESIGN.md, table of folders)."""

import ast
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "portfwd"
MAY_IMPORT = {
    "wire": set[str](),
    "model": {"wire"},
    "dom0": {"wire", "model"},
    "client": {"wire", "model"},
    "gui": {"wire", "model", "client"},
    "agent": {"wire"},
}
BEYOND_STANDARD = {
    "wire": set[str](),
    "model": set[str](),
    "dom0": {"lxml", "qubes", "qrexec"},
    "client": {"argcomplete"},
    "gui": {"PyQt6", "qrcode"},
    "agent": set[str](),
}
FILES = sorted(SOURCE.rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_follow_the_flow(path: Path) -> None:
    part = path.relative_to(SOURCE).parts[0]
    for name in imports(path):
        first, _, rest = name.partition(".")
        if first == "portfwd":
            target = rest.split(".")[0]
            assert target == part or target in MAY_IMPORT[part], f"{part} must not import {target}"
        else:
            assert first in sys.stdlib_module_names | BEYOND_STANDARD[part], f"{part} must not need {first}"


def test_only_one_folder_touches_qubesd() -> None:
    touching = {path.parent for path in FILES if any(name.split(".")[0] == "qubes" for name in imports(path))}
    assert touching == {SOURCE / "dom0/stock"}


def test_the_state_of_the_windows_knows_no_qt() -> None:
    state = [path for path in FILES if path.is_relative_to(SOURCE / "gui/state")]
    for path in state:
        for name in imports(path):
            assert name.split(".")[0] != "PyQt6", f"{path.name} must not need Qt"
            assert not name.startswith("portfwd.gui.widgets"), f"{path.name} must not need a widget"
    assert state


def test_every_folder_is_in_the_table() -> None:
    assert {path.name for path in SOURCE.iterdir() if path.is_dir() and path.name != "__pycache__"} == set(MAY_IMPORT)


def test_agent_starts_alone(tmp_path: Path) -> None:
    """The agent's package and wire, nothing else, under python3 -I: as installed in a minimal template."""
    for part in ("agent", "wire"):
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
