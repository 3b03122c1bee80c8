# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""./run demo, when somebody has seen enough."""

import os
import signal
import subprocess
import sys

from lab.base.state import names
from lab.inside.root import PROJECT


def test_ctrl_c_ends_the_demo_and_its_laboratory_without_a_traceback() -> None:
    argv = [sys.executable, "-c", "import sys; from lab.show.demo import main; sys.exit(main())"]
    # As from a terminal: the signal reaches every process of the group at once.
    with subprocess.Popen(
        argv, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0
    ) as demo:
        assert demo.stdout is not None
        assert any("1. The laboratory" in line for line in demo.stdout)
        os.killpg(demo.pid, signal.SIGINT)
        out, err = demo.communicate(timeout=120)
    assert (demo.returncode, err) == (130, "")
    assert out.endswith("Interrupted. The laboratory is gone again.\n")
    assert f"demo-{demo.pid}" not in names()
