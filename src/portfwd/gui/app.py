# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""qubes-port-forwarding: the dashboard, or with a qube's name the window of its firewall."""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from PyQt6.QtCore import QLibraryInfo, QLocale, QTimer, QTranslator
from PyQt6.QtWidgets import QApplication, QSystemTrayIcon

from portfwd.client.adminapi import AdminClient, connect
from portfwd.client.arguments import parse_qube
from portfwd.client.edits import UsageError
from portfwd.client.events import EventTransport
from portfwd.gui.widgets.dashboard import Dashboard
from portfwd.gui.widgets.look import tray_icon
from portfwd.gui.widgets.tasks import Tasks
from portfwd.gui.widgets.tray import Tray
from portfwd.gui.widgets.watch import Watch
from portfwd.gui.widgets.window import QubeWindow
from portfwd.wire.values import QubeName

_NAME = "qubes-port-forwarding"
_TRANSLATIONS = Path(__file__).parent / "i18n"
_BREATH = 200
"""Milliseconds after which Python looks whether a signal has come."""


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
                # The icon stays when the window is closed, and says what is open.
                application.setQuitOnLastWindowClosed(False)
                self.tray = Tray(self.watch, self.dashboard.doing, self.dashboard)
                self.tray.opened.connect(self._raise)
                self.tray.quit.connect(application.quit)
            if self.tray is None or not hidden:
                self.dashboard.show()
        self.watch.start()

    def _raise(self) -> None:
        if self.dashboard is not None:
            self.dashboard.show()
            self.dashboard.raise_()
            self.dashboard.activateWindow()

    def close(self) -> None:
        """Let go of dom0, and wait for what is under way there."""
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


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog=_NAME, description="Which ports of which qubes can be reached, from where; open and close them."
    )
    parser.add_argument(
        "qube", metavar="QUBE", nargs="?", help="show the firewall of this qube, not the dashboard of all"
    )
    parser.add_argument("--hidden", action="store_true", help="start as an icon in the tray")
    return parser


def parse_arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Ends the program with 2 for a wrong command line."""
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        args.qube = None if args.qube is None else parse_qube(args.qube)
    except UsageError as error:
        parser.error(str(error))
    return args


def main() -> int:
    """Run until the last window is closed."""
    args = parse_arguments(sys.argv[1:])
    application = make_application(sys.argv[:1])
    program = Program(application, connect(), args.qube, hidden=args.hidden)
    # Ctrl-C ends the program as a window's close button does.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: application.quit())
    breath = QTimer()
    breath.timeout.connect(lambda: None)
    breath.start(_BREATH)
    try:
        return application.exec()
    finally:
        program.close()


if __name__ == "__main__":
    sys.exit(main())
