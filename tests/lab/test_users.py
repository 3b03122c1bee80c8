# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""A laboratory of an ordinary user, whoever runs the tests."""

import os
import subprocess
import sys
from pathlib import Path

from lab.inside.root import PROJECT

USER = "1000"
TOPOLOGY = Path(__file__).parent / "fake_ip.toml"
PROGRAM = """
import os, sys
from lab import probes
from lab.client import Lab

assert os.getuid() != 0
with Lab(sys.argv[1], sys.argv[2]) as lab:
    inside = lab.run("masked", ["ip", "-o", "-4", "address", "show", "dev", "eth0"], capture_output=True, text=True)
    assert "192.168.200.5/32" in inside.stdout, inside
    print(lab.call("masked", probes.ask_tcp, "192.168.1.20", 7300))
"""


def test_f24_an_ordinary_user_has_a_laboratory_with_net_fake_ip(tmp_path: Path) -> None:
    user = ("unshare", "--user", f"--map-user={USER}", f"--map-group={USER}")
    done = subprocess.run(
        [*user, sys.executable, "-c", PROGRAM, f"user-{os.getpid()}", str(TOPOLOGY)],
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout == "refused\n", done.stderr
