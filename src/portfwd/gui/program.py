# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The windows of one run of the program, and Qt around them."""

import signal
from collections.abc import Sequence
from pathlib import Path

from PyQt6.QtCore import QLibraryInfo, QLocale, QTimer, QTranslator
from PyQt6.QtWidgets import QApplication, QSystemTrayIcon

from portfwd.client.adminapi import AdminClient, connect
from portfwd.client.events import EventTransport
from portfwd.gui.dashboard.dashboard import Dashboard
from portfwd.gui.dashboard.tray import Tray
from portfwd.gui.qube.window import QubeWindow
from portfwd.gui.shared.appearance import tray_icon
from portfwd.gui.shared.tasks import Tasks
from portfwd.gui.shared.watch import Watch
from portfwd.wire.values import QubeName

_NAME = "qubes-port-forwarding"
_TRANSLATIONS = Path(__file__).parents[1] / "i18n"
_BREATH = 200
"""Milliseconds after which Python checks for signals."""


class Program:
    """The windows of one run."""

    def __init__(self, application: QApplication, transport: EventTransport, qube: QubeName | None, *, hidden: bool):
        self.tasks = Tasks()
        self.watch = Watch(AdminClient(transport), transport, self.tasks)
        self.tray: Tray | None = None
        self.dashboard: Dashboard | None = None
        self.window: QubeWindow | None = None
        if qube is not None:
            self.window = QubeWindow(self.watch, qube)
            self.window.show()
        else:
            self.dashboard = Dashboard(self.watch)
            if QSystemTrayIcon.isSystemTrayAvailable():
                # The icon stays when the window is closed, and shows what is open.
                application.setQuitOnLastWindowClosed(False)
                self.tray = Tray(self.watch, self.dashboard.doing, self.dashboard)
                self.tray.opened.connect(self._raise)
                # Not quit(): a dialog that has to take its forward back would refuse that once.
                self.tray.quit.connect(lambda: application.exit(0))
            if self.tray is None or not hidden:
                self.dashboard.show()
        self.watch.start()

    def _raise(self) -> None:
        if self.dashboard is not None:
            self.dashboard.show()
            self.dashboard.raise_()
            self.dashboard.activateWindow()

    def close(self) -> None:
        """Stop watching dom0, and wait for calls under way."""
        self.watch.close()
        self.tasks.close()


def make_application(argv: Sequence[str]) -> QApplication:
    """Qt with our name and the user's language."""
    application = QApplication(list(argv))
    application.setApplicationName(_NAME)
    application.setApplicationDisplayName("Qubes port forwarding")
    application.setDesktopFileName(_NAME)
    application.setWindowIcon(tray_icon(0, broken=False))
    folders = {"qtbase": QLibraryInfo.path(QLibraryInfo.LibraryPath.TranslationsPath), "portfwd": str(_TRANSLATIONS)}
    for name, folder in folders.items():
        translator = QTranslator(application)
        if translator.load(QLocale(), name, "_", folder):
            application.installTranslator(translator)
    return application


def run(program: str, qube: QubeName | None, *, hidden: bool) -> int:
    """Show the dashboard, or the window of one qube, until the last window is closed; the exit code."""
    application = make_application([program])
    windows = Program(application, connect(), qube, hidden=hidden)
    # Ctrl-C ends the program as a window's close button does.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: application.exit(0))
    breath = QTimer()
    breath.timeout.connect(lambda: None)
    breath.start(_BREATH)
    try:
        return application.exec()
    finally:
        windows.close()
