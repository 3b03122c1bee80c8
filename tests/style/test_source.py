# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Linters, types and house rules as tests: one command is the whole truth."""

import dataclasses
import importlib
import inspect
import re
import subprocess
import sys
import typing
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TRACKED = [p for d in ("src", "lab", "bench", "tests") for p in sorted((ROOT / d).rglob("*.py"))]
HEADER = "# SPDX-License-Identifier: GPL-2.0-or-later\n# SPDX-FileCopyrightText: "


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", *argv], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("argv", [("ruff", "check"), ("ruff", "format", "--check"), ("mypy", "--no-error-summary")])
def test_linter(argv: tuple[str, ...]) -> None:
    done = run(*argv)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", TRACKED, ids=lambda p: str(p.relative_to(ROOT)))
def test_header_and_size(path: Path) -> None:
    text = path.read_text()
    assert text.startswith(HEADER)
    assert len(text.splitlines()) <= 400, "a module of over 400 lines does more than one thing"


def plain_strings(kind: type) -> list[str]:
    """Fields that are a bare str or int: values are types made at the border."""
    hints = typing.get_type_hints(kind)
    names = {field.name for field in dataclasses.fields(kind)}
    return [name for name, hint in hints.items() if name in names and hint is str]


def test_no_bare_strings_in_rules_and_entries() -> None:
    found = {}
    for part in ("wire", "model"):
        for path in (ROOT / "src" / "portfwd" / part).glob("*.py"):
            module = importlib.import_module(f"portfwd.{part}.{path.stem}")
            for _, kind in inspect.getmembers(module, dataclasses.is_dataclass):
                if isinstance(kind, type) and plain_strings(kind):
                    found[kind.__name__] = plain_strings(kind)
    # The QubesDB codec carries any path that the protocol can; a digest is opaque.
    assert found == {"Commit": ["digest"], "Header": ["path"], "Message": ["path"]}


DOCUMENTS = [ROOT / "README.md", ROOT / "DESIGN.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: p.name)
def test_documents_name_only_what_exists(path: Path) -> None:
    """Every path in backquotes or in a link of a document is there."""
    text = path.read_text()
    named = re.findall(r"`((?:src|lab|tests|docs|\.ci)/[\w./*-]*)`", text) + re.findall(
        r"\]\(((?!http)[\w./-]+)\)", text
    )
    missing = [name for name in named if not list(ROOT.glob(name.rstrip("/"))) and not list(path.parent.glob(name))]
    assert not missing


def test_documents_name_every_module() -> None:
    """DESIGN.md is the map: no module of the product is missing from it."""
    text = (ROOT / "DESIGN.md").read_text()
    modules = [p for p in (ROOT / "src" / "portfwd").rglob("*.py") if p.name not in ("__init__.py", "__main__.py")]
    assert [str(p.relative_to(ROOT)) for p in modules if f"`{p.name}`" not in text] == []
