# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The question whether a qube's program gets a port. No is the default, and the answer to every doubt."""

import time
from collections.abc import Callable

from PyQt6.QtCore import QEvent, QObject, Qt, QTimer, pyqtSignal
from PyQt6.QtGui import QCloseEvent
from PyQt6.QtWidgets import QDialog, QDialogButtonBox, QHBoxLayout, QLabel, QPushButton, QVBoxLayout, QWidget

from portfwd.gui.state.prompting import Decision, Gate, Limits, Prompt, Prompts, Request, sentence, words
from portfwd.gui.widgets.look import label_icon, plain_label
from portfwd.wire.values import QubeName

_LOOK = 100
"""Milliseconds between two looks at the clock."""
_BADGE = 32


class PromptDialog(QDialog):
    """`decided` comes exactly once, whatever closes the dialog."""

    decided = pyqtSignal(object)

    def __init__(self, request: Request, limits: Limits, seconds: float, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setWindowTitle(self.tr("{0} asks for a port").format(request.qube))
        self.setWindowFlag(Qt.WindowType.WindowStaysOnTopHint)
        self._gate = Gate()
        self._deadline = time.monotonic() + seconds
        self._over = False
        badge = QLabel()
        badge.setPixmap(label_icon(request.label).pixmap(_BADGE, _BADGE))
        badge.setAccessibleName(self.tr("Label {0}").format(request.label))
        name = plain_label(request.qube)
        font = name.font()
        font.setBold(True)
        font.setPointSizeF(font.pointSizeF() * 1.3)
        name.setFont(font)
        self.question = plain_label(sentence(request))
        self.question.setAccessibleName(self.tr("Question"))
        self.foreign = plain_label()
        self.foreign.setAccessibleName(self.tr("What the program says of itself"))
        said = words(request.untrusted_words)
        self.foreign.setText(self.tr('The program calls itself "{0}". Nobody has checked that.').format(said))
        font = self.foreign.font()
        font.setItalic(True)
        self.foreign.setFont(font)
        self.left = plain_label()
        self.left.setAccessibleName(self.tr("Time left"))
        self.deny = QPushButton(self.tr("&Deny"))
        self.deny.clicked.connect(lambda: self._decide(Decision.DENY))
        self.allows = {
            Decision.ONCE: QPushButton(self.tr("Allow &once")),
            Decision.UNTIL_SHUTDOWN: QPushButton(self.tr("Until {0} &shuts down").format(request.qube)),
            Decision.ALWAYS: QPushButton(self.tr("&Always")),
        }
        buttons = QDialogButtonBox()
        buttons.addButton(self.deny, QDialogButtonBox.ButtonRole.RejectRole)
        for decision, button in self.allows.items():
            button.setAutoDefault(False)
            button.setEnabled(False)
            button.clicked.connect(lambda _, decision=decision: self._decide(decision))
            buttons.addButton(button, QDialogButtonBox.ButtonRole.ActionRole)
            # Not before it has its place: a widget without parent becomes a window on the screen.
            button.setVisible(decision in limits.allowed)
        top = QHBoxLayout()
        top.addWidget(badge)
        top.addWidget(name, 1)
        layout = QVBoxLayout(self)
        layout.addLayout(top)
        for widget in (self.question, self.foreign, self.left, buttons):
            layout.addWidget(widget)
        self.foreign.setVisible(bool(said))
        self._clock = QTimer(self)
        self._clock.setInterval(_LOOK)
        self._clock.timeout.connect(self._look)
        self._clock.start()
        self.deny.setDefault(True)
        self.deny.setFocus()
        self.resize(520, self.sizeHint().height())
        self._look()

    def _look(self) -> None:
        now = time.monotonic()
        if now >= self._deadline:
            self._decide(Decision.DENY)
            return
        self._gate.focus(self.isActiveWindow(), now)
        live = self._gate.open(now)
        for button in self.allows.values():
            button.setEnabled(live)
        self.left.setText(self.tr("Without an answer it is denied in {0} s.").format(round(self._deadline - now)))

    def _decide(self, decision: Decision) -> None:
        now = time.monotonic()
        # The focus may have gone in this very moment, before Qt has told us so.
        self._gate.focus(self.isActiveWindow(), now)
        if decision is not Decision.DENY and not self._gate.open(now):
            return
        if not self._over:
            self._over = True
            self._clock.stop()
            self.hide()
            self.decided.emit(decision)

    def changeEvent(self, a0: QEvent | None) -> None:
        super().changeEvent(a0)
        if a0 is not None and a0.type() == QEvent.Type.ActivationChange and not self._over:
            self._look()

    def done(self, a0: int) -> None:
        """Escape, and whatever else ends a dialog without one of its buttons."""
        self._decide(Decision.DENY)
        super().done(a0)

    def closeEvent(self, a0: QCloseEvent | None) -> None:
        self._decide(Decision.DENY)
        super().closeEvent(a0)


class PromptDesk(QObject):
    """Puts questions on show, one of each qube at a time, and hands the answers back."""

    def __init__(self, limits: Limits | None = None, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self.prompts = Prompts(limits)
        self.dialogs: dict[QubeName, PromptDialog] = {}

    def ask(self, request: Request, answered: Callable[[Decision], None]) -> None:
        """Ask the user; `answered` is called exactly once, some time later."""
        self.prompts.ask(request, answered)
        self._show()

    def forget(self, qube: QubeName) -> None:
        """The qube has shut down."""
        dialog = self.dialogs.get(qube)
        if dialog is not None:
            dialog.reject()
        self.prompts.forget(qube)

    def _show(self) -> None:
        now = time.monotonic()
        for prompt in self.prompts.on_show(now):
            qube = prompt.request.qube
            if qube in self.dialogs or prompt.deadline is None:
                continue
            dialog = PromptDialog(prompt.request, self.prompts.limits, prompt.deadline - now)
            dialog.decided.connect(self._answering(prompt))
            self.dialogs[qube] = dialog
            dialog.show()

    def _answering(self, prompt: Prompt) -> Callable[[Decision], None]:
        def answer(decision: Decision) -> None:
            dialog = self.dialogs.pop(prompt.request.qube)
            dialog.deleteLater()
            self.prompts.answer(prompt, decision)
            # The next one comes when this one is gone, so that no second click can hit it.
            QTimer.singleShot(0, self._show)

        return answer
