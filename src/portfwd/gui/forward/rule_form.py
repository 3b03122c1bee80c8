# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The fields of one forward. An error stands beside its field; the sentence says what would be opened."""

import time

from PyQt6.QtCore import QStringListModel, Qt, pyqtSignal
from PyQt6.QtWidgets import (
    QCompleter,
    QGridLayout,
    QHBoxLayout,
    QLabel,
    QLineEdit,
    QPushButton,
    QWidget,
)

from portfwd.client.text.sentences import local_time
from portfwd.client.typed.arguments import lookup_service
from portfwd.client.typed.completion import services
from portfwd.gui.shared.appearance import plain_label
from portfwd.gui.shared.fields import choices
from portfwd.gui.state.draft import Checked, Draft, Field, Lasting, Place, Reach, check, suggestion
from portfwd.wire.values import Proto


class RuleForm(QWidget):
    """`checked`: after each change; `rule`: the rule of the fields."""

    checked = pyqtSignal(object)

    def __init__(self, draft: Draft, place: Place, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._edited = draft.edited
        self._place = place
        self.state = Checked(None)
        self.ports = QLineEdit(draft.ports)
        self.ports.setPlaceholderText(self.tr("8443, 5000-5010 or ssh"))
        self.ports.setCompleter(self._completer())
        protos = {Proto.TCP: "TCP", Proto.UDP: "UDP", None: self.tr("TCP and UDP")}
        self.proto = choices(protos, draft.proto, self.tr("Protocol"))
        self.reach = choices(self._reaches(draft), draft.reach, self.tr("Reachable from"))
        self.address = QLineEdit(draft.address)
        self.address.setPlaceholderText(self.tr("192.168.1.20, 192.168.1.0/24 or a host name"))
        self.address.setAccessibleName(self.tr("Address, network or host name of the clients"))
        self.entrance = QLineEdit(draft.entrance)
        self.entrance.setPlaceholderText(self.tr("the same"))
        self.suggest = QPushButton()
        self.suggest.setAutoDefault(False)
        self.lasting = choices(self._lastings(draft), draft.lasting, self.tr("Open"))
        self.date = QLineEdit(draft.date)
        self.date.setPlaceholderText(self.tr("2026-12-01 15:30, or 15:30"))
        self.date.setAccessibleName(self.tr("Date and time of the end"))
        self.comment = QLineEdit(draft.comment)
        self.sentence = plain_label()
        self.sentence.setMinimumHeight(self.fontMetrics().height() * 3)
        self.sentence.setAlignment(Qt.AlignmentFlag.AlignTop)
        self.sentence.setAccessibleName(self.tr("What will be opened"))
        self.errors = {field: plain_label(error=True) for field in Field}
        self._touched: set[Field] = set(Field) if draft.edited else set()
        self._lay_out()
        self._connect()
        self._check()

    def draft(self) -> Draft:
        """The content of the fields."""
        return Draft(
            ports=self.ports.text(),
            proto=self.proto.currentData(),
            entrance=self.entrance.text(),
            reach=self.reach.currentData(),
            address=self.address.text(),
            lasting=self.lasting.currentData(),
            date=self.date.text(),
            comment=self.comment.text(),
            edited=self._edited,
        )

    def show_place(self, place: Place) -> None:
        """Check again, since the network or other forwards have changed."""
        self._place = place
        self._check()

    def _reaches(self, draft: Draft) -> dict[Reach, str]:
        net_qube = self._place.net_qube or self.tr("its net qube")
        texts = {
            Reach.NEIGHBOURS: self.tr("the LAN (neighbours of the network cards)"),
            Reach.ADDRESS: self.tr("this address, network or host name"),
            Reach.ANYONE: self.tr("anyone who reaches this computer"),
            Reach.INTERNAL: self.tr("other qubes behind {0}").format(net_qube),
        }
        if draft.reach is Reach.KEEP and draft.edited is not None:
            texts[Reach.KEEP] = self.tr("{0} behind {1}, as it is").format(draft.edited.srchost, net_qube)
        return texts

    def _lastings(self, draft: Draft) -> dict[Lasting, str]:
        texts = {
            Lasting.FOREVER: self.tr("until I remove it"),
            Lasting.MINUTES_15: self.tr("for 15 minutes"),
            Lasting.HOURS_2: self.tr("for 2 hours"),
            Lasting.SHUTDOWN: self.tr("until {0} shuts down").format(self._place.qube),
            Lasting.REBOOT: self.tr("until the computer restarts"),
            Lasting.DATE: self.tr("until a date"),
        }
        expire = draft.edited.expire if draft.edited is not None else None
        if draft.lasting is Lasting.KEEP and isinstance(expire, int):
            texts[Lasting.KEEP] = self.tr("until {0}, as it is").format(local_time(expire, time.time()))
        return texts

    def _completer(self) -> QCompleter:
        completer = QCompleter(self)
        completer.setModel(QStringListModel(sorted(set(services())), completer))
        completer.setCaseSensitivity(Qt.CaseSensitivity.CaseInsensitive)
        return completer

    def _lay_out(self) -> None:
        grid = QGridLayout(self)
        grid.setContentsMargins(0, 0, 0, 0)
        grid.setColumnStretch(1, 1)
        rows: list[tuple[str, list[QWidget], Field]] = [
            (self.tr("&Port of the qube:"), [self.ports, self.proto], Field.PORTS),
            (self.tr("&Reachable from:"), [self.reach], Field.WHOLE),
            ("", [self.address], Field.ADDRESS),
            (self.tr("&External port:"), [self.entrance, self.suggest], Field.ENTRANCE),
            (self.tr("&Open:"), [self.lasting], Field.WHOLE),
            ("", [self.date], Field.DATE),
            (self.tr("&Comment:"), [self.comment], Field.COMMENT),
        ]
        line = 0
        for text, widgets, field in rows:
            label = QLabel(text)
            label.setBuddy(widgets[0])
            grid.addWidget(label, line, 0)
            box = QHBoxLayout()
            for place, widget in enumerate(widgets):
                box.addWidget(widget, 1 if place == 0 else 0)
            grid.addLayout(box, line, 1)
            if self.errors[field].parent() is None and field is not Field.WHOLE:
                grid.addWidget(self.errors[field], line + 1, 1)
            line += 2
        grid.addWidget(self.errors[Field.WHOLE], line, 0, 1, 2)
        grid.addWidget(self.sentence, line + 1, 0, 1, 2)
        grid.setRowStretch(line + 2, 1)

    def _connect(self) -> None:
        for field, edit in self._edits().items():
            edit.textChanged.connect(lambda _, field=field: self._touch(field))
            edit.editingFinished.connect(lambda field=field: self._touch(field))
        for box in (self.proto, self.reach, self.lasting):
            box.currentIndexChanged.connect(lambda _: self._check())
        self.suggest.clicked.connect(lambda: self.entrance.setText(str(self.suggest.property("port"))))

    def _edits(self) -> dict[Field, QLineEdit]:
        return {
            Field.PORTS: self.ports,
            Field.ENTRANCE: self.entrance,
            Field.ADDRESS: self.address,
            Field.DATE: self.date,
            Field.COMMENT: self.comment,
        }

    def _touch(self, field: Field) -> None:
        self._touched.add(field)
        self._check()

    def _check(self) -> None:
        draft, now = self.draft(), time.time()
        self.state = check(draft, self._place, now, lookup_service)
        self.address.setVisible(draft.reach is Reach.ADDRESS)
        self.date.setVisible(draft.lasting is Lasting.DATE)
        for field, label in self.errors.items():
            # An empty field is no error before anything was typed.
            text = self.state.errors.get(field, "")
            label.setText(text)
            label.setVisible(bool(text) and (field in self._touched or field in (Field.WHOLE, Field.ENTRANCE)))
        free = suggestion(draft, self._place, lookup_service)
        self.suggest.setVisible(free is not None)
        self.suggest.setProperty("port", free or "")
        self.suggest.setText(self.tr("Use &{0}").format(free))
        self.sentence.setText(self.state.sentence or self.tr("Nothing will be opened yet."))
        self.checked.emit(self.state)
