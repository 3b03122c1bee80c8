# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The dialog of a check: finds the hop that loses the packets of a forward, and what to do about it."""

import time

from PyQt6.QtCore import Qt
from PyQt6.QtWidgets import QDialog, QDialogButtonBox, QVBoxLayout, QWidget

from portfwd.client.forward_state import RuleStatus
from portfwd.client.text.sentences import told
from portfwd.gui.forward.findings import Findings
from portfwd.gui.shared.appearance import plain_label
from portfwd.gui.shared.watch import Watch


class CheckDialog(QDialog):
    """A dialog whose check starts when it opens."""

    def __init__(self, watch: Watch, status: RuleStatus, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.setWindowTitle(self.tr("The way to {0}").format(status.qube))
        self.findings = Findings(watch.client, watch.tasks)
        buttons = QDialogButtonBox(QDialogButtonBox.StandardButton.Close)
        buttons.rejected.connect(self.reject)
        layout = QVBoxLayout(self)
        layout.addWidget(plain_label(told(status, time.time())))
        layout.addWidget(self.findings, 1)
        layout.addWidget(buttons)
        self.resize(640, 320)
        self.findings.start(status.qube, status.id)
