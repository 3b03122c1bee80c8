# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The dialog of one forward: the fields, then, after OK, how it comes up.

Nothing is applied before OK, and nothing stays of it when the dialog is cancelled or closed before the outcome is said.
"""

from PyQt6.QtCore import Qt, pyqtSignal
from PyQt6.QtWidgets import QDialog, QHBoxLayout, QPushButton, QStackedWidget, QVBoxLayout, QWidget

from portfwd.client.adminapi import AdminClient
from portfwd.gui.forward.outcome import OutcomeView
from portfwd.gui.forward.rule_form import RuleForm
from portfwd.gui.shared.appearance import plain_label
from portfwd.gui.shared.tasks import Tasks
from portfwd.gui.state.draft import Checked, Draft, Place, draft_of
from portfwd.model.forward import ForwardRule

_FORM, _OUTCOME = 0, 1


class RuleDialog(QDialog):
    """Adds a forward to a qube, or changes the given one. `stored`: dom0 may have another list now."""

    stored = pyqtSignal()

    def __init__(
        self,
        client: AdminClient,
        tasks: Tasks,
        place: Place,
        edited: ForwardRule | None = None,
        parent: QWidget | None = None,
    ) -> None:
        super().__init__(parent)
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        adds = edited is None
        title = self.tr("Open a port of {0}") if adds else self.tr("Change a forward of {0}")
        self.setWindowTitle(title.format(place.qube))
        self.qube, self._edited = place.qube, edited
        self.form = RuleForm(Draft() if edited is None else draft_of(edited), place)
        self.outcome = OutcomeView(client, tasks, place.qube)
        self.refusal = plain_label(error=True)
        self._pages = QStackedWidget()
        self._pages.addWidget(self.form)
        self._pages.addWidget(self.outcome)
        self.ok, self.cancel = QPushButton(), QPushButton(self.tr("&Cancel"))
        self.ok.setText(self.tr("&Open the port") if adds else self.tr("&Apply"))
        self.ok.clicked.connect(lambda: self._apply())
        self.cancel.clicked.connect(self._cancel)
        # No button box: it rearranges its buttons when one is hidden, and they lose focus and Enter.
        buttons = QHBoxLayout()
        buttons.addStretch(1)
        buttons.addWidget(self.ok)
        buttons.addWidget(self.cancel)
        layout = QVBoxLayout(self)
        layout.addWidget(self._pages, 1)
        layout.addWidget(self.refusal)
        layout.addLayout(buttons)
        self.form.checked.connect(self._on_checked)
        self._on_checked(self.form.state)
        self.outcome.settled.connect(self._on_settled)
        self.outcome.undone.connect(self._on_undone)
        self._settled = False
        # Enter always means OK, wherever the focus is. Only a button that is in the dialog already stays its default.
        self.cancel.setAutoDefault(False)
        self.ok.setDefault(True)
        self.form.ports.setFocus()
        self.resize(560, self.sizeHint().height())

    def _on_checked(self, state: Checked) -> None:
        if self._pages.currentIndex() == _OUTCOME:
            # The forward just stored holds its own port, which is no reason to keep the window open.
            return
        self.refusal.hide()
        self.ok.setEnabled(state.rule is not None)

    def _apply(self) -> None:
        if self._pages.currentIndex() == _OUTCOME:
            self.accept()
            return
        rule = self.form.state.rule
        if rule is None:
            return
        if rule == self._edited:
            self.accept()
            return
        self.ok.setEnabled(False)
        self.cancel.setText(self.tr("Cancel and &undo"))
        self._pages.setCurrentIndex(_OUTCOME)
        self.outcome.start(rule, self._edited, self._on_refused)

    def _cancel(self) -> None:
        if self._pages.currentIndex() == _FORM:
            self.reject()
            return
        # The dialog closes once everything is as it was before.
        self._settled = False
        self.cancel.setEnabled(False)
        self.ok.setEnabled(False)
        self.outcome.cancel()

    def reject(self) -> None:
        """Escape and the window's close button: as Cancel, until the outcome is said."""
        # Python may have collected what hangs on a window before Qt sends the window's last events.
        pages: QStackedWidget | None = getattr(self, "_pages", None)
        if pages is not None and pages.currentIndex() == _OUTCOME and not self._settled:
            self._cancel()
        else:
            super().reject()

    def _on_refused(self, error: Exception) -> None:
        """Show the fields again, as they were typed: nothing was changed."""
        self._pages.setCurrentIndex(_FORM)
        self.cancel.setText(self.tr("&Cancel"))
        self.refusal.setText(str(error))
        self.refusal.show()
        self.ok.setEnabled(True)

    def _on_settled(self) -> None:
        self.cancel.setText(self.tr("&Undo"))
        # An open forward is removed in the list; one that is stored and may open later can be taken back here.
        self._offer_close(undo=not self.outcome.passes)

    def _on_undone(self, problem: str) -> None:
        if problem:
            self._offer_close(undo=False)
            return
        self.stored.emit()
        super().reject()

    def _offer_close(self, *, undo: bool) -> None:
        self._settled = True
        self.ok.setText(self.tr("&Close"))
        self.ok.setEnabled(True)
        self.cancel.setVisible(undo)
        self.ok.setFocus()
        self.stored.emit()
