# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""./run captures: docs/captures.md, made from what qvm-port-forward prints in a laboratory. Nothing is retouched."""

import os
import shlex
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from lab import probes
from lab.client import Lab
from lab.inside.root import PROJECT
from lab.show.demo import SYS_NET, hold_connection, serve

PAGE = PROJECT / "docs" / "captures.md"
TOOL = "qvm-port-forward"
HEAD = """\
<!-- SPDX-License-Identifier: GPL-2.0-or-later -->
<!-- SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors -->
# What qvm-port-forward prints

Made by `./run captures` in the default laboratory; not edited by hand. What each command means:
[qvm-port-forward.md](qvm-port-forward.md).
"""


class Captures:
    """Types commands in dom0 and keeps what they print."""

    def __init__(self, lab: Lab, report: Callable[[str], None]) -> None:
        self.lab = lab
        self.text = HEAD
        self._report = report

    def section(self, title: str, words: str) -> None:
        """Begin a section."""
        self.text += f"\n## {title}\n\n{words}\n"

    def type(self, command: str) -> None:
        """Run one command and show it with its output and, unless that is 0, its exit code."""
        self._report(command)
        done = self.lab.run("dom0", shlex.split(f"{TOOL} {command}"), capture_output=True, text=True)
        code = f"(exit code {done.returncode})\n" if done.returncode else ""
        self.text += f"\n```\n$ {TOOL} {command}\n{done.stdout}{done.stderr}{code}```\n"


def capture(lab: Lab, report: Callable[[str], None]) -> str:
    """The whole page."""
    with serve(lab, "work", "--http", "8443", "--tcp", "22", "--udp", "5000-5010") as server:
        try:
            return _typed(Captures(lab, report))
        finally:
            server.terminate()


def _typed(page: Captures) -> str:
    lab = page.lab
    page.section("add", "Says in one sentence what it opened, once every hop has answered.")
    page.type("add work 443:8443/tcp --from 192.168.0.0/16 --for 2h --comment web")
    page.type("add work ssh/tcp --comment 'from the laptop'")
    page.type("add work 5000-5010/udp --anyone --until reboot")
    page.type("add work 2222:22/tcp --internal")
    page.type("add personal 8443/tcp --comment 'no server yet'")
    page.type("add personal 443/tcp")
    page.type("add personal 443/tcp --pick-port")
    page.type("pause personal 8443")
    ours, theirs = socket.socketpair()
    with ours, ours.makefile("rw") as talk:
        holder = lab.start_call("laptop", hold_connection, theirs, SYS_NET, 22)
        theirs.close()
        talk.readline()
        for _ in range(3):
            lab.call("laptop", probes.fetch, SYS_NET, 443)
        page.section("list", "All forwards of all qubes.")
        page.type("list")
        page.section("show", "One forward, hop by hop, and who is connected.")
        page.type("show work ssh")
        page.type("show personal 8443")
        page.section("plan", "What a change would do on each hop; nothing is touched.")
        page.type("plan work add 8080/tcp --from 192.168.1.20")
        page.section("check", "Finds what is in the way. A marked probe goes through the chain; every hop counts it.")
        page.type("check work 443")
        page.type("check work 443 --from 203.0.113.80")
        page.type("check personal 1024")
        page.section("remove", "The port shuts on every hop, and its connections end.")
        page.type("remove work ssh")
        # Its holder ends; other processes in the laptop have copies of this end, so closing it would not tell.
        ours.shutdown(socket.SHUT_RDWR)
        holder.wait()
        page.type("remove work ssh")
    return page.text


def main(argv: list[str]) -> int:
    """Write the page, to the file that is named or to docs/captures.md."""
    started = time.monotonic()

    def report(words: str) -> None:
        print(f"{time.monotonic() - started:5.1f} s  {words}", file=sys.stderr, flush=True)

    target = Path(argv[0]) if argv else PAGE
    report("bringing a laboratory up")
    with Lab(f"captures-{os.getpid()}") as lab:
        text = capture(lab, report)
    target.write_text(text)
    report(f"written: {target.name}. The laboratory is gone again.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
