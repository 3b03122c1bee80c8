# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Every forward of every qube: as a list, as a picture of the network, with who is connected and what happened."""

import time

from PyQt6.QtCore import QSize, Qt, QTimer
from PyQt6.QtGui import QAction, QCloseEvent, QHideEvent, QKeySequence, QShowEvent
from PyQt6.QtWidgets import (
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QListWidget,
    QMainWindow,
    QMenu,
    QPushButton,
    QSplitter,
    QTabWidget,
    QVBoxLayout,
    QWidget,
)

from portfwd.client.network import Qube
from portfwd.client.sentences import local_time
from portfwd.gui.state.history import History
from portfwd.gui.state.overview import Changes, Column, Key, summary
from portfwd.gui.state.picture import lay_out
from portfwd.gui.state.traffic import line
from portfwd.gui.widgets.actions import Actions, resumes
from portfwd.gui.widgets.check_dialog import CheckDialog
from portfwd.gui.widgets.details import Details
from portfwd.gui.widgets.forwards_table import ForwardsTable
from portfwd.gui.widgets.look import label_icon, plain_label
from portfwd.gui.widgets.network_view import NetworkView
from portfwd.gui.widgets.watch import Watch

_TICK = 10_000
"""Milliseconds between two looks at the clock."""
_LOG_MAX = 1000


class Dashboard(QMainWindow):
    """The main window. Closing it keeps the program where a tray icon stands for it."""

    def __init__(self, watch: Watch, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setWindowTitle(self.tr("Port forwarding"))
        self.watch = watch
        self.history = History()
        self.doing = Actions(watch, self)
        self.search = QLineEdit()
        self.search.setPlaceholderText(self.tr("Search: qube, port, state, net qube..."))
        self.search.setAccessibleName(self.tr("Search"))
        self.search.setClearButtonEnabled(True)
        self.table = ForwardsTable(tuple(Column))
        self.network = NetworkView()
        self.details = Details(watch)
        self.log = QListWidget()
        self.log.setAccessibleName(self.tr("Openings and endings"))
        self.log.setWordWrap(True)
        self.message = plain_label()
        self.message.setAccessibleName(self.tr("Message"))
        self.message.hide()
        self.status = QLabel(self.tr("Asking dom0..."))
        self.add = QPushButton(self.tr("&Open a port"))
        self._qubes_menu = QMenu(self)
        self.add.setMenu(self._qubes_menu)
        self.edit = QPushButton(self.tr("C&hange..."))
        self.pause = QPushButton(self.tr("Pa&use"))
        self.remove = QPushButton(self.tr("Re&move"))
        self.undo = QPushButton(self.tr("Un&do removal"))
        self.undo.hide()
        self.tabs = QTabWidget()
        self.tabs.addTab(self.table, self.tr("&List"))
        self.tabs.addTab(self.network, self.tr("&Network"))
        self._tick = QTimer(self)
        self._tick.setInterval(_TICK)
        self._lay_out()
        self._connect()
        self.table.setFocus()
        self._on_chosen()
        if watch.known:
            self._on_network(watch.qubes)
            self._on_changed(Changes(watch.overview.statuses, (), ()))

    def sizeHint(self) -> QSize:
        return QSize(1280, 720)

    def _lay_out(self) -> None:
        top = QHBoxLayout()
        top.addWidget(self.search, 1)
        for button in (self.add, self.edit, self.pause, self.remove, self.undo):
            top.addWidget(button)
        sides = QSplitter(Qt.Orientation.Horizontal)
        sides.addWidget(self.tabs)
        sides.addWidget(self.details)
        sides.setStretchFactor(0, 1)
        sides.setSizes([980, 280])
        halves = QSplitter(Qt.Orientation.Vertical)
        halves.addWidget(sides)
        halves.addWidget(self.log)
        halves.setStretchFactor(0, 1)
        halves.setSizes([560, 120])
        middle = QWidget()
        layout = QVBoxLayout(middle)
        layout.addLayout(top)
        layout.addWidget(halves, 1)
        layout.addWidget(self.message)
        self.setCentralWidget(middle)
        bar = self.statusBar()
        if bar is not None:
            bar.addWidget(self.status, 1)

    def _connect(self) -> None:
        self.search.textChanged.connect(self.table.sorted.search)
        self.table.chosen.connect(self._on_chosen)
        self.table.opened.connect(self._edit)
        self.table.deleted.connect(self._remove)
        self.network.chosen.connect(self.select)
        self.edit.clicked.connect(lambda: self._edit())
        self.pause.clicked.connect(lambda: self._pause())
        self.remove.clicked.connect(lambda: self._remove())
        self.undo.clicked.connect(lambda: self.doing.undo())
        self.doing.undoable.connect(self.undo.setVisible)
        self.doing.said.connect(self._say)
        self.details.killed.connect(self.doing.kill)
        self.details.checked.connect(self._check)
        self.tabs.currentChanged.connect(lambda _: self._show_network())
        self._tick.timeout.connect(self.table.forwards.tick)
        self.watch.changed.connect(self._on_changed)
        self.watch.network_changed.connect(self._on_network)
        self.watch.trouble.connect(self._on_trouble)
        find = QAction(self)
        find.setShortcut(QKeySequence(QKeySequence.StandardKey.Find))
        find.triggered.connect(lambda: self.search.setFocus())
        self.addAction(find)

    def select(self, key: Key) -> None:
        """Choose one forward in every view."""
        self.table.select(key)

    def _edit(self) -> None:
        chosen = self.table.selected()
        if len(chosen) == 1:
            self.doing.open_dialog(chosen[0].qube, chosen[0].rule)

    def _pause(self) -> None:
        chosen = self.table.selected()
        self.doing.pause(chosen, enabled=resumes(chosen))

    def _remove(self) -> None:
        self.doing.remove(self.table.selected())

    def _check(self, key: Key) -> None:
        status = self.watch.overview.get(key)
        if status is not None:
            CheckDialog(self.watch, status, self).open()

    def _on_changed(self, changes: Changes) -> None:
        self.table.forwards.take(changes)
        now = time.time()
        for entry in self.history.note(changes, now):
            self.log.addItem(f"{local_time(entry.moment, now)}  {entry.text}")
        if self.log.count() > _LOG_MAX:
            self.log.takeItem(0)
        if changes.added or changes.removed or changes.changed:
            self.log.scrollToBottom()
        self._on_chosen()
        self._show_network()
        self._show_status("")

    def _on_network(self, qubes: tuple[Qube, ...]) -> None:
        self.table.forwards.show_labels({qube.name: qube.label for qube in qubes})
        self._qubes_menu.clear()
        for qube in qubes:
            if qube.netvm is not None:
                action = self._qubes_menu.addAction(label_icon(qube.label), f"{qube.name}...")
                if action is not None:
                    action.triggered.connect(lambda _, name=qube.name: self.doing.open_dialog(name))
        self._show_network()

    def _on_trouble(self, text: str) -> None:
        self._show_status(text)

    def _on_chosen(self) -> None:
        chosen = self.table.selected()
        self.edit.setEnabled(len(chosen) == 1)
        for button in (self.pause, self.remove):
            button.setEnabled(bool(chosen))
        self.pause.setText(self.tr("Res&ume") if resumes(chosen) else self.tr("Pa&use"))
        self.details.show_forward(chosen[0] if len(chosen) == 1 else None)
        self._show_network()

    def _show_network(self) -> None:
        # Nobody sees it: it is drawn when its tab is opened.
        if self.network.isVisible():
            chosen = self.table.selected()
            key = Key(chosen[0].qube, chosen[0].id) if len(chosen) == 1 else None
            self.network.show_picture(lay_out(self.watch.qubes, self.watch.overview.statuses), key)

    def _show_status(self, trouble: str) -> None:
        statuses = self.watch.overview.statuses
        if trouble:
            self.status.setText(self.tr("This may be out of date. {0}").format(trouble))
        else:
            self.status.setText(f"{summary(statuses)}.  {line(statuses, self.watch.traffic.total())}")

    def _say(self, text: str) -> None:
        self.message.setText(text)
        self.message.setVisible(bool(text))

    def showEvent(self, a0: QShowEvent | None) -> None:
        super().showEvent(a0)
        self.watch.set_shown(self, True)
        self._tick.start()

    def hideEvent(self, a0: QHideEvent | None) -> None:
        super().hideEvent(a0)
        self.watch.set_shown(self, False)
        self._tick.stop()

    def closeEvent(self, a0: QCloseEvent | None) -> None:
        self.watch.set_shown(self, False)
        super().closeEvent(a0)
