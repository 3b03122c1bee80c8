# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The findings of a check of a forward."""

from PyQt6.QtCore import Qt, pyqtSignal
from PyQt6.QtWidgets import QLabel, QWidget

from portfwd.api.diagnosis import CheckResult, Diagnosis
from portfwd.client.adminapi import AdminClient
from portfwd.client.text.sentences import outcome
from portfwd.gui.shared.tasks import Failure, Tasks
from portfwd.wire.values import QubeName, RuleId

_MARKS = {CheckResult.OK: "\N{CHECK MARK}", CheckResult.BAD: "\N{BALLOT X}", CheckResult.HINT: "i"}


class Findings(QLabel):
    """The list of findings. `ended`: the check is over, with its outcome."""

    ended = pyqtSignal()

    def __init__(self, client: AdminClient, tasks: Tasks, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._client, self._tasks = client, tasks
        self.setWordWrap(True)
        # Parts of the text come from qubes.
        self.setTextFormat(Qt.TextFormat.PlainText)
        self.setTextInteractionFlags(Qt.TextInteractionFlag.TextSelectableByMouse)
        self.setAccessibleName(self.tr("What the check found"))

    def start(self, qube: QubeName, rule: RuleId) -> None:
        """Look for the hop that loses the packets."""
        self.setText(self.tr("A marked probe goes through the chain..."))
        client = self._client
        self._tasks.run(self, lambda _: client.check(qube, rule), self._show, self._failed)

    def _show(self, diagnosis: Diagnosis) -> None:
        self.setText("\n".join(lines(diagnosis)))
        self.ended.emit()

    def _failed(self, error: Failure) -> None:
        self.setText(self.tr("The check could not be made: {0}").format(error))
        self.ended.emit()


def lines(diagnosis: Diagnosis) -> list[str]:
    """The outcome, and a line for each look."""
    looks = (f"{_MARKS.get(f.result, '?')}  {f.hop}: {f.text or f.cause}" for f in diagnosis.findings)
    return [outcome(diagnosis), "", *looks]
