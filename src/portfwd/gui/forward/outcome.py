# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Shows how a forward comes up, hop by hop, and where it can be reached; or what is in the way; or how it is undone."""

import threading
import time
from collections.abc import Callable

from PyQt6.QtCore import Qt, pyqtSignal
from PyQt6.QtGui import QGuiApplication
from PyQt6.QtWidgets import QGridLayout, QHBoxLayout, QLabel, QProgressBar, QPushButton, QVBoxLayout, QWidget

from portfwd.api.status import HopState, HopStatus
from portfwd.client.adminapi import AdminClient, CallError, UnstoredError
from portfwd.client.following import Followed, follow, shut
from portfwd.client.forward_state import RuleStatus
from portfwd.client.text.sentences import place, target, told
from portfwd.client.text.terminal import complain
from portfwd.gui.forward.findings import Findings
from portfwd.gui.shared.appearance import address_text, has_qr_codes, plain_label, qr_code
from portfwd.gui.shared.tasks import Failure, Tasks
from portfwd.gui.state import saving
from portfwd.model.forward import ForwardRule
from portfwd.wire.errors import RefusedError
from portfwd.wire.values import QubeName

_WAIT = 10.0
"""Seconds that hops have to answer."""
_SHUT_WAIT = 3.0
"""Seconds that hops have to confirm what was taken back."""


class OutcomeView(QWidget):
    """start() stores and follows one forward; cancel() takes it back at any moment.

    `settled`: there is nothing more to wait for; `undone`: it was taken back.
    """

    settled = pyqtSignal()
    undone = pyqtSignal(str)
    """What is not as it was before, in words; '' when everything is."""

    def __init__(self, client: AdminClient, tasks: Tasks, qube: QubeName, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._client, self._tasks, self._qube = client, tasks, qube
        self._rule: ForwardRule | None = None
        self._before: ForwardRule | None = None
        self._given_up = threading.Event()
        self._working = False
        self.passes = False
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

    def start(self, rule: ForwardRule, before: ForwardRule | None, failed: Callable[[RefusedError], None]) -> None:
        """Store a forward, in place of `before` if there is one, and follow it.

        Calls failed(error) when it is refused, with nothing changed.
        """
        self._rule, self._before, self._working = rule, before, True
        self._given_up = given_up = threading.Event()
        client, qube, tasks = self._client, self._qube, self._tasks
        stored = threading.Event()

        def leaving() -> bool:
            return given_up.is_set() or tasks.ending

        def work(tell: Callable[[object], None]) -> Followed | str:
            try:
                if before is None:
                    saving.add(client, qube, rule)
                else:
                    saving.replace(client, qube, before, rule)
            except RefusedError:
                raise
            except CallError:
                if not leaving():
                    raise
            stored.set()
            followed = follow(client, qube, rule.id(qube), _WAIT, tell, leaving)
            return self._take_back(client) if leaving() else followed

        def refused(error: Failure) -> None:
            self._working = False
            if not isinstance(error, RefusedError):
                self._on_lost(error)
            elif not given_up.is_set():
                failed(error)
            elif stored.is_set():
                self._not_undone(error)
            else:
                self.undone.emit("")

        self._tasks.run(self, work, self._end, refused, self._on_status)

    def cancel(self) -> None:
        """Restore the state before, whether the forward is being stored, coming up, or stored."""
        if self._given_up.is_set():
            return
        self._given_up.set()
        self.sentence.setText(self.tr("Taking it back..."))
        self.progress.setRange(0, 0)
        self.progress.show()
        if not self._working:
            self._start_undo()

    def _on_lost(self, error: CallError) -> None:
        """dom0 may have stored it or not."""
        if self._given_up.is_set():
            self._start_undo()
            return
        self.progress.hide()
        self.sentence.setText(self.tr("It is not known whether the forward is stored: {0}").format(error))
        self.settled.emit()

    def _start_undo(self) -> None:
        client = self._client
        self._tasks.run(self, lambda _: self._take_back(client), self._show_undone, self._not_undone)

    def _take_back(self, client: AdminClient) -> str:
        """In another thread: undo, and wait for the hops. Returns what is not as before, in words."""
        rule, qube = self._rule, self._qube
        if rule is None:
            return ""
        try:
            saving.undo(client, qube, self._before, rule)
        except RefusedError as error:
            problem = f"the forward could not be taken back, and stands: {error}"
        except UnstoredError as error:
            problem = str(error)
        except CallError as error:
            problem = f"it is not known whether the forward was taken back: {error}"
        else:
            doubt = "" if self._tasks.ending else shut(client, qube, (rule,), _SHUT_WAIT).doubt
            problem = f"the forward was taken back, but {doubt}" if doubt else ""
        if problem and self._tasks.ending:
            # No window is left to show it.
            complain(f"{target(qube, rule)}: {problem}")
        return problem

    def _show_undone(self, problem: str) -> None:
        self.progress.hide()
        self.sentence.setText(problem[:1].upper() + problem[1:])
        self.undone.emit(problem)

    def _not_undone(self, error: Exception) -> None:
        self._show_undone(f"it is not known whether the forward was taken back: {error}")

    def start_check(self) -> None:
        """Look for the hop that loses the packets."""
        if self._rule is None:
            return
        self.check.setEnabled(False)
        self.findings.show()
        self.findings.start(self._qube, self._rule.id(self._qube))

    def _on_status(self, status: object) -> None:
        if isinstance(status, RuleStatus) and not self._given_up.is_set():
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

    def _end(self, followed: Followed | str) -> None:
        self._working = False
        if isinstance(followed, str):
            self._show_undone(followed)
            return
        if self._given_up.is_set():
            # The outcome was settled just before the user cancelled.
            self._start_undo()
            return
        self.progress.hide()
        status = followed.status
        if status is None:
            reason = followed.error or self.tr("it was removed by someone else meanwhile")
            self.sentence.setText(self.tr("Stored, but it is not known whether it is open: {0}").format(reason))
        else:
            self._show_hops(status)
            self.passes = status.state.passes
            said = told(status, time.time(), "can now reach")
            self.sentence.setText(said if self.passes else self.tr("Stored, but {0}").format(said))
            if self.passes and status.addresses:
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
