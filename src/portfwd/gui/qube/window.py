# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""qubes-port-forwarding QUBE: the Firewall tab of one qube, with ordinary rules above and forwards below."""

from collections.abc import Callable

from PyQt6.QtCore import QSize, Qt
from PyQt6.QtWidgets import QDialogButtonBox, QMessageBox, QSplitter, QTabWidget, QVBoxLayout, QWidget

from portfwd.client.adminapi import AdminClient, CallError
from portfwd.gui.qube.outbound_view import OutboundView
from portfwd.gui.qube.panel import Panel
from portfwd.gui.shared.appearance import plain_label
from portfwd.gui.shared.tasks import Failure
from portfwd.gui.shared.watch import Watch
from portfwd.gui.state.outbound_draft import OrdinaryRules
from portfwd.wire.errors import RefusedError
from portfwd.wire.values import QubeName

_OK, _APPLY = QDialogButtonBox.StandardButton.Ok, QDialogButtonBox.StandardButton.Apply


class ChangedError(RefusedError):
    """Another editor has changed the ordinary rules since they were read."""

    def __init__(self, newer: OrdinaryRules) -> None:
        super().__init__("the rules were changed by someone else meanwhile")
        self.newer = newer


class QubeWindow(QWidget):
    """Forwards take effect at once; the ordinary rules with OK or Apply."""

    def __init__(self, watch: Watch, qube: QubeName, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setWindowTitle(self.tr("Firewall of {0}").format(qube))
        self._watch, self._qube = watch, qube
        self.outbound = OutboundView()
        self.outbound.setEnabled(False)
        self.panel = Panel(watch, qube)
        self.splitter = QSplitter(Qt.Orientation.Vertical)
        self.splitter.addWidget(self.outbound)
        self.splitter.addWidget(self.panel)
        self.splitter.setChildrenCollapsible(False)
        tabs = QTabWidget()
        tabs.addTab(self.splitter, self.tr("&Firewall rules"))
        self.message = plain_label(self.tr("Asking dom0..."))
        self.buttons = QDialogButtonBox(_OK | _APPLY | QDialogButtonBox.StandardButton.Cancel)
        self.buttons.accepted.connect(lambda: self._save(self.close))
        self.buttons.rejected.connect(self.close)
        apply = self.buttons.button(_APPLY)
        if apply is not None:
            apply.clicked.connect(lambda: self._save(lambda: None))
        layout = QVBoxLayout(self)
        layout.addWidget(tabs, 1)
        layout.addWidget(self.message)
        layout.addWidget(self.buttons)
        self.outbound.changed.connect(self._enable)
        self.panel.add.setFocus()
        self._enable()
        self._read()

    def sizeHint(self) -> QSize:
        return QSize(940, 680)

    def _read(self) -> None:
        qube = self._qube
        self._watch.tasks.run(self, lambda _: self._watch.client.rules(qube), self._show, self._on_unreadable)

    def _show(self, rules: OrdinaryRules) -> None:
        self.outbound.show_rules(rules)
        self.outbound.setEnabled(True)
        self._say("")
        self._enable()

    def _on_unreadable(self, error: Failure) -> None:
        self._say(self.tr("The firewall rules cannot be read: {0}").format(error))

    def _save(self, after: Callable[[], object]) -> None:
        edited, qube = self.outbound.list, self._qube
        if not edited.dirty:
            after()
            return

        def work(client: AdminClient) -> OrdinaryRules:
            present = client.rules(qube)
            if present not in (edited.read, edited.rules):
                raise ChangedError(present)
            client.set_rules(qube, edited.rules)
            try:
                return client.rules(qube)
            except RefusedError as error:
                raise CallError(f"they cannot be read again: {error}") from None

        def done(rules: OrdinaryRules) -> None:
            self._show(rules)
            after()

        # The answer would discard edits made now.
        self.outbound.setEnabled(False)
        self.buttons.setEnabled(False)
        self._watch.tasks.run(self, lambda _: work(self._watch.client), done, self._on_failed)

    def _on_failed(self, error: Failure) -> None:
        self.outbound.setEnabled(True)
        self._enable()
        if isinstance(error, ChangedError):
            self._ask_which(error.newer)
        elif isinstance(error, RefusedError):
            self._say(self.tr("Nothing was saved: {0}").format(error))
        else:
            self._say(self.tr("It is not known whether the rules were saved: {0}").format(error))

    def _ask_which(self, newer: OrdinaryRules) -> None:
        """Ask which version to keep: two editors have changed the list, and neither version is lost silently."""
        box = QMessageBox(QMessageBox.Icon.Question, self.windowTitle(), "", parent=self)
        box.setText(self.tr("Somebody else has changed the firewall rules of {0} meanwhile.").format(self._qube))
        box.setInformativeText(self.tr("Keep yours, or look at the other ones first? Yours are not saved yet."))
        mine = box.addButton(self.tr("Save &mine"), QMessageBox.ButtonRole.AcceptRole)
        other = box.addButton(self.tr("Show the &other ones"), QMessageBox.ButtonRole.DestructiveRole)
        box.addButton(QMessageBox.StandardButton.Cancel)

        def answered() -> None:
            if box.clickedButton() is mine:
                self.outbound.list = self.outbound.list.onto(newer)
                self._save(lambda: None)
            elif box.clickedButton() is other:
                self._show(newer)

        box.finished.connect(lambda _: answered())
        box.open()

    def _enable(self) -> None:
        self.buttons.setEnabled(True)
        apply = self.buttons.button(_APPLY)
        if apply is not None:
            apply.setEnabled(self.outbound.list.dirty)

    def _say(self, text: str) -> None:
        self.message.setText(text)
        self.message.setVisible(bool(text))
