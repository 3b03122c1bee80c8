# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The ordinary rules of a qube, in their order: the upper half of our Firewall tab."""

import time
from typing import Any

from PyQt6.QtCore import QAbstractTableModel, QModelIndex, Qt, pyqtSignal
from PyQt6.QtWidgets import QAbstractItemView, QHBoxLayout, QMessageBox, QVBoxLayout, QWidget

from portfwd.client.text.sentences import local_time
from portfwd.gui.qube.outbound_dialog import OutboundDialog
from portfwd.gui.shared.appearance import plain_label
from portfwd.gui.shared.fields import RowsTable, button, heading
from portfwd.gui.state.outbound_draft import OrdinaryRules, OutboundList, describe, hint, target_text
from portfwd.model.ordinary import Action, OrdinaryRule

_NONE = QModelIndex()


class RulesModel(QAbstractTableModel):
    """Rows are the rules in their order."""

    def __init__(self) -> None:
        super().__init__()
        self._rules: OrdinaryRules = ()

    def show_rules(self, rules: OrdinaryRules) -> None:
        self.beginResetModel()
        self._rules = rules
        self.endResetModel()

    def rowCount(self, parent: QModelIndex = _NONE) -> int:
        return 0 if parent.isValid() else len(self._rules)

    def columnCount(self, parent: QModelIndex = _NONE) -> int:
        return 0 if parent.isValid() else 6

    def headerData(self, section: int, orientation: Qt.Orientation, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        if role != Qt.ItemDataRole.DisplayRole:
            return None
        if orientation is Qt.Orientation.Vertical:
            return str(section)
        titles = (
            self.tr("Action"),
            self.tr("To"),
            self.tr("Protocol"),
            self.tr("Ports"),
            self.tr("Ends"),
            self.tr("Comment"),
        )
        return titles[section]

    def data(self, index: QModelIndex, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        if not index.isValid():
            return None
        rule, now = self._rules[index.row()], time.time()
        if role == Qt.ItemDataRole.ToolTipRole:
            return describe(rule, now)
        if role != Qt.ItemDataRole.DisplayRole:
            return None
        ports = "" if rule.dstports is None else rule.dstports.short
        cells = (
            rule.action.value,
            target_text(rule),
            "" if rule.proto is None else rule.proto.value,
            ports if rule.icmptype is None else self.tr("type {0}").format(rule.icmptype),
            "" if rule.expire is None else local_time(rule.expire.seconds, now),
            rule.comment or "",
        )
        return cells[index.column()]


class OutboundView(QWidget):
    """Edits a list, which its user reads and saves. `changed`: after each edit."""

    changed = pyqtSignal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.list = OutboundList()
        self._model = RulesModel()
        self.table = RowsTable()
        self.table.setModel(self._model)
        self.table.setAccessibleName(self.tr("What the qube may send"))
        self.table.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
        self.table.opened.connect(self._edit)
        self.table.deleted.connect(self._remove)
        self.table.set_widths(dict(enumerate((10, 34, 12, 16, 20))))
        selection = self.table.selectionModel()
        if selection is not None:
            selection.selectionChanged.connect(lambda *_: self._enable())
        self.add = button(self.tr("&New rule..."), self._add)
        self.edit = button(self.tr("&Edit..."), self._edit)
        self.remove = button(self.tr("&Delete"), self._remove)
        self.up = button(self.tr("U&p"), lambda: self._move(-1))
        self.down = button(self.tr("Do&wn"), lambda: self._move(1))
        self.allow = button(self.tr("Allow everything"), lambda: self._everything(Action.ACCEPT))
        self.deny = button(self.tr("Deny everything"), lambda: self._everything(Action.DROP))
        self.hint = plain_label()
        buttons = QHBoxLayout()
        for each in (self.add, self.edit, self.remove, self.up, self.down):
            buttons.addWidget(each)
        buttons.addStretch(1)
        for each in (self.allow, self.deny):
            buttons.addWidget(each)
        layout = QVBoxLayout(self)
        layout.addWidget(heading(self.tr("What the qube may send (firewall rules, the first that fits decides)")))
        layout.addWidget(self.table, 1)
        layout.addLayout(buttons)
        layout.addWidget(self.hint)
        self._show()

    def show_rules(self, rules: OrdinaryRules) -> None:
        """Show these rules, as dom0 has them."""
        self.list = OutboundList(rules, rules)
        self._show()

    def rules(self) -> OrdinaryRules:
        """The rules as edited."""
        return self.list.rules

    @property
    def dirty(self) -> bool:
        """Whether there is anything to save."""
        return self.list.dirty

    def _row(self) -> int | None:
        selection = self.table.selectionModel()
        rows = selection.selectedRows() if selection is not None else []
        return rows[0].row() if rows else None

    def _add(self) -> None:
        row = self._row()
        place = len(self.list.rules) if row is None else row
        # After the rule that decides everything it would never matter.
        if row is None and hint(self.list.rules) == "" and self.list.rules:
            place -= 1
        dialog = OutboundDialog(None, self)
        dialog.made.connect(lambda rule: self._take(self.list.insert(place, rule), place))
        dialog.open()

    def _edit(self) -> None:
        row = self._row()
        if row is None:
            return
        edited = self.list.rules[row]
        dialog = OutboundDialog(edited, self)
        dialog.made.connect(lambda rule: self._replace(edited, row, rule))
        dialog.open()

    def _replace(self, edited: OrdinaryRule, row: int, rule: OrdinaryRule) -> None:
        place = self.list.place_of(edited, row)
        if place is None:
            # The rule ended or was removed while the dialog was open; no other may be lost for it.
            place = min(row, len(self.list.rules))
            self._take(self.list.insert(place, rule), place)
        else:
            self._take(self.list.replace(place, rule), place)

    def _remove(self) -> None:
        row = self._row()
        if row is not None:
            self._take(self.list.remove(row), min(row, len(self.list.rules) - 2))

    def _move(self, step: int) -> None:
        row = self._row()
        if row is not None:
            self._take(self.list.move(row, step), max(0, min(row + step, len(self.list.rules) - 1)))

    def _everything(self, action: Action) -> None:
        if self.list.rules in ((), (OrdinaryRule(Action.ACCEPT),), (OrdinaryRule(Action.DROP),)):
            # Nothing is lost that the other button does not bring back.
            self._take(self.list.everything(action), 0)
            return
        box = QMessageBox(QMessageBox.Icon.Question, self.tr("Firewall rules"), "", parent=self)
        box.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        box.setText(self.tr("Replace all {0} rules by one?").format(len(self.list.rules)))
        box.setInformativeText(describe(OrdinaryRule(action), time.time()))
        box.setStandardButtons(QMessageBox.StandardButton.Yes | QMessageBox.StandardButton.Cancel)
        box.accepted.connect(lambda: self._take(self.list.everything(action), 0))
        box.open()

    def _take(self, edited: OutboundList, select: int) -> None:
        self.list = edited
        self._show()
        if select >= 0:
            self.table.selectRow(select)
        self.changed.emit()

    def _show(self) -> None:
        self._model.show_rules(self.list.rules)
        self.hint.setText(hint(self.list.rules))
        self._enable()

    def _enable(self) -> None:
        row = self._row()
        for each in (self.edit, self.remove):
            each.setEnabled(row is not None)
        self.up.setEnabled(row is not None and row > 0)
        self.down.setEnabled(row is not None and row < len(self.list.rules) - 1)
