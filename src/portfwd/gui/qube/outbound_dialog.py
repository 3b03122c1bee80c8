# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The dialog of one ordinary rule: what a qube may send, and where to."""

import time

from PyQt6.QtCore import Qt, pyqtSignal
from PyQt6.QtWidgets import QComboBox, QDialog, QDialogButtonBox, QGridLayout, QLabel, QLineEdit, QVBoxLayout, QWidget

from portfwd.client.text.sentences import local_time
from portfwd.client.typed.arguments import lookup_service
from portfwd.gui.shared.appearance import plain_label
from portfwd.gui.shared.fields import choices
from portfwd.gui.state.outbound_draft import (
    CheckedOutbound,
    Ending,
    OutboundDraft,
    OutField,
    Target,
    check_outbound,
    draft_of_outbound,
)
from portfwd.model.ordinary import Action, OrdinaryRule, Protocol


class OutboundDialog(QDialog):
    """`made`: the rule, once, when OK is pressed."""

    made = pyqtSignal(object)

    def __init__(self, edited: OrdinaryRule | None = None, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.setWindowTitle(self.tr("New rule") if edited is None else self.tr("Change a rule"))
        draft = OutboundDraft() if edited is None else draft_of_outbound(edited)
        self._edited = edited
        self.state = CheckedOutbound(None)
        self.action = choices({Action.ACCEPT: self.tr("Accept"), Action.DROP: self.tr("Drop")}, draft.action)
        targets = {
            Target.HOST: self.tr("this address, network or host name"),
            Target.ANYWHERE: self.tr("anywhere"),
            Target.DNS: self.tr("the name servers (DNS)"),
        }
        self.target = choices(targets, draft.target)
        self.host = QLineEdit(draft.host)
        self.host.setPlaceholderText(self.tr("192.168.1.20, 192.168.1.0/24 or example.com"))
        protos: dict[Protocol | None, str] = {None: self.tr("any")}
        protos |= {proto: proto.value.upper() for proto in Protocol}
        self.proto = choices(protos, draft.proto)
        self.ports = QLineEdit(draft.ports)
        self.ports.setPlaceholderText(self.tr("all ports; or 443, 80-90, https"))
        self.icmptype = QLineEdit(draft.icmptype)
        self.icmptype.setPlaceholderText(self.tr("all types"))
        self.ending = choices(self._endings(draft), draft.ending)
        self.date = QLineEdit(draft.date)
        self.date.setPlaceholderText(self.tr("2026-12-01 15:30, or 15:30"))
        self.comment = QLineEdit(draft.comment)
        self.errors = {field: plain_label(error=True) for field in OutField}
        self.sentence = plain_label()
        self.sentence.setAccessibleName(self.tr("What the rule does"))
        self.buttons = QDialogButtonBox(QDialogButtonBox.StandardButton.Ok | QDialogButtonBox.StandardButton.Cancel)
        self.buttons.accepted.connect(self._make)
        self.buttons.rejected.connect(self.reject)
        self._lay_out()
        for box in (self.action, self.target, self.proto, self.ending):
            box.currentIndexChanged.connect(lambda _: self._check())
        for edit in (self.host, self.ports, self.icmptype, self.date, self.comment):
            edit.textChanged.connect(lambda _: self._check())
        self._check()
        self.resize(480, self.sizeHint().height())

    def _endings(self, draft: OutboundDraft) -> dict[Ending, str]:
        endings = {
            Ending.NEVER: self.tr("never"),
            Ending.MINUTES_15: self.tr("in 15 minutes"),
            Ending.HOURS_2: self.tr("in 2 hours"),
            Ending.DATE: self.tr("at a date"),
        }
        if draft.ending is Ending.KEEP and draft.edited is not None and draft.edited.expire is not None:
            moment = local_time(draft.edited.expire.seconds, time.time())
            endings[Ending.KEEP] = self.tr("{0}, as it is").format(moment)
        return endings

    def _lay_out(self) -> None:
        grid = QGridLayout()
        grid.setColumnStretch(1, 1)
        rows: list[tuple[str, QWidget, OutField | None]] = [
            (self.tr("&Action:"), self.action, None),
            (self.tr("&To:"), self.target, None),
            (self.tr("A&ddress:"), self.host, OutField.HOST),
            (self.tr("&Protocol:"), self.proto, None),
            (self.tr("P&orts:"), self.ports, OutField.PORTS),
            (self.tr("&ICMP type:"), self.icmptype, OutField.ICMP),
            (self.tr("&Ends:"), self.ending, None),
            (self.tr("&Until:"), self.date, OutField.DATE),
            (self.tr("&Comment:"), self.comment, OutField.COMMENT),
        ]
        self._labels: dict[QWidget, QLabel] = {}
        for line, (text, widget, field) in enumerate(rows):
            label = self._labels[widget] = QLabel(text)
            label.setBuddy(widget)
            grid.addWidget(label, 2 * line, 0)
            grid.addWidget(widget, 2 * line, 1)
            if field is not None:
                grid.addWidget(self.errors[field], 2 * line + 1, 1)
        layout = QVBoxLayout(self)
        layout.addLayout(grid)
        for below in (self.errors[OutField.WHOLE], self.sentence):
            layout.addWidget(below)
        layout.addStretch(1)
        layout.addWidget(self.buttons)

    @property
    def rule(self) -> OrdinaryRule | None:
        """The rule of the fields; None while a field is wrong."""
        return self.state.rule

    def draft(self) -> OutboundDraft:
        """The content of the fields."""
        return OutboundDraft(
            action=self.action.currentData(),
            target=self.target.currentData(),
            host=self.host.text(),
            proto=self.proto.currentData(),
            ports=self.ports.text(),
            icmptype=self.icmptype.text(),
            ending=self.ending.currentData(),
            date=self.date.text(),
            comment=self.comment.text(),
            edited=self._edited,
        )

    def _check(self) -> None:
        draft = self.draft()
        shown: list[tuple[QComboBox | QLineEdit, bool]] = [
            (self.host, draft.target is not Target.ANYWHERE),
            (self.ports, draft.proto is not None and draft.proto.has_ports),
            (self.icmptype, draft.proto is Protocol.ICMP),
            (self.date, draft.ending is Ending.DATE),
        ]
        for widget, visible in shown:
            widget.setVisible(visible)
            self._labels[widget].setVisible(visible)
        self.state = check_outbound(draft, time.time(), lookup_service)
        for field, label in self.errors.items():
            text = self.state.errors.get(field, "")
            label.setText(text)
            label.setVisible(bool(text))
        self.sentence.setText(self.state.sentence)
        ok = self.buttons.button(QDialogButtonBox.StandardButton.Ok)
        if ok is not None:
            ok.setEnabled(self.state.rule is not None)

    def _make(self) -> None:
        # Minutes count from now on, and a date may have passed since it was typed.
        self._check()
        if self.rule is not None:
            self.made.emit(self.rule)
            self.accept()
