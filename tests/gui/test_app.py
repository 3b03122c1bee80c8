# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The program as it is started in dom0."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator

import pytest

from lab.client import Lab

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


def test_it_runs_until_it_is_told_to_end_and_says_nothing(started: "subprocess.Popen[str]") -> None:
    time.sleep(2)
    assert started.poll() is None
    os.kill(started.pid, signal.SIGTERM)
    out, error = started.communicate(timeout=10)
    assert (out, error) == ("", "")
