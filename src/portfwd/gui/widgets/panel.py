# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The forwards of one qube: the lower half of the Firewall tab, in our own window and in the stock settings."""

from collections.abc import Callable

from PyQt6.QtCore import QTimer
from PyQt6.QtGui import QHideEvent, QShowEvent
from PyQt6.QtWidgets import QHBoxLayout, QPushButton, QVBoxLayout, QWidget

from portfwd.client.sentences import explained
from portfwd.client.status import RuleStatus, State
from portfwd.gui.state import traffic
from portfwd.gui.state.overview import Changes, Column, key_of
from portfwd.gui.widgets.actions import Actions, resumes
from portfwd.gui.widgets.forwards_table import ForwardsTable
from portfwd.gui.widgets.look import plain_label
from portfwd.gui.widgets.watch import Watch
from portfwd.wire.values import QubeName

_COLUMNS = (
    Column.ENTRANCE,
    Column.STATE,
    Column.TARGET,
    Column.PROTOCOL,
    Column.CLIENTS,
    Column.LEFT,
    Column.TRAFFIC,
    Column.CONNECTIONS,
    Column.COMMENT,
)
_TICK = 10_000
"""Milliseconds between two looks at the clock, for what is left of lifetimes."""


class Panel(QWidget):
    """`watch` looks at all qubes, so that a taken port can be named; the panel shows those of `qube`."""

    def __init__(self, watch: Watch, qube: QubeName, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.watch, self._qube = watch, qube
        self.doing = Actions(watch, self)
        heading = plain_label(self.tr("Ports of {0} that others can reach (port forwarding)").format(qube))
        font = heading.font()
        font.setBold(True)
        heading.setFont(font)
        self.table = ForwardsTable(_COLUMNS)
        self.add = self._button(self.tr("&Open a port..."), lambda: self.doing.open_dialog(qube))
        self.edit = self._button(self.tr("C&hange..."), self.edit_selected)
        self.pause = self._button(self.tr("Pa&use"), self._pause)
        self.remove = self._button(self.tr("Re&move"), self._remove)
        self.undo = self._button(self.tr("&Undo removal"), self.doing.undo)
        self.undo.hide()
        self.line = plain_label(self.tr("Asking dom0..."))
        self.line.setAccessibleName(self.tr("Traffic"))
        self.message = plain_label()
        self.message.setAccessibleName(self.tr("Message"))
        self.message.hide()
        buttons = QHBoxLayout()
        for button in (self.add, self.edit, self.pause, self.remove, self.undo):
            buttons.addWidget(button)
        buttons.addStretch(1)
        layout = QVBoxLayout(self)
        layout.addWidget(heading)
        layout.addWidget(self.table, 1)
        layout.addLayout(buttons)
        layout.addWidget(self.line)
        layout.addWidget(self.message)
        self.table.opened.connect(self.edit_selected)
        self.table.deleted.connect(self._remove)
        self.table.chosen.connect(self._on_chosen)
        self._tick = QTimer(self)
        self._tick.setInterval(_TICK)
        self._tick.timeout.connect(self.table.forwards.tick)
        self.doing.said.connect(self._say)
        self.doing.undoable.connect(self.undo.setVisible)
        watch.changed.connect(self._on_changed)
        watch.trouble.connect(self._on_trouble)
        self._on_chosen()
        if watch.known:
            self._on_changed(Changes(watch.overview.statuses, (), ()))

    def edit_selected(self) -> None:
        """Change the forward that is selected."""
        chosen = self.table.selected()
        if len(chosen) == 1:
            self.doing.open_dialog(self._qube, chosen[0].rule)

    def _pause(self) -> None:
        chosen = self.table.selected()
        self.doing.pause(chosen, enabled=resumes(chosen))

    def _remove(self) -> None:
        self.doing.remove(self.table.selected())

    def _button(self, text: str, slot: Callable[[], None]) -> QPushButton:
        button = QPushButton(text)
        button.setAutoDefault(False)
        button.clicked.connect(lambda: slot())
        return button

    def _say(self, text: str) -> None:
        self.message.setText(text)
        self.message.setVisible(bool(text))

    def _mine(self, statuses: tuple[RuleStatus, ...]) -> tuple[RuleStatus, ...]:
        return tuple(status for status in statuses if status.qube == self._qube)

    def _on_changed(self, changes: Changes) -> None:
        mine = Changes(
            self._mine(changes.added),
            tuple(pair for pair in changes.changed if pair[1].qube == self._qube),
            self._mine(changes.removed),
        )
        self.table.forwards.take(mine)
        self._on_chosen()

    def _on_trouble(self, text: str) -> None:
        if text:
            self.line.setText(self.tr("This may be out of date. {0}").format(text))
        else:
            self._show_line()

    def _on_chosen(self) -> None:
        chosen = self.table.selected()
        self.edit.setEnabled(len(chosen) == 1)
        for button in (self.remove, self.pause):
            button.setEnabled(bool(chosen))
        self.pause.setText(self.tr("Res&ume") if resumes(chosen) else self.tr("Pa&use"))
        if self.watch.known:
            self._show_line()

    def _show_line(self) -> None:
        """What the selected forward lacks; else the traffic of all."""
        mine = self._mine(self.watch.overview.statuses)
        chosen = self.table.selected()
        if not mine:
            self.line.setText(self.tr("Nobody can reach {0} from outside.").format(self._qube))
        elif len(chosen) == 1 and chosen[0].fault is not None and chosen[0].state is not State.PAUSED:
            what, advice = explained(chosen[0], chosen[0].fault)
            self.line.setText(f"{what}; {advice}" if advice else what)
        else:
            rates = [self.watch.traffic.rates(key_of(status)) for status in mine]
            lately = sum(rate[-1] for rate in rates if rate)
            self.line.setText(traffic.line(mine, (lately,) if any(rates) else ()))

    def showEvent(self, a0: QShowEvent | None) -> None:
        super().showEvent(a0)
        self.watch.set_shown(self, True)
        self._tick.start()

    def hideEvent(self, a0: QHideEvent | None) -> None:
        super().hideEvent(a0)
        self.watch.set_shown(self, False)
        self._tick.stop()
