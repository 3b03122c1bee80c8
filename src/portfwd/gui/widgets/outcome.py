# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""How a forward comes up, hop by hop, and where it can be reached then; or what is in the way."""

import time
from collections.abc import Callable

from PyQt6.QtCore import Qt, pyqtSignal
from PyQt6.QtGui import QGuiApplication
from PyQt6.QtWidgets import QGridLayout, QHBoxLayout, QLabel, QProgressBar, QPushButton, QVBoxLayout, QWidget

from portfwd.client.adminapi import AdminClient
from portfwd.client.following import Followed, follow
from portfwd.client.sentences import place, told
from portfwd.client.status import HopStatus, RuleStatus
from portfwd.gui.widgets.findings import Findings
from portfwd.gui.widgets.look import address_text, has_qr_codes, plain_label, qr_code
from portfwd.gui.widgets.tasks import Tasks
from portfwd.model.forward import ForwardRule
from portfwd.wire.errors import RefusedError
from portfwd.wire.values import QubeName
from portfwd.wire.views import HopState

_WAIT = 10.0
"""Seconds that hops have to answer."""

Save = Callable[[AdminClient], None]
"""Stores a forward; raises CallError."""


class OutcomeView(QWidget):
    """start() follows one forward. `settled` comes when there is nothing more to wait for."""

    settled = pyqtSignal()

    def __init__(self, client: AdminClient, tasks: Tasks, qube: QubeName, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._client, self._tasks, self._qube = client, tasks, qube
        self._rule: ForwardRule | None = None
        self._address = ""
        self.sentence = plain_label(self.tr("Storing the forward..."))
        self.sentence.setAccessibleName(self.tr("Outcome"))
        self.progress = QProgressBar()
        self.progress.setRange(0, 0)
        self.progress.setTextVisible(False)
        self.progress.setAccessibleName(self.tr("Hops that have answered"))
        self._hops = QGridLayout()
        self._hops.setColumnStretch(1, 1)
        self.copy = QPushButton(self.tr("Co&py the address"))
        self.copy.clicked.connect(self._copy)
        self.show_qr = QPushButton(self.tr("Show &QR code"))
        self.show_qr.setCheckable(True)
        self.show_qr.toggled.connect(self._show_qr)
        self.check = QPushButton(self.tr("Chec&k what is in the way"))
        self.check.clicked.connect(self.start_check)
        self.qr = QLabel()
        self.qr.setAlignment(Qt.AlignmentFlag.AlignCenter)
        self.qr.setAccessibleName(self.tr("QR code of the address"))
        self.findings = Findings(client, tasks)
        self.findings.ended.connect(lambda: self.check.setEnabled(True))
        for widget in (self.copy, self.show_qr, self.check, self.qr, self.findings):
            widget.hide()
        buttons = QHBoxLayout()
        for button in (self.copy, self.show_qr, self.check):
            button.setAutoDefault(False)
            buttons.addWidget(button)
        buttons.addStretch(1)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.sentence)
        layout.addWidget(self.progress)
        layout.addLayout(self._hops)
        layout.addLayout(buttons)
        layout.addWidget(self.qr)
        layout.addWidget(self.findings)
        layout.addStretch(1)

    def start(
        self, rule: ForwardRule, save: Callable[[AdminClient], None], failed: Callable[[RefusedError], None]
    ) -> None:
        """Have `save` store the forward and follow it; failed(error) when it was refused, with nothing changed."""
        self._rule = rule
        client, qube = self._client, self._qube

        def work(tell: Callable[[object], None]) -> Followed:
            save(client)
            return follow(client, qube, rule.id(qube), _WAIT, tell)

        self._tasks.run(self, work, self._end, failed, self._on_status)

    def start_check(self) -> None:
        """Look for the hop that loses the packets."""
        if self._rule is None:
            return
        self.check.setEnabled(False)
        self.findings.show()
        self.findings.start(self._qube, self._rule.id(self._qube))

    def _on_status(self, status: object) -> None:
        if isinstance(status, RuleStatus):
            self._show_hops(status)

    def _show_hops(self, status: RuleStatus) -> None:
        while item := self._hops.takeAt(0):
            if (widget := item.widget()) is not None:
                widget.deleteLater()
        hops, done = _by_hop(status), 0
        for line, (hop, entries) in enumerate(hops.items()):
            waiting = next((e for e in entries if e.state is not HopState.APPLIED), None)
            done += waiting is None
            mark = QLabel("\N{CHECK MARK}" if waiting is None else "\N{HORIZONTAL ELLIPSIS}")
            text = self.tr("{0}: done") if waiting is None else self.tr("{0}: {1}")
            self._hops.addWidget(mark, line, 0)
            self._hops.addWidget(plain_label(text.format(hop, waiting.state if waiting is not None else "")), line, 1)
        self.progress.setRange(0, max(1, len(hops)))
        self.progress.setValue(done)
        self.sentence.setText(self.tr("Opening..."))

    def _end(self, followed: Followed) -> None:
        self.progress.hide()
        status = followed.status
        if status is None:
            reason = followed.error or self.tr("it was removed by someone else meanwhile")
            self.sentence.setText(self.tr("Stored, but it is not known whether it is open: {0}").format(reason))
        else:
            self._show_hops(status)
            self.sentence.setText(told(status, time.time(), "can now reach"))
            if status.state.passes and status.addresses:
                rule = status.rule
                self._address = address_text(place(status.addresses[0], rule.srcports), rule.proto, rule.srcports.first)
                self.copy.setToolTip(self._address)
                self.copy.show()
                self.show_qr.setVisible(has_qr_codes())
            self.sentence.setAccessibleDescription(str(status.state))
        self.check.setVisible(status is None or status.fault is not None)
        self.settled.emit()

    def _copy(self) -> None:
        clipboard = QGuiApplication.clipboard()
        if clipboard is not None:
            clipboard.setText(self._address)
            self.copy.setText(self.tr("Copied {0}").format(self._address))

    def _show_qr(self, shown: bool) -> None:
        if shown:
            self.qr.setPixmap(qr_code(self._address))
            self.qr.setAccessibleDescription(self._address)
        self.qr.setVisible(shown)


def _by_hop(status: RuleStatus) -> dict[str, list[HopStatus]]:
    found: dict[str, list[HopStatus]] = {}
    for hop in status.hops:
        found.setdefault(hop.hop, []).append(hop)
    return found
