# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Opens windows of the product in dom0 of a laboratory, drives them, and takes their pictures."""

import time
from collections.abc import Callable, Mapping
from typing import TypeVar

from PyQt6.QtCore import QBuffer, QIODevice
from PyQt6.QtGui import QColor, QPalette
from PyQt6.QtWidgets import QWidget

from portfwd.client.adminapi import AdminClient, SocketTransport
from portfwd.gui.program import make_application
from portfwd.gui.shared.tasks import Tasks
from portfwd.gui.shared.watch import Watch

Window = TypeVar("Window", bound=QWidget)
_WAIT = 15.0
"""Seconds that a window has to show what it is to show."""
_DARK = (("Window", "#2b2b2f"), ("WindowText", "#eeeeee"), ("Base", "#1f1f23"), ("AlternateBase", "#27272b"))
_DARK_TOO = (("Text", "#eeeeee"), ("Button", "#3a3a40"), ("ButtonText", "#eeeeee"), ("PlaceholderText", "#8a8a90"))
_DARK_END = (("ToolTipBase", "#3a3a40"), ("ToolTipText", "#eeeeee"), ("Highlight", "#3d6fb4"), ("Link", "#7fb0ff"))


class Photographer:
    """Drives the windows as a user does."""

    def __init__(self, *, dark: bool) -> None:
        self._application = make_application(["screenshots"])
        self._application.setStyle("Fusion")
        if dark:
            self._application.setPalette(_dark_palette())
        transport = SocketTransport()
        self.tasks = Tasks()
        self.watch = Watch(AdminClient(transport), transport, self.tasks)
        self.pictures: dict[str, bytes] = {}
        self._kept: list[QWidget] = []
        self._scene = "the first look"

    def take_all(self, scenes: Mapping[str, "Scene"]) -> dict[str, bytes]:
        """Every picture."""
        self.watch.start()
        self.wait(lambda: self.watch.known and bool(self.watch.qubes))
        for name, scene in scenes.items():
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
                raise TimeoutError(f"{self._scene} does not show what it should; {self.watch.problem}")
            self.settle(0.02)

    def settle(self, seconds: float) -> None:
        """Let the windows work."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._application.processEvents()
            time.sleep(0.005)

    def _grab(self, window: QWidget) -> bytes:
        buffer = QBuffer()
        buffer.open(QIODevice.OpenModeFlag.WriteOnly)
        window.grab().save(buffer, "PNG")
        return buffer.data().data()


def _dark_palette() -> QPalette:
    palette = QPalette()
    for role, colour in (*_DARK, *_DARK_TOO, *_DARK_END):
        palette.setColor(QPalette.ColorRole[role], QColor(colour))
    for role in ("WindowText", "Text", "ButtonText"):
        palette.setColor(QPalette.ColorGroup.Disabled, QPalette.ColorRole[role], QColor("#7d7d82"))
    return palette


Scene = Callable[[Photographer], QWidget]
"""Makes a window show something; the window."""
