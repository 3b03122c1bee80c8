# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""One forward in detail: what it does, what is in the way, its traffic, and who is connected."""

import time

from PyQt6.QtCore import Qt, pyqtSignal
from PyQt6.QtWidgets import QListWidget, QListWidgetItem, QPushButton, QVBoxLayout, QWidget

from portfwd.api.connections import Clients
from portfwd.client.forward_state import RuleStatus
from portfwd.gui.dashboard.sparkline import Sparkline
from portfwd.gui.shared.appearance import plain_label
from portfwd.gui.shared.tasks import Failure
from portfwd.gui.shared.watch import Watch
from portfwd.gui.state.overview import Key, closely, key_of
from portfwd.wire.values import QubeName

_CONNECTION = Qt.ItemDataRole.UserRole


class Details(QWidget):
    """The panel of details. `killed`: a qube and the connection to end; `checked`: a check of the forward is wanted."""

    killed = pyqtSignal(str, object)
    checked = pyqtSignal(object)

    def __init__(self, watch: Watch, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._watch = watch
        self._key: Key | None = None
        self._asked = False
        self.sentence = plain_label()
        self.sentence.setAccessibleName(self.tr("The forward"))
        self.sparkline = Sparkline()
        self.clients = QListWidget()
        self.clients.setAccessibleName(self.tr("Open connections"))
        self._clients_title = plain_label(self.tr("&Connections:"))
        self._clients_title.setBuddy(self.clients)
        self.kill = QPushButton(self.tr("&End the connection"))
        self.kill.clicked.connect(self._kill)
        self.kill.setEnabled(False)
        self.check = QPushButton(self.tr("Chec&k the way in..."))
        self.check.clicked.connect(lambda: self.checked.emit(self._key))
        self.clients.currentItemChanged.connect(lambda item, _: self.kill.setEnabled(item is not None))
        layout = QVBoxLayout(self)
        for widget in (self.sentence, self.sparkline, self._clients_title, self.clients, self.kill, self.check):
            layout.addWidget(widget)
        self.show_forward(None)

    def show_forward(self, status: RuleStatus | None) -> None:
        """Show this one, or that none is selected."""
        before, self._key = self._key, None if status is None else key_of(status)
        if self._key != before:
            self.clients.clear()
        self.check.setEnabled(status is not None)
        if status is None:
            self.sentence.setText(self.tr("Select a forward to see who is connected."))
            self.sparkline.show_rates(self._watch.traffic.total())
            return
        self.sentence.setText(closely(status, time.time()))
        self.sparkline.show_rates(self._watch.traffic.rates(key_of(status)))
        # A closed panel asks no qube for anything.
        if self.isVisible() and not self._asked:
            self._ask(status)

    def _ask(self, status: RuleStatus) -> None:
        self._asked = True
        client, qube, key = self._watch.client, status.qube, key_of(status)

        def done(found: Clients) -> None:
            self._asked = False
            if key == self._key:
                self._show_clients(key, found)

        def failed(error: Failure) -> None:
            self._asked = False
            self._clients_title.setText(self.tr("Connections are not known: {0}").format(error))

        self._watch.tasks.run(self, lambda _: client.connections(qube), done, failed)

    def _show_clients(self, key: Key, found: Clients) -> None:
        mine = [client for client in found.told if client.rule == key.rule]
        # dom0 does not tell to which forwards the connections belong that it leaves out.
        title = self.tr("&Connections: {0} or more") if found.more else self.tr("&Connections: {0}")
        self._clients_title.setText(title.format(len(mine)))
        form = self.tr("{0} ({1}, port {2})")
        lines = {form.format(c.peer, c.connection.proto, c.connection.to): c.connection for c in mine}
        if list(lines) == [item.text() for item in self._items()]:
            return
        chosen = self.clients.currentItem()
        kept = chosen.text() if chosen is not None else ""
        self.clients.clear()
        for text, connection in lines.items():
            item = QListWidgetItem(text)
            item.setData(_CONNECTION, connection)
            self.clients.addItem(item)
            if text == kept:
                self.clients.setCurrentItem(item)

    def _items(self) -> list[QListWidgetItem]:
        found = (self.clients.item(row) for row in range(self.clients.count()))
        return [item for item in found if item is not None]

    def _kill(self) -> None:
        item = self.clients.currentItem()
        if item is not None and self._key is not None:
            self.killed.emit(QubeName(self._key.qube), item.data(_CONNECTION))
