# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Linters, types and house rules as tests: one command is the whole truth."""

import dataclasses
import importlib
import inspect
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


def holds_string(hint: object) -> bool:
    """Whether a bare str is anywhere in a type: alone, or in X | None, tuple[X, ...], dict[K, X]."""
    return hint is str or any(holds_string(part) for part in typing.get_args(hint))


def plain_strings(kind: type) -> list[str]:
    """Fields that are or hold a bare str: values are types made at the border."""
    fields = [f.name for f in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else kind._fields  # type: ignore[attr-defined]
    hints = typing.get_type_hints(kind)
    return [name for name in fields if holds_string(hints[name])]


def test_no_bare_strings_in_rules_and_entries() -> None:
    found = {}
    for part in ("wire", "base", "model", "api"):
        for path in sorted((ROOT / "src/portfwd" / part).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__")
            module = importlib.import_module(name)
            for _, kind in inspect.getmembers(module, inspect.isclass):
                is_value = dataclasses.is_dataclass(kind) or hasattr(kind, "_fields")
                if kind.__module__ == name and is_value and plain_strings(kind):
                    found[f"{kind.__module__.removeprefix('portfwd.')}.{kind.__name__}"] = plain_strings(kind)
    assert found == {
        # Opaque to all but who made it.
        "wire.entry.Commit": ["digest"],
        # Any path that the protocol can carry.
        "base.qubesdb.Header": ["path"],
        "base.qubesdb.Message": ["path"],
        # Keys of entries, as they stand in QubesDB.
        "wire.answers.connections.Connections": ["listed"],
        "wire.answers.preview.Preview": ["elements"],
        "wire.answers.probe.Sight": ["listening"],
        "wire.answers.report.Report": ["entries"],
        # Words and sentences of dom0 for people, which newer ones may add to.
        "api.diagnosis.Finding": ["text"],
        "api.status.Entrance": ["note"],
        "api.status.Obstacle": ["text"],
        "api.status.Status": ["unread"],
        # What qubesd says of itself.
        "api.frames.ErrorFrame": ["kind", "text"],
        "api.frames.Event": ["subject", "name"],
    }
