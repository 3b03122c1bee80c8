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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from lab import probes
from lab.client import Lab
from lab.demo import SYS_NET, serve
from lab.gui import add_forwards
from lab.hypervisor.root import PROJECT

if TYPE_CHECKING:
    from PyQt6.QtGui import QPalette
    from PyQt6.QtWidgets import QApplication, QWidget

Window = TypeVar("Window", bound="QWidget")
PICTURES = PROJECT / "docs" / "pictures"
_WAIT = 15.0
"""Seconds that a window has to show what it is to show."""
_DARK = (("Window", "#2b2b2f"), ("WindowText", "#eeeeee"), ("Base", "#1f1f23"), ("AlternateBase", "#27272b"))
_DARK_TOO = (("Text", "#eeeeee"), ("Button", "#3a3a40"), ("ButtonText", "#eeeeee"), ("PlaceholderText", "#8a8a90"))
_DARK_END = (("ToolTipBase", "#3a3a40"), ("ToolTipText", "#eeeeee"), ("Highlight", "#3d6fb4"), ("Link", "#7fb0ff"))


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
    """In dom0: open each window, wait until it shows what it should, and take its picture (PNG, by name)."""
    os.environ.update(DISPLAY=display, QT_QPA_PLATFORM="xcb", QT_SCALE_FACTOR=str(scale))
    from portfwd.gui.app import make_application

    application = make_application(["screenshots"])
    application.setStyle("Fusion")
    if dark:
        application.setPalette(_dark_palette())
    return Photographer(application).take_all()


class Photographer:
    """Drives the windows as a user does."""

    def __init__(self, application: "QApplication") -> None:
        from portfwd.client.adminapi import AdminClient, SocketTransport
        from portfwd.gui.widgets.tasks import Tasks
        from portfwd.gui.widgets.watch import Watch

        self._application = application
        transport = SocketTransport()
        self.tasks = Tasks()
        self.watch = Watch(AdminClient(transport), transport, self.tasks)
        self.pictures: dict[str, bytes] = {}
        self._kept: list[QWidget] = []
        self._scene = "the first look"
        self._troubles: list[str] = []
        self.watch.trouble.connect(self._troubles.append)

    def take_all(self) -> dict[str, bytes]:
        """Every picture."""
        from lab.scenes import scenes

        self.watch.start()
        self.wait(lambda: self.watch.known and bool(self.watch.qubes))
        for name, scene in scenes().items():
            self._scene = name
            window = scene(self)
            self.settle(0.3)
            self.pictures[name] = self._grab(window)
            window.close()
        self.watch.close()
        self.tasks.close()
        return self.pictures

    def keep(self, window: Window) -> Window:
        """Have a window live on until all pictures are made: a dialog dies with its parent."""
        self._kept.append(window)
        return window

    def wait(self, good: Callable[[], bool]) -> None:
        """Let the windows work until something is so. Raises TimeoutError."""
        deadline = time.monotonic() + _WAIT
        while not good():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self._scene} does not show what it should; {set(self._troubles)}")
            self.settle(0.02)

    def settle(self, seconds: float) -> None:
        """Let the windows work."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._application.processEvents()
            time.sleep(0.005)

    def _grab(self, window: "QWidget") -> bytes:
        from PyQt6.QtCore import QBuffer, QIODevice

        buffer = QBuffer()
        buffer.open(QIODevice.OpenModeFlag.WriteOnly)
        window.grab().save(buffer, "PNG")
        return buffer.data().data()


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


def _dark_palette() -> "QPalette":
    from PyQt6.QtGui import QColor, QPalette

    palette = QPalette()
    for role, colour in (*_DARK, *_DARK_TOO, *_DARK_END):
        palette.setColor(QPalette.ColorRole[role], QColor(colour))
    for role in ("WindowText", "Text", "ButtonText"):
        palette.setColor(QPalette.ColorGroup.Disabled, QPalette.ColorRole[role], QColor("#7d7d82"))
    return palette


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
