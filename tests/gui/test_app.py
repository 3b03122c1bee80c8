# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The program as it is started in dom0."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from lab.client import Lab
from lab.inside.root import PROJECT

PROGRAM = "qubes-port-forwarding"
# Without the words of the platform without a screen about what it cannot do.
OFFSCREEN = {"QT_QPA_PLATFORM": "offscreen", "QT_LOGGING_RULES": "qt.qpa.*=false;default.warning=false"}


@pytest.fixture
def started(lab: Lab) -> Iterator["subprocess.Popen[str]"]:
    process: subprocess.Popen[str] = lab.popen(
        "dom0", [PROGRAM, "work"], env=OFFSCREEN, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    yield process
    process.kill()
    process.communicate()


def test_a_wrong_command_line_is_told(lab: Lab) -> None:
    done = lab.run("dom0", [PROGRAM, "no such"], env=OFFSCREEN, capture_output=True, text=True)
    assert done.returncode == 2
    assert "no such" in done.stderr


def test_help_needs_no_screen(lab: Lab) -> None:
    done = lab.run("dom0", [PROGRAM, "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "qube" in done.stdout


def test_f23_the_version_is_told(lab: Lab) -> None:
    done = lab.run("dom0", [PROGRAM, "--version"], capture_output=True, text=True)
    version = (PROJECT / "version").read_text().strip()
    assert (done.returncode, done.stdout) == (0, f"{PROGRAM} (Qubes Port Forwarding) {version}\n"), done.stderr


def test_f23_without_a_screen_it_says_so(lab: Lab) -> None:
    """Qt itself would end the program by a signal."""
    done = lab.run("dom0", [PROGRAM], capture_output=True, text=True)
    words = f"{PROGRAM}: there is no screen to show windows on: DISPLAY is not set\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", words)


@pytest.mark.parametrize(
    ("words", "code", "out", "error"),
    [
        ([], 1, "", "the windows need PyQt6 (package python3-pyqt6)"),
        (["--version"], 0, "Qubes Port Forwarding", ""),
        (["--help"], 0, "--hidden", ""),
        (["no such"], 2, "", "no such"),
    ],
)
def test_f23_where_qt_is_not_installed_nothing_ends_in_a_traceback(
    words: list[str], code: int, out: str, error: str
) -> None:
    """As in a laboratory before ./run gui has run once, by a Python that sees no installed packages."""
    run = f"import sys; sys.path[:0] = [{str(PROJECT / 'src')!r}]; from portfwd.gui.app import main; sys.exit(main())"
    argv = [sys.executable, "-I", "-S", "-c", run, *words]
    done = subprocess.run(argv, env={"DISPLAY": ":0"}, capture_output=True, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
    assert out in done.stdout
    assert error in done.stderr


def test_it_runs_until_it_is_told_to_end_and_says_nothing(started: "subprocess.Popen[str]") -> None:
    time.sleep(2)
    assert started.poll() is None
    os.kill(started.pid, signal.SIGTERM)
    out, error = started.communicate(timeout=60)
    assert (out, error) == ("", "")
