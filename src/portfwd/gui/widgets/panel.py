# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The forwards of one qube: the lower half of the Firewall tab, in our own window and in the stock settings."""

from collections.abc import Callable

from PyQt6.QtCore import QTimer
from PyQt6.QtGui import QHideEvent, QShowEvent
from PyQt6.QtWidgets import QHBoxLayout, QPushButton, QVBoxLayout, QWidget

from portfwd.client.adminapi import AdminClient
from portfwd.client.sentences import explained, target
from portfwd.client.status import RuleStatus, State
from portfwd.gui.state import saving, traffic
from portfwd.gui.state.overview import Changes, Column, key_of
from portfwd.gui.state.places import place_of
from portfwd.gui.widgets.forwards_table import ForwardsTable
from portfwd.gui.widgets.look import plain_label
from portfwd.gui.widgets.rule_dialog import RuleDialog
from portfwd.gui.widgets.watch import Watch
from portfwd.model.forward import ForwardRule
from portfwd.wire.errors import RefusedError
from portfwd.wire.values import QubeName

_COLUMNS = (
    Column.ENTRANCE,
    Column.TARGET,
    Column.PROTOCOL,
    Column.CLIENTS,
    Column.LEFT,
    Column.STATE,
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
        self._dialog: RuleDialog | None = None
        self._removed: tuple[ForwardRule, ...] = ()
        heading = plain_label(self.tr("Ports of {0} that others can reach (port forwarding)").format(qube))
        font = heading.font()
        font.setBold(True)
        heading.setFont(font)
        self.table = ForwardsTable(_COLUMNS)
        self.add = self._button(self.tr("&Open a port..."), self.open_dialog)
        self.edit = self._button(self.tr("C&hange..."), self.edit_selected)
        self.pause = self._button(self.tr("Pa&use"), self.pause_selected)
        self.remove = self._button(self.tr("Re&move"), self.remove_selected)
        self.undo = self._button(self.tr("&Undo removal"), self.undo_removal)
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
        self.table.deleted.connect(self.remove_selected)
        self.table.chosen.connect(self._on_chosen)
        self._tick = QTimer(self)
        self._tick.setInterval(_TICK)
        self._tick.timeout.connect(self.table.forwards.tick)
        watch.changed.connect(self._on_changed)
        watch.trouble.connect(self._on_trouble)
        self._on_chosen()
        if watch.known:
            self._on_changed(Changes(watch.overview.statuses, (), ()))

    def open_dialog(self) -> None:
        """Ask what port to open."""
        self._show_dialog(None)

    def edit_selected(self) -> None:
        """Change the forward that is selected."""
        chosen = self.table.selected()
        if len(chosen) == 1:
            self._show_dialog(chosen[0].rule)

    def remove_selected(self) -> None:
        """Shut the ports at once; an undo is offered."""
        chosen = self.table.selected()
        if not chosen:
            return
        qube, ids = self._qube, {status.id for status in chosen}
        rules = tuple(status.rule for status in chosen)

        def done(_: object) -> None:
            self._removed = rules
            self.undo.show()
            gone = ", ".join(target(qube, rule) for rule in rules)
            self._say(self.tr("{0}: no longer reachable; the connections were ended.").format(gone))

        self._do(lambda client: saving.remove(client, qube, ids), done)

    def undo_removal(self) -> None:
        """Store what was removed last once more."""
        qube, rules, self._removed = self._qube, self._removed, ()
        self.undo.hide()

        def again(client: AdminClient) -> None:
            for rule in rules:
                saving.add(client, qube, rule)

        self._do(again, lambda _: self._say(self.tr("The forward is back.")))

    def pause_selected(self) -> None:
        """Shut the ports and keep the forwards; or, when all that are selected are paused, open them again."""
        chosen = self.table.selected()
        if chosen:
            enabled = all(not status.rule.enabled for status in chosen)
            qube, ids = self._qube, {status.id for status in chosen}
            self._do(lambda client: saving.pause(client, qube, ids, enabled=enabled), lambda _: self._say(""))

    def _button(self, text: str, slot: Callable[[], None]) -> QPushButton:
        button = QPushButton(text)
        button.setAutoDefault(False)
        button.clicked.connect(lambda: slot())
        return button

    def _show_dialog(self, rule: ForwardRule | None) -> None:
        watch = self.watch
        place = place_of(self._qube, watch.qubes, watch.overview.statuses)
        dialog = RuleDialog(watch.client, watch.tasks, place, rule, self)
        dialog.stored.connect(lambda: watch.look(None if watch.qube is None else self._qube))
        dialog.destroyed.connect(self._forget_dialog)
        self._dialog = dialog
        dialog.open()

    def _forget_dialog(self) -> None:
        self._dialog = None

    def _do(self, work: Callable[[AdminClient], None], done: Callable[[object], None]) -> None:
        def failed(error: RefusedError) -> None:
            self._say(str(error))

        client = self.watch.client
        self.watch.tasks.run(self, lambda _: work(client), done, failed)

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
        if self._dialog is not None:
            place = place_of(self._qube, self.watch.qubes, self.watch.overview.statuses)
            self._dialog.form.show_place(place)

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
        resumes = bool(chosen) and all(not status.rule.enabled for status in chosen)
        self.pause.setText(self.tr("Res&ume") if resumes else self.tr("Pa&use"))
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
