# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""A script of the user's that uses a laboratory, with its output going into a file."""

import os
import subprocess
import sys

from lab.client import Lab
from lab.hypervisor.root import PROJECT

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
