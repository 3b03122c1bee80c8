# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""docs/formats.md says what the code says: the lines and words of the Admin API and of QubesDB, and no others."""

import enum
import importlib
import re
from pathlib import Path

import pytest

from portfwd.api.diagnosis import Cause
from portfwd.api.errors import ErrorWord
from portfwd.api.status import HopState, ProblemKind
from portfwd.wire.acknowledgement import AgentState, Result, WayOut, Why
from portfwd.wire.entry import KINDS, Entry

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "formats.md").read_text()
BLOCKS = {line.rstrip() for block in re.findall(r"^```\n(.*?)^```", TEXT, re.M | re.S) for line in block.splitlines()}
MODULES = sorted(path.stem for path in (ROOT / "src/portfwd/api").glob("*.py") if path.stem != "__init__")
OUTSIDE = ("lines", "errors", "frames")
"""No text of their own, or one of qubesd's."""


@pytest.mark.parametrize("name", [name for name in MODULES if name not in OUTSIDE])
def test_the_lines_of_a_module_are_those_of_the_page(name: str) -> None:
    said = importlib.import_module(f"portfwd.api.{name}").__doc__ or ""
    # A remark may stand behind a line; what a line shares with another answer is described in words.
    lines = [line[4:].partition("    ")[0] for line in said.splitlines() if line.startswith("    ")]
    own = [line for line in lines if not line.endswith(" ...") or line.startswith("qube=")]
    assert own or name == "forwards"
    assert [line for line in own if line not in BLOCKS] == []


def listed(key: str) -> set[str]:
    """The words of which a key is one."""
    return set(re.findall(r"`([a-z0-9-]+)`", TEXT.partition(f"`{key}` is one of")[2].split("\n\n")[0]))


def table(head: str) -> set[str]:
    """The words in backquotes in the first column of a table."""
    rows = TEXT.partition(f"| {head} |")[2].split("\n\n")[0].splitlines()[2:]
    return {word for row in rows for word in re.findall(r"`([^`]+)`", row.split("|")[1])}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (HopState, table("STATE | meaning")),
        (ErrorWord, table("class | what it says")),
        (ProblemKind, listed("reason")),
        (Cause, listed("cause")),
    ],
)
def test_the_words_of_the_page_are_those_of_the_code(words: type[enum.StrEnum], told: set[str]) -> None:
    assert told == set(words)


def words_of(kind: type[Entry]) -> str:
    own = [f"{word}=" for word in kind.own]
    return " ".join([f"kind={kind.kind}", "side=", "listen=", "source=", *own, "[expire="])


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_the_words_of_an_entry_are_those_of_its_class(kind: type[Entry]) -> None:
    (line,) = (line for line in BLOCKS if line.startswith("/qubes-port-forward/") and f" kind={kind.kind} " in line)
    keys = re.findall(r"(?:kind=\w+|\[?[a-z]+=)", line)
    assert " ".join(keys) == words_of(kind)


@pytest.mark.parametrize(
    ("words", "form"),
    [
        (Result, "RULE.FAMILY.PROTO   {}"),
        (AgentState, "                  version=1 generation=N state={}"),
        (WayOut, "way-out             {}"),
        (Why, "ignored             INTERFACE:{}:WHAT ..."),
    ],
)
def test_what_an_agent_says_is_what_the_page_says(words: type[enum.StrEnum], form: str) -> None:
    assert any(line.endswith(form.format("|".join(words))) for line in BLOCKS), "|".join(words)


def test_a_problem_is_a_cause() -> None:
    """Mistake: the check of a forward that opens nothing fails, since its reason is no word of a diagnosis."""
    assert {kind.value for kind in ProblemKind} <= set(Cause)
