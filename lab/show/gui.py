# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""./run gui [QUBE]: the windows, in dom0 of a fresh laboratory, on your screen."""

import argparse
import os
import sys
import time

from lab.client import Lab
from lab.screen import screen
from lab.show.demo import serve

_FORWARDS = {
    "work": (
        "srcports=443-443 dstports=8443-8443 comment=web",
        "srcports=22-22 srchost=192.168.1.20 expire=reboot comment=from the laptop",
        "srcports=5000-5010 srchost=any comment=no server yet",
    ),
    "personal": ("srcports=8080-8080 enabled=no comment=paused", "srcports=5432-5432 comment=database"),
    "untrusted": ("srcports=6881-6889 srchost=any comment=torrent",),
}


def add_forwards(lab: Lab) -> None:
    """Something to look at."""
    for qube, rules in _FORWARDS.items():
        lines = "".join(f"action=forward forwardtype=external proto=tcp {rule}\n" for rule in rules)
        lab.api(qube, "admin.vm.firewall.Set", "forward", lines)


def main(argv: list[str]) -> int:
    """Bring a laboratory up, run the program until it ends, take the laboratory down."""
    parser = argparse.ArgumentParser(prog="./run gui", description="The windows, against a fresh laboratory.")
    parser.add_argument("qube", nargs="?", help="the window of this qube's firewall, not the dashboard")
    args = parser.parse_args(argv)
    if "DISPLAY" not in os.environ:
        print("run: there is no X server: DISPLAY is not set", file=sys.stderr)
        return 1
    started = time.monotonic()
    print("bringing a laboratory up", file=sys.stderr, flush=True)
    with Lab(f"gui-{os.getpid()}") as lab, serve(lab, "work", "--http", "8443", "--tcp", "22") as server:
        try:
            add_forwards(lab)
            print(f"{time.monotonic() - started:5.1f} s  the windows are on their way", file=sys.stderr, flush=True)
            hint = f"./run lab exec --name {lab.name} laptop -- curl http://192.168.1.10:443/"
            print(f"       the laptop is at hand, too: {hint}", file=sys.stderr, flush=True)
            words = [args.qube] if args.qube else []
            env = screen(lab, os.environ)
            return lab.run("dom0", ["qubes-port-forwarding", *words], env=env).returncode
        finally:
            server.terminate()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
