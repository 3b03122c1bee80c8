# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The forwards of one qube: the lower half of the Firewall tab, in our own window and in the stock settings."""

import time
from collections.abc import Sequence

from PyQt6.QtWidgets import QHBoxLayout, QVBoxLayout, QWidget

from portfwd.client.forward_state import RuleStatus, State
from portfwd.client.text.sentences import explained, notes, told
from portfwd.gui.forward.actions import Actions
from portfwd.gui.forward.forwards_table import ForwardsTable
from portfwd.gui.shared.appearance import plain_label
from portfwd.gui.shared.fields import button, heading
from portfwd.gui.shared.watch import Watch
from portfwd.gui.state import traffic
from portfwd.gui.state.overview import Changes, Column, key_of
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


class Panel(QWidget):
    """`watch` covers all qubes, so that the owner of a taken port can be named; the panel shows those of `qube`."""

    def __init__(self, watch: Watch, qube: QubeName, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.watch, self._qube = watch, qube
        self.table = ForwardsTable(_COLUMNS)
        # Made before the buttons, which ask it for the selection.
        watch.changed.connect(self._on_changed)
        self.doing = Actions(watch, self.table, self)
        self.add = button(self.tr("&Open a port..."), lambda: self.doing.open_dialog(qube))
        self.edit, self.pause, self.remove, self.undo = self.doing.buttons
        self.message = self.doing.message
        self.line = plain_label(self.tr("Asking dom0..."))
        self.line.setAccessibleName(self.tr("Traffic"))
        buttons = QHBoxLayout()
        for each in (self.add, *self.doing.buttons):
            buttons.addWidget(each)
        buttons.addStretch(1)
        layout = QVBoxLayout(self)
        layout.addWidget(heading(self.tr("Ports of {0} that others can reach (port forwarding)").format(qube)))
        layout.addWidget(self.table, 1)
        layout.addLayout(buttons)
        layout.addWidget(self.line)
        layout.addWidget(self.message)
        self.table.chosen.connect(self._show_line)
        watch.trouble.connect(self._show_line)
        if watch.known:
            self._on_changed(Changes(watch.overview.statuses, (), ()))

    def _mine(self, statuses: tuple[RuleStatus, ...]) -> tuple[RuleStatus, ...]:
        return tuple(status for status in statuses if status.qube == self._qube)

    def _on_changed(self, changes: Changes) -> None:
        mine = Changes(
            self._mine(changes.added),
            tuple(pair for pair in changes.changed if pair[1].qube == self._qube),
            self._mine(changes.removed),
            self._mine(changes.untold),
        )
        self.table.forwards.take(mine)
        self._show_line()

    def _show_line(self) -> None:
        """Show why the table may be out of date, else a forward's problem or the traffic, and the notes."""
        mine = self._mine(self.watch.overview.statuses)
        chosen = self.table.selected()
        if self.watch.problem:
            self.line.setText(self.tr("This may be out of date. {0}").format(self.watch.problem))
        elif not self.watch.known:
            return
        elif self._qube in self.watch.untold:
            self.line.setText(self.tr("Not told: {0}").format(self.watch.untold[self._qube]))
        elif not mine:
            self.line.setText(self.tr("Nobody can reach {0} from outside.").format(self._qube))
        else:
            shown = chosen if len(chosen) == 1 else mine
            self.line.setText("\n".join([self._fares(mine, chosen), *notes(shown)]))

    def _fares(self, mine: Sequence[RuleStatus], chosen: Sequence[RuleStatus]) -> str:
        if len(chosen) == 1 and chosen[0].in_doubt:
            return told(chosen[0], time.time())
        if len(chosen) == 1 and chosen[0].fault is not None and chosen[0].state is not State.PAUSED:
            what, advice = explained(chosen[0], chosen[0].fault)
            return f"{what}; {advice}" if advice else what
        rates = [self.watch.traffic.rates(key_of(status)) for status in mine]
        lately = sum(rate[-1] for rate in rates if rate)
        return traffic.line(mine, (lately,) if any(rates) else ())
