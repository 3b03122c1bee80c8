# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""What documents promise about themselves: paths that exist, a short map, a README of one screen, whole records."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DESIGN = ROOT / "DESIGN.md"
DECISIONS = ROOT / "docs" / "decisions"
INDEX = DECISIONS / "README.md"
RECORDS = sorted(DECISIONS.glob("[0-9]*.md"))
DOCUMENTS = [ROOT / "README.md", DESIGN, *sorted((ROOT / "docs").rglob("*.md"))]
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
HEADINGS = ["What", "Why", "What else was tried", "Figure"]


def section(text: str, title: str) -> str:
    """What stands below a heading of the second level."""
    found = re.search(rf"^## {title}$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"no section {title}"
    return found.group(1)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_documents_name_only_what_exists(path: Path) -> None:
    """Every path in backquotes or in a link of a document is there."""
    text = path.read_text()
    named = re.findall(r"`((?:src|lab|tests|docs|\.ci)/[\w./*-]*)`", text) + re.findall(
        r"\]\(((?!http)[\w./-]+)(?:#[\w-]+)?\)", text
    )
    missing = [name for name in named if not list(ROOT.glob(name.rstrip("/"))) and not list(path.parent.glob(name))]
    assert not missing


def anchors(path: Path) -> set[str]:
    """The fragments of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_to_headings_that_exist(path: Path) -> None:
    links = re.findall(r"\]\(((?!http)[\w./-]*)#([\w-]+)\)", path.read_text())
    dead = [(page, name) for page, name in links if name not in anchors(path.parent / page if page else path)]
    assert not dead


def test_the_map_is_short() -> None:
    assert len(DESIGN.read_text().split()) <= 1500


def steps(title: str) -> list[tuple[str, str]]:
    """Module and function of each step of one walk, in order."""
    walk = section(DESIGN.read_text(), "The walk").partition(f"{title}:\n\n")[2].partition("\n\n")[0]
    return re.findall(r"^\d+\. `([\w/.]+)` `([\w.]+)`: ", walk, re.MULTILINE)


@pytest.mark.parametrize("title", ["Words typed -> packet", "Status back"])
def test_the_walk_enters_no_room_twice(title: str) -> None:
    rooms = [str(Path(module).parent) for module, _ in steps(title)]
    assert len(rooms) > 5
    assert len(set(rooms)) == len(rooms)


@pytest.mark.parametrize(("module", "function"), [*steps("Words typed -> packet"), *steps("Status back")])
def test_each_step_of_the_walk_is_there(module: str, function: str) -> None:
    tree: ast.AST = ast.parse((ROOT / "src" / "portfwd" / module).read_text())
    for name in function.split("."):
        found = [node for node in ast.walk(tree) if isinstance(node, DEFINITIONS) and node.name == name]
        assert found, f"{module} has no {name}"
        tree = found[0]


def test_the_glossary_is_short() -> None:
    assert 0 < len(re.findall(r"\*\*[\w ]+\*\*", section(DESIGN.read_text(), "Words"))) <= 20


def test_the_readme_is_one_screen_before_its_pictures() -> None:
    lines = (ROOT / "README.md").read_text().partition("\n![")[0].splitlines()
    assert len(lines) <= 50
    assert [line for line in lines if len(line) > 100] == []


def test_the_index_names_every_decision_in_order() -> None:
    listed = re.findall(r"^\| \[(\d{3})\]\(([\w-]+\.md)\) \| (.*) \|$", INDEX.read_text(), re.MULTILINE)
    titles = {path.name: path.read_text().partition("\n# ")[2].partition("\n")[0] for path in RECORDS}
    assert [name for _, name, _ in listed] == [path.name for path in RECORDS]
    assert [f"{number}: {title}" for number, _, title in listed] == list(titles.values())
    assert len({number for number, _, _ in listed}) == len(listed)


@pytest.mark.parametrize("path", RECORDS, ids=lambda p: p.stem)
def test_a_decision_says_what_why_what_else_and_the_figure(path: Path) -> None:
    text = path.read_text()
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == HEADINGS
    assert all(section(text, title).strip() for title in HEADINGS)
    assert len(text.split()) <= 450, "a record is short"


def test_every_suite_is_described() -> None:
    text = (ROOT / "docs" / "tests.md").read_text()
    suites = {path.parent.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("test_*.py")}
    assert {suite for suite in suites if f"`{suite}" not in text} == set()
