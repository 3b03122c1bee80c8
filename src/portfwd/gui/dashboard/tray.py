# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The icon in the tray: how many ports are open, to whom, and a way to shut them all."""

from PyQt6.QtCore import QObject, pyqtSignal
from PyQt6.QtWidgets import QMenu, QMessageBox, QSystemTrayIcon, QWidget

from portfwd.client.forward_state import RuleStatus
from portfwd.gui.forward.actions import Actions
from portfwd.gui.shared.appearance import tray_icon
from portfwd.gui.shared.watch import Watch
from portfwd.gui.state.overview import summary


class Tray(QObject):
    """The tray icon. `opened`: the dashboard is wanted. The icon is redrawn only when its content changes."""

    opened = pyqtSignal()
    quit = pyqtSignal()

    def __init__(self, watch: Watch, doing: Actions, window: QWidget) -> None:
        super().__init__(window)
        self._watch, self._doing, self._window = watch, doing, window
        self.menu = QMenu()
        self._title = self.menu.addAction(self.tr("Asking dom0..."))
        self.menu.addSeparator()
        show = self.menu.addAction(self.tr("&Show all forwards"))
        self.close_all = self.menu.addAction(self.tr("&Close all ports..."))
        leave = self.menu.addAction(self.tr("&Quit"))
        assert self._title and show and self.close_all and leave  # noqa: S101 - Qt gives what is added
        self._title.setEnabled(False)
        show.triggered.connect(lambda _: self.opened.emit())
        self.close_all.triggered.connect(lambda _: self.ask_to_close_all())
        leave.triggered.connect(lambda _: self.quit.emit())
        self.icon = QSystemTrayIcon(self)
        self.icon.setContextMenu(self.menu)
        self.icon.activated.connect(self._on_activated)
        watch.changed.connect(self._refresh)
        watch.trouble.connect(self._refresh)
        self._refresh()
        self.icon.show()

    def open_now(self) -> list[RuleStatus]:
        """The forwards that are not paused."""
        return [status for status in self._watch.overview.statuses if status.rule.enabled]

    def ask_to_close_all(self) -> QMessageBox:
        """Ask, then pause every forward, which ends all connections."""
        number = len(self.open_now())
        text = self.tr("Shut the ports of all {0} forwards now, and end their connections?").format(number)
        box = QMessageBox(QMessageBox.Icon.Question, self.tr("Close all ports"), text, parent=self._window)
        box.setInformativeText(self.tr("The forwards are paused, not removed: you can resume each of them."))
        box.setStandardButtons(QMessageBox.StandardButton.Yes | QMessageBox.StandardButton.Cancel)
        box.accepted.connect(lambda: self._doing.set_enabled(self.open_now(), enabled=False))
        box.open()
        return box

    def _on_activated(self, reason: QSystemTrayIcon.ActivationReason) -> None:
        if reason == QSystemTrayIcon.ActivationReason.Trigger:
            self.opened.emit()

    def _refresh(self) -> None:
        if self.close_all is not None:
            self.close_all.setEnabled(bool(self.open_now()))
        said, problem = summary(self._watch.overview.statuses, self._watch.untold), self._watch.problem
        words = str(said) if self._watch.known else self.tr("Asking dom0...")
        if problem:
            words = self.tr("{0} (may be out of date)").format(words)
        if words == self.icon.toolTip():
            return
        self.icon.setIcon(tray_icon(said.passing, bool(said.broken or problem)))
        self.icon.setToolTip(words)
        if self._title is not None:
            self._title.setText(words)
