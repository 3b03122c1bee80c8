# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""./run screenshots: pictures of the real windows in dom0 of a laboratory, on an X server without a screen."""

import argparse
import contextlib
import itertools
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from lab import probes
from lab.client import Lab
from lab.inside.root import PROJECT
from lab.show.demo import SYS_NET, serve
from lab.show.gui import add_forwards

PICTURES = PROJECT / "docs" / "pictures"
_WAIT = 15.0
"""Seconds that a window has to show what it is to show."""


@contextlib.contextmanager
def xvfb() -> Iterator[str]:
    """An X server of our own; its DISPLAY."""
    read_end, write_end = os.pipe()
    command = ["Xvfb", "-displayfd", str(write_end), "-screen", "0", "2600x1800x24", "-nolisten", "tcp"]
    with subprocess.Popen(command, pass_fds=[write_end], stderr=subprocess.DEVNULL) as server:
        os.close(write_end)
        try:
            with os.fdopen(read_end) as pipe:
                number = pipe.readline().strip()
            if not number:
                raise OSError("Xvfb does not start")
            yield f":{number}"
        finally:
            server.terminate()


def photograph(display: str, scale: int, dark: bool) -> dict[str, bytes]:
    """In dom0: the picture of each scene (PNG, by name)."""
    # What Qt reads of the environment it reads when it is loaded.
    os.environ.update(DISPLAY=display, QT_QPA_PLATFORM="xcb", QT_SCALE_FACTOR=str(scale))
    from lab.show.photographer import Photographer
    from lab.show.scenes import scenes

    return Photographer(dark=dark).take_all(scenes())


def visit(control: socket.socket) -> None:
    """In the laptop: fetch the page of work now and then, and keep a connection open, until the control socket ends."""
    control.settimeout(0.4)
    sizes = itertools.cycle((3, 40, 10, 120, 60, 5, 90))
    with control, socket.create_connection((SYS_NET, 22), _WAIT) as client:
        while True:
            try:
                if not control.recv(1):
                    return
            except TimeoutError:
                probes.fetch(SYS_NET, 443)
                client.sendall(b"a line\n" * next(sizes))
                client.recv(65536)


def main(argv: list[str]) -> int:
    """Make the pictures."""
    parser = argparse.ArgumentParser(prog="./run screenshots", description="Pictures of the windows, for the docs.")
    parser.add_argument("folder", nargs="?", type=Path, default=PICTURES, help="where to (default: docs/pictures)")
    parser.add_argument("--all", action="store_true", help="light and dark, at scale 1 and 2: to look at while working")
    options = parser.parse_args(argv)
    options.folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()

    def report(words: str) -> None:
        print(f"{time.monotonic() - started:5.1f} s  {words}", file=sys.stderr, flush=True)

    report("bringing a laboratory up")
    variants = [(1, False), (2, False), (1, True), (2, True)] if options.all else [(1, False), (1, True)]
    with contextlib.ExitStack() as ends:
        display = ends.enter_context(xvfb())
        lab = ends.enter_context(Lab(f"screenshots-{os.getpid()}"))
        server = ends.enter_context(serve(lab, "work", "--http", "8443", "--tcp", "22"))
        ends.callback(server.terminate)
        # A program of sys-net has the port that a forward of personal wants.
        rival = ends.enter_context(serve(lab, "sys-net", "--tcp", "5432"))
        ends.callback(rival.terminate)
        add_forwards(lab)
        deadline = time.monotonic() + _WAIT
        while lab.call("laptop", probes.fetch, SYS_NET, 443) in ("timeout", "refused"):
            if time.monotonic() > deadline:
                raise TimeoutError("work's page cannot be reached")
        # Somebody uses what is on show.
        ours, theirs = socket.socketpair()
        visitor = lab.start_call("laptop", visit, theirs)
        theirs.close()
        ends.callback(visitor.wait)
        ends.enter_context(ours)
        ends.callback(lambda: ours.shutdown(socket.SHUT_RDWR))
        for scale, dark in variants:
            suffix = f"{'-dark' if dark else ''}{f'-{scale}x' if scale > 1 else ''}"
            for name, picture in lab.call("dom0", photograph, display, scale, dark).items():
                (options.folder / f"{name}{suffix}.png").write_bytes(picture)
                report(f"{name}{suffix}.png")
    report("the laboratory is gone again")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
