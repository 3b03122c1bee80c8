# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The suite watches its own tests: none leaves anything behind, holds up the rest, or gets into the wrong lane."""

import subprocess
import sys
from pathlib import Path

import pytest

from lab.inside.root import PROJECT
from tests import lanes

CONFTEST = """
import subprocess
import pytest
from tests import leaks, time_limit

pytest_plugins = ("tests.lanes", "tests.leaks", "tests.time_limit")
leaks.PATIENCE, time_limit.LIMIT = 0.2, 2.0

@pytest.fixture(scope="session")
def shared():
    with subprocess.Popen(["sleep", "1000"], stdout=subprocess.PIPE) as process:
        yield process
        process.kill()
"""
LEFT = {
    "process": "import subprocess; kept = subprocess.Popen(['sleep', '1000'])",
    "orphan": "import subprocess; subprocess.run('sleep 1000 >/dev/null 2>&1 &', shell=True)",
    "thread": "import threading, time; threading.Thread(target=time.sleep, args=(5,), daemon=True).start()",
    "descriptor": "import os; os.pipe()",
}
TESTS = """
def test_a():
    {body}

def test_b(shared):
    assert shared.poll() is None

def test_c(shared):
    assert shared.poll() is None
"""


def suite(folder: Path, body: str, *options: str, tests: str = TESTS) -> "subprocess.CompletedProcess[str]":
    """Run a suite of three tests of which the first one does this."""
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_it.py").write_text(tests.format(body=body))
    options = ("-q", "-p", "no:cacheprovider", "--rootdir", str(folder), *options)
    argv = [sys.executable, "-P", "-m", "pytest", *options, str(folder)]
    return subprocess.run(argv, cwd=PROJECT, capture_output=True, text=True, timeout=100, check=False)


@pytest.mark.parametrize("what", LEFT)
def test_f24_a_test_that_leaves_something_behind_fails_for_it(tmp_path: Path, what: str) -> None:
    done = suite(tmp_path, LEFT[what])
    kind = {"orphan": "process"}.get(what, what)
    assert f"left behind: {kind}" in done.stdout, done.stdout
    assert "ERROR" in done.stdout
    assert "test_it.py::test_a" in done.stdout
    assert "3 passed" in done.stdout
    assert "1 error in" in done.stdout
    assert done.returncode == 1


def test_f24_what_a_wider_fixture_holds_is_no_leak(tmp_path: Path) -> None:
    done = suite(tmp_path, "pass")
    assert "3 passed" in done.stdout, done.stdout
    assert done.returncode == 0


@pytest.mark.parametrize("hanging", ["import time; time.sleep(1000)", "import os; os.read(os.pipe()[0], 1)"])
def test_f24_a_test_that_hangs_fails_and_the_next_ones_run(tmp_path: Path, hanging: str) -> None:
    done = suite(tmp_path, hanging)
    assert "this took longer than 2 s" in done.stdout, done.stdout
    assert "2 passed" in done.stdout
    assert "1 failed" in done.stdout
    assert "Current thread" in done.stdout, "the stacks are shown"
    assert done.returncode == 1


@pytest.mark.parametrize(
    "call", ["subprocess.run(['unshare', '--user', 'true'], check=True)", "namespaces.unshare(1 << 28)"]
)
def test_a_test_that_makes_namespaces_fails_in_the_fast_lane(tmp_path: Path, call: str) -> None:
    done = suite(tmp_path, f"import subprocess; from lab.base import namespaces; {call}", "--fast")
    assert "Operation not permitted" in done.stdout, done.stdout
    assert "1 failed, 2 passed" in done.stdout


def test_a_slow_test_is_left_out_of_the_fast_lane_and_processes_still_start(tmp_path: Path) -> None:
    marked = TESTS.replace("def test_b", "@pytest.mark.slow\ndef test_b")
    done = suite(tmp_path, "pass", "--fast", tests=f"import pytest{marked}")
    assert "2 passed, 1 deselected" in done.stdout, done.stdout


def test_a_suite_that_takes_a_laboratory_is_left_out_of_the_fast_lane(tmp_path: Path) -> None:
    done = suite(tmp_path, "pass", "--fast", tests=TESTS.replace("shared", "lab"))
    assert "1 passed, 2 deselected" in done.stdout, done.stdout


def test_the_slow_folders_are_there() -> None:
    assert [name for name in lanes.SLOW_FOLDERS if not (lanes.TESTS / name / "__init__.py").exists()] == []
