# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""What a user does to the forwards that are selected: change, pause, remove, undo. For the panel and the dashboard."""

from collections.abc import Callable, Sequence

from PyQt6.QtCore import QObject, pyqtSignal
from PyQt6.QtWidgets import QWidget

from portfwd.client.adminapi import AdminClient
from portfwd.client.sentences import target
from portfwd.client.status import RuleStatus
from portfwd.gui.state import saving
from portfwd.gui.state.draft import Place
from portfwd.gui.state.overview import by_qube
from portfwd.gui.state.places import place_of
from portfwd.gui.widgets.rule_dialog import RuleDialog
from portfwd.gui.widgets.watch import Watch
from portfwd.model.forward import ForwardRule
from portfwd.wire.errors import RefusedError
from portfwd.wire.values import QubeName

Saved = tuple[tuple[QubeName, ForwardRule], ...]


class Actions(QObject):
    """`said` is a sentence for the user; `undoable` tells whether a removal can be undone."""

    said = pyqtSignal(str)
    undoable = pyqtSignal(bool)

    def __init__(self, watch: Watch, window: QWidget) -> None:
        super().__init__(window)
        self.watch, self._window = watch, window
        self._removed: Saved = ()
        self._dialog: RuleDialog | None = None
        watch.changed.connect(self._refresh_dialog)

    def open_dialog(self, qube: QubeName, rule: ForwardRule | None = None) -> None:
        """Ask what port to open, or what to change of a forward."""
        dialog = RuleDialog(self.watch.client, self.watch.tasks, self._place(qube), rule, self._window)
        dialog.stored.connect(lambda: self.watch.look(self.watch.qube))
        dialog.destroyed.connect(self._forget_dialog)
        self._dialog = dialog
        dialog.open()

    def remove(self, chosen: Sequence[RuleStatus]) -> None:
        """Shut the ports at once, and cut what came through them; an undo is offered."""
        if not chosen:
            return
        saved: Saved = tuple((status.qube, status.rule) for status in chosen)

        def work(client: AdminClient) -> None:
            for qube, statuses in by_qube(chosen).items():
                saving.remove(client, qube, {status.id for status in statuses})

        def done() -> None:
            self._removed = saved
            self.undoable.emit(True)
            gone = ", ".join(target(qube, rule) for qube, rule in saved)
            self.said.emit(self.tr("{0}: no longer reachable; the connections were ended.").format(gone))

        self._do(work, done)

    def undo(self) -> None:
        """Store once more what was removed last."""
        saved, self._removed = self._removed, ()
        self.undoable.emit(False)

        def work(client: AdminClient) -> None:
            for qube, rule in saved:
                saving.add(client, qube, rule)

        self._do(work, lambda: self.said.emit(self.tr("The forward is back.")))

    def pause(self, chosen: Sequence[RuleStatus], *, enabled: bool) -> None:
        """Shut the ports and keep the forwards, or open them again."""

        def work(client: AdminClient) -> None:
            for qube, statuses in by_qube(chosen).items():
                saving.pause(client, qube, {status.id for status in statuses}, enabled=enabled)

        self._do(work, lambda: self.said.emit(""))

    def kill(self, qube: QubeName, connection: str) -> None:
        """End one connection; the port stays open."""
        ended = self.tr("The connection was ended.")
        self._do(lambda client: client.kill(qube, connection), lambda: self.said.emit(ended))

    def _do(self, work: Callable[[AdminClient], None], done: Callable[[], None]) -> None:
        client = self.watch.client

        def finish(_: object) -> None:
            self.watch.look(self.watch.qube)
            done()

        def failed(error: RefusedError) -> None:
            self.watch.look(self.watch.qube)
            self.said.emit(str(error))

        self.watch.tasks.run(self, lambda _: work(client), finish, failed)

    def _place(self, qube: QubeName) -> Place:
        return place_of(qube, self.watch.qubes, self.watch.overview.statuses)

    def _forget_dialog(self) -> None:
        self._dialog = None

    def _refresh_dialog(self) -> None:
        if self._dialog is not None:
            self._dialog.form.show_place(self._place(self._dialog.qube))


def resumes(chosen: Sequence[RuleStatus]) -> bool:
    """Whether the button that pauses would open them again: when all of them are paused."""
    return bool(chosen) and all(not status.rule.enabled for status in chosen)
