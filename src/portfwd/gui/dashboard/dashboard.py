# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Every forward of every qube: as a list, as a picture of the network, with who is connected and what happened."""

import time

from PyQt6.QtCore import QSize, Qt
from PyQt6.QtGui import QAction, QKeySequence
from PyQt6.QtWidgets import (
    QHBoxLayout,
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

from portfwd.client.network import NetworkQube
from portfwd.client.text.sentences import local_time
from portfwd.gui.dashboard.details import Details
from portfwd.gui.dashboard.network_view import NetworkView
from portfwd.gui.forward.actions import Actions
from portfwd.gui.forward.check_dialog import CheckDialog
from portfwd.gui.forward.forwards_table import ForwardsTable
from portfwd.gui.shared.appearance import label_icon, plain_label
from portfwd.gui.shared.watch import Watch
from portfwd.gui.state.history import History
from portfwd.gui.state.overview import Changes, Column, Key, key_of, summary, untold_text
from portfwd.gui.state.picture import lay_out
from portfwd.gui.state.traffic import line


class Dashboard(QMainWindow):
    """The main window. Closing it keeps the program where a tray icon stands for it."""

    def __init__(self, watch: Watch, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setWindowTitle(self.tr("Port forwarding"))
        self.watch = watch
        self.history = History()
        self.search = QLineEdit()
        self.search.setPlaceholderText(self.tr("Search: qube, port, state, net qube..."))
        self.search.setAccessibleName(self.tr("Search"))
        self.search.setClearButtonEnabled(True)
        self.table = ForwardsTable(tuple(Column))
        # Made before the buttons, which ask it for the selection.
        watch.changed.connect(self._on_changed)
        self.doing = Actions(watch, self.table, self)
        self.network = NetworkView()
        self.details = Details(watch)
        self.log = QListWidget()
        self.log.setAccessibleName(self.tr("Openings and endings"))
        self.log.setWordWrap(True)
        self.status = plain_label(self.tr("Asking dom0..."))
        self.add = QPushButton(self.tr("&Open a port"))
        self._qubes_menu = QMenu(self)
        self.add.setMenu(self._qubes_menu)
        self.tabs = QTabWidget()
        self.tabs.addTab(self.table, self.tr("&List"))
        self.tabs.addTab(self.network, self.tr("&Network"))
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
        for button in (self.add, *self.doing.buttons):
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
        layout.addWidget(self.doing.message)
        self.setCentralWidget(middle)
        bar = self.statusBar()
        if bar is not None:
            bar.addWidget(self.status, 1)

    def _connect(self) -> None:
        self.search.textChanged.connect(self.table.sorted.search)
        self.table.chosen.connect(self._on_chosen)
        self.network.chosen.connect(self.select)
        self.details.killed.connect(self.doing.kill)
        self.details.checked.connect(self._check)
        self.tabs.currentChanged.connect(lambda _: self._show_network())
        self.watch.network_changed.connect(self._on_network)
        self.watch.trouble.connect(self._show_status)
        find = QAction(self)
        find.setShortcut(QKeySequence(QKeySequence.StandardKey.Find))
        find.triggered.connect(lambda: self.search.setFocus())
        self.addAction(find)

    def select(self, key: Key) -> None:
        """Choose one forward in every view."""
        self.table.select(key)

    def _check(self, key: Key) -> None:
        status = self.watch.overview.get(key)
        if status is not None:
            CheckDialog(self.watch, status, self).open()

    def _on_changed(self, changes: Changes) -> None:
        self.table.forwards.take(changes)
        now = time.time()
        new = self.history.note(changes, now)
        self.log.addItems(f"{local_time(entry.moment, now)}  {entry.text}" for entry in new)
        while self.log.count() > len(self.history.lines):
            self.log.takeItem(0)
        if new:
            self.log.scrollToBottom()
        self._on_chosen()
        self._show_status()

    def _on_network(self, qubes: tuple[NetworkQube, ...]) -> None:
        self.table.forwards.show_labels({qube.name: qube.label for qube in qubes})
        self._qubes_menu.clear()
        for qube in qubes:
            if qube.netvm is not None:
                action = self._qubes_menu.addAction(label_icon(qube.label), f"{qube.name}...")
                if action is not None:
                    action.triggered.connect(lambda _, name=qube.name: self.doing.open_dialog(name))
        self._show_network()

    def _on_chosen(self) -> None:
        chosen = self.table.selected()
        self.details.show_forward(chosen[0] if len(chosen) == 1 else None)
        self._show_network()

    def _show_network(self) -> None:
        # Hidden: it is drawn when its tab is opened.
        if self.network.isVisible():
            chosen = self.table.selected()
            key = key_of(chosen[0]) if len(chosen) == 1 else None
            self.network.show_picture(lay_out(self.watch.qubes, self.watch.overview.statuses), key)

    def _show_status(self) -> None:
        statuses, untold = self.watch.overview.statuses, self.watch.untold
        if self.watch.problem:
            self.status.setText(self.tr("This may be out of date. {0}").format(self.watch.problem))
        elif self.watch.known:
            said = (f"{summary(statuses, untold)}.", line(statuses, self.watch.traffic.total()), untold_text(untold))
            self.status.setText("  ".join(words for words in said if words))
