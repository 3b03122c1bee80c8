# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Actions on the selected forwards: change, pause, remove, undo. For the panel and the dashboard."""

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from PyQt6 import sip
from PyQt6.QtCore import QEvent, QObject, QTimer
from PyQt6.QtWidgets import QPushButton, QWidget

from portfwd.client.adminapi import AdminClient
from portfwd.client.following import shut
from portfwd.client.forward_state import RuleStatus
from portfwd.client.text.sentences import target
from portfwd.gui.forward.forwards_table import ForwardsTable
from portfwd.gui.forward.rule_dialog import RuleDialog
from portfwd.gui.shared.appearance import plain_label
from portfwd.gui.shared.fields import button
from portfwd.gui.shared.tasks import Failure
from portfwd.gui.shared.watch import Watch
from portfwd.gui.state import saving
from portfwd.gui.state.draft import Place
from portfwd.gui.state.overview import by_qube
from portfwd.gui.state.places import place_of
from portfwd.model.forward import ForwardRule
from portfwd.wire.answers.connections import Connection
from portfwd.wire.values import QubeName

_TICK = 10_000
"""Milliseconds between two looks at the clock, for what is left of lifetimes."""
_SHUT_SECONDS = 5.0
"""Seconds that the hops have to confirm that ports are shut before the user learns that they have not."""
T = TypeVar("T")
Saved = tuple[tuple[QubeName, ForwardRule], ...]


class Actions(QObject):
    """The buttons for a table of forwards, placed by its window, and a label for their results.

    They keep the table fresh as long as the window is shown.
    """

    def __init__(self, watch: Watch, table: ForwardsTable, window: QWidget) -> None:
        super().__init__(window)
        self.watch, self._table, self._window = watch, table, window
        self._removed: Saved = ()
        self._dialog: RuleDialog | None = None
        self.edit = button(self.tr("C&hange..."), self._edit)
        self.pause = button(self.tr("Pa&use"), self._pause)
        self.remove = button(self.tr("Re&move"), self._remove)
        self.undo = button(self.tr("Undo remo&val"), self._undo)
        self.undo.hide()
        self.message = plain_label()
        self.message.setAccessibleName(self.tr("Message"))
        self.message.hide()
        self._tick = QTimer(self)
        self._tick.setInterval(_TICK)
        self._tick.timeout.connect(table.forwards.tick)
        table.opened.connect(self._edit)
        table.deleted.connect(self._remove)
        table.chosen.connect(self._enable)
        watch.changed.connect(self._on_changed)
        window.installEventFilter(self)
        self._enable()

    @property
    def buttons(self) -> tuple[QPushButton, ...]:
        """The buttons, from left to right."""
        return (self.edit, self.pause, self.remove, self.undo)

    def eventFilter(self, a0: QObject | None, a1: QEvent | None) -> bool:
        # Python may have collected a window's objects, in any order, before Qt sends the window's last events.
        watch: Watch | None = getattr(self, "watch", None)
        if watch is None or sip.isdeleted(watch) or a0 is not self._window or a1 is None:
            return False
        if a1.type() in (QEvent.Type.Show, QEvent.Type.Hide):
            shown = a1.type() == QEvent.Type.Show
            watch.set_shown(self._window, shown)
            (self._tick.start if shown else self._tick.stop)()
        return False

    def open_dialog(self, qube: QubeName, rule: ForwardRule | None = None) -> None:
        """Show the dialog for a new forward, or for the change of one."""
        dialog = RuleDialog(self.watch.client, self.watch.tasks, self._place(qube), rule, self._window)
        dialog.stored.connect(lambda: self.watch.look())
        dialog.destroyed.connect(self._forget_dialog)
        self._dialog = dialog
        dialog.open()

    def _edit(self) -> None:
        chosen = self._table.selected()
        if len(chosen) == 1:
            self.open_dialog(chosen[0].qube, chosen[0].rule)

    def _remove(self) -> None:
        """Remove the selected forwards, which ends their connections; an undo is offered."""
        chosen = self._table.selected()
        if not chosen:
            return
        saved: Saved = tuple((status.qube, status.rule) for status in chosen)

        def work(client: AdminClient) -> str:
            for qube, statuses in by_qube(chosen).items():
                saving.remove(client, qube, {status.id for status in statuses})
            return _doubt(client, chosen)

        def done(doubt: str) -> None:
            self._removed = saved
            self.undo.show()
            gone = ", ".join(target(qube, rule) for qube, rule in saved)
            if doubt:
                self._say(self.tr("{0}: removed, but {1}.").format(gone, doubt))
            else:
                self._say(self.tr("{0}: no longer reachable; the connections were ended.").format(gone))

        self._do(work, done)

    def _undo(self) -> None:
        """Store the forwards that were removed last again."""
        saved, self._removed = self._removed, ()
        self.undo.hide()

        def work(client: AdminClient) -> None:
            for qube, rule in saved:
                saving.add(client, qube, rule)

        self._do(work, lambda _: self._say(self.tr("The forward is back.")))

    def _pause(self) -> None:
        chosen = self._table.selected()
        self.set_enabled(chosen, enabled=_all_paused(chosen))

    def set_enabled(self, chosen: Sequence[RuleStatus], *, enabled: bool) -> None:
        """Shut the ports and keep the forwards, or open them again."""

        def work(client: AdminClient) -> str:
            for qube, statuses in by_qube(chosen).items():
                saving.pause(client, qube, {status.id for status in statuses}, enabled=enabled)
            return "" if enabled else _doubt(client, chosen)

        def done(doubt: str) -> None:
            self._say(self.tr("Paused, but {0}.").format(doubt) if doubt else "")

        self._do(work, done)

    def kill(self, qube: QubeName, connection: Connection) -> None:
        """End one connection; the port stays open."""
        ended = self.tr("The connection was ended.")
        self._do(lambda client: client.kill(qube, connection), lambda _: self._say(ended))

    def _do(self, work: Callable[[AdminClient], T], done: Callable[[T], None]) -> None:
        client = self.watch.client

        def finish(result: T) -> None:
            self.watch.look()
            done(result)

        def failed(error: Failure) -> None:
            self.watch.look()
            self._say(str(error))

        self.watch.tasks.run(self, lambda _: work(client), finish, failed)

    def _place(self, qube: QubeName) -> Place:
        return place_of(qube, self.watch.qubes, self.watch.overview.statuses)

    def _forget_dialog(self) -> None:
        self._dialog = None

    def _on_changed(self) -> None:
        self._enable()
        if self._dialog is not None:
            self._dialog.form.show_place(self._place(self._dialog.qube))

    def _enable(self) -> None:
        chosen = self._table.selected()
        self.edit.setEnabled(len(chosen) == 1)
        for each in (self.pause, self.remove):
            each.setEnabled(bool(chosen))
        self.pause.setText(self.tr("Res&ume") if _all_paused(chosen) else self.tr("Pa&use"))

    def _say(self, text: str) -> None:
        self.message.setText(text)
        self.message.setVisible(bool(text))


def _doubt(client: AdminClient, chosen: Sequence[RuleStatus]) -> str:
    """Why it is not certain that these forwards are shut now, in words; '' when it is. Waits for hops."""
    deadline = time.monotonic() + _SHUT_SECONDS
    found = (
        shut(client, qube, [status.rule for status in statuses], max(0.0, deadline - time.monotonic()))
        for qube, statuses in by_qube(chosen).items()
    )
    return "; ".join(one.doubt for one in found if one.doubt)


def _all_paused(chosen: Sequence[RuleStatus]) -> bool:
    return bool(chosen) and all(not status.rule.enabled for status in chosen)
