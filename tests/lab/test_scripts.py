# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Scripts: one of the user's that uses a laboratory, with its output going into a file; and ./run itself."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lab.client import Lab
from lab.inside.root import PROJECT

SCRIPT = """
import os, sys
from lab.client import Lab
lab = Lab(sys.argv[1])
print("before")
lab.call("work", os.getpid)
lab.start_call("work", print, "inside").wait()
print("after")
"""


def test_what_a_script_printed_is_printed_once(lab: Lab) -> None:
    # Python buffers what goes into a pipe or file.
    env = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    argv = [sys.executable, "-c", SCRIPT, lab.name]
    done = subprocess.run(argv, cwd=PROJECT, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["before", "inside", "after"]


VENV = """#!/bin/sh
# A virtual environment that has what the laboratory needs and nothing more; it notes what is asked of it.
case "$*" in
    "-m pip install"*) echo "$*" >> {log} ;;
    "-m lab"*) echo "$*" >> {log} ;;
    "- "*lab) echo lxml ;;
    "- "*gui) echo lxml; echo PyQt6 ;;
    *sysconfig*) echo {site} ;;
esac
"""


@pytest.mark.parametrize(
    ("words", "windows"),
    [
        (["exec", "dom0", "--", "qubes-port-forwarding"], True),
        (["exec", "--name", "other", "dom0", "--", "qubes-port-forwarding", "work"], True),
        (["exec", "dom0", "--", "qvm-port-forward", "list"], False),
        (["status"], False),
    ],
)
def test_f23_the_windows_are_installed_before_they_are_started_in_dom0(
    tmp_path: Path, words: list[str], windows: bool
) -> None:
    """Mistake: only ./run gui did, so the first ./run lab exec dom0 -- qubes-port-forwarding was a traceback."""
    for name in ("run", "pyproject.toml"):
        shutil.copy(PROJECT / name, tmp_path)
    python, log = tmp_path / ".venv/bin/python", tmp_path / "log"
    python.parent.mkdir(parents=True)
    python.write_text(VENV.format(log=log, site=tmp_path))
    python.chmod(0o755)
    (tmp_path / ".venv/installed-lab").write_text("lxml\n")
    subprocess.run([tmp_path / "run", "lab", *words], check=True, capture_output=True)
    *installed, started = log.read_text().splitlines()
    assert started == f"-m lab {' '.join(words)}"
    assert ["PyQt6" in line for line in installed] == ([True] if windows else [])
