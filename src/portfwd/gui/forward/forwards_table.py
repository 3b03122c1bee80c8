# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""A table of forwards. A change of one forward touches its row, and nothing else."""

import time
from collections.abc import Sequence
from typing import Any

from PyQt6.QtCore import QAbstractTableModel, QModelIndex, QObject, QSortFilterProxyModel, Qt, pyqtSignal
from PyQt6.QtWidgets import QAbstractItemView, QWidget

from portfwd.client.forward_state import RuleStatus, State
from portfwd.client.text.sentences import told
from portfwd.gui.shared.appearance import label_icon, state_icon
from portfwd.gui.shared.fields import RowsTable
from portfwd.gui.state.overview import Changes, Column, Key, cell, found_by, key_of, order

SORT_ROLE = Qt.ItemDataRole.UserRole
_NONE = QModelIndex()
_NUMBERS = (Column.TARGET, Column.TRAFFIC, Column.CONNECTIONS)


class ForwardsModel(QAbstractTableModel):
    """The rows, in the order in which they came; the view sorts them."""

    def __init__(self, columns: Sequence[Column], parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._columns = tuple(columns)
        self._rows: list[RuleStatus] = []
        self._place: dict[Key, int] = {}
        self._labels: dict[str, str] = {}
        self._icons = {state: state_icon(state) for state in State}

    def show_labels(self, labels: dict[str, str]) -> None:
        """Colours of the qubes, by name."""
        self._labels = labels
        if self._rows and Column.QUBE in self._columns:
            at = self._columns.index(Column.QUBE)
            self.dataChanged.emit(self.index(0, at), self.index(len(self._rows) - 1, at))

    def take(self, changes: Changes) -> None:
        """Follow one look."""
        for status in (*changes.removed, *changes.untold):
            row = self._place[key_of(status)]
            self.beginRemoveRows(QModelIndex(), row, row)
            del self._rows[row]
            self._number()
            self.endRemoveRows()
        for _, status in changes.changed:
            row = self._place[key_of(status)]
            self._rows[row] = status
            self.dataChanged.emit(self.index(row, 0), self.index(row, len(self._columns) - 1))
        if changes.added:
            first = len(self._rows)
            self.beginInsertRows(QModelIndex(), first, first + len(changes.added) - 1)
            self._rows += changes.added
            self._number()
            self.endInsertRows()

    def at(self, row: int) -> RuleStatus:
        """The forward of a row."""
        return self._rows[row]

    def row_of(self, key: Key) -> int | None:
        """The row of a forward; None when it is not in the table."""
        return self._place.get(key)

    def column_of(self, column: Column) -> int:
        """The place of a column."""
        return self._columns.index(column)

    def tick(self) -> None:
        """Refresh the lifetimes left, since time has passed."""
        if self._rows and Column.LEFT in self._columns:
            at = self.column_of(Column.LEFT)
            self.dataChanged.emit(self.index(0, at), self.index(len(self._rows) - 1, at))

    def _number(self) -> None:
        self._place = {key_of(status): row for row, status in enumerate(self._rows)}

    def rowCount(self, parent: QModelIndex = _NONE) -> int:
        return 0 if parent.isValid() else len(self._rows)

    def columnCount(self, parent: QModelIndex = _NONE) -> int:
        return 0 if parent.isValid() else len(self._columns)

    def headerData(self, section: int, orientation: Qt.Orientation, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        if orientation is Qt.Orientation.Horizontal and role == Qt.ItemDataRole.DisplayRole:
            return self._title(self._columns[section])
        return None

    def data(self, index: QModelIndex, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        if not index.isValid():
            return None
        status, column, now = self._rows[index.row()], self._columns[index.column()], time.time()
        match role:
            case Qt.ItemDataRole.DisplayRole:
                return cell(status, column, now)
            case Qt.ItemDataRole.ToolTipRole | Qt.ItemDataRole.AccessibleDescriptionRole:
                return told(status, now)
            case Qt.ItemDataRole.DecorationRole if column is Column.STATE:
                return self._icons[State.UNKNOWN if status.in_doubt else status.state]
            case Qt.ItemDataRole.DecorationRole if column is Column.QUBE:
                return label_icon(self._labels.get(status.qube, ""))
            case Qt.ItemDataRole.TextAlignmentRole if column in _NUMBERS:
                return int(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
            case _ if role == SORT_ROLE:
                return order(status, column, now)
        return None

    def _title(self, column: Column) -> str:
        titles = {
            Column.QUBE: self.tr("Qube"),
            Column.ENTRANCE: self.tr("Reachable at"),
            Column.TARGET: self.tr("Port"),
            Column.PROTOCOL: self.tr("Protocol"),
            Column.CLIENTS: self.tr("Who may connect"),
            Column.LEFT: self.tr("Ends in"),
            Column.STATE: self.tr("State"),
            Column.TRAFFIC: self.tr("Traffic"),
            Column.CONNECTIONS: self.tr("Connected"),
            Column.COMMENT: self.tr("Comment"),
        }
        return titles[column]


class Sorted(QSortFilterProxyModel):
    """Sorts numbers as numbers, and finds words anywhere in a row."""

    def __init__(self, model: ForwardsModel, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._model = model
        self._search = ""
        self.setSourceModel(model)
        self.setSortRole(SORT_ROLE)

    def search(self, words: str) -> None:
        """Show only the rows in which every word occurs; '' shows all."""
        self._search = words
        self.invalidateFilter()

    def filterAcceptsRow(self, source_row: int, source_parent: QModelIndex) -> bool:
        return not source_parent.isValid() and (not self._search or found_by(self._model.at(source_row), self._search))

    def lessThan(self, left: QModelIndex, right: QModelIndex) -> bool:
        return bool(left.data(SORT_ROLE) < right.data(SORT_ROLE))


class ForwardsTable(RowsTable):
    """`chosen` comes when other rows are selected."""

    chosen = pyqtSignal()

    def __init__(self, columns: Sequence[Column], parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.forwards = ForwardsModel(columns, self)
        self.sorted = Sorted(self.forwards, self)
        self.setModel(self.sorted)
        self.setAccessibleName(self.tr("Forwards"))
        self.setSelectionMode(QAbstractItemView.SelectionMode.ExtendedSelection)
        self.setAlternatingRowColors(True)
        self.setSortingEnabled(True)
        self.sortByColumn(-1, Qt.SortOrder.AscendingOrder)
        rows, head = self.verticalHeader(), self.horizontalHeader()
        if rows is not None and head is not None:
            rows.hide()
            head.setHighlightSections(False)
        self.set_widths({place: _WIDTHS[column] for place, column in enumerate(columns)})
        selection = self.selectionModel()
        if selection is not None:
            selection.selectionChanged.connect(lambda *_: self.chosen.emit())

    def selected(self) -> tuple[RuleStatus, ...]:
        """In the order of the table."""
        selection = self.selectionModel()
        if selection is None:
            return ()
        rows = sorted(index.row() for index in selection.selectedRows())
        return tuple(self.forwards.at(self.sorted.mapToSource(self.sorted.index(row, 0)).row()) for row in rows)

    def select(self, key: Key) -> None:
        """Select the row of a forward, if the search shows it, and scroll to it."""
        row = self.forwards.row_of(key)
        if row is not None:
            place = self.sorted.mapFromSource(self.forwards.index(row, 0))
            if place.isValid():
                self.selectRow(place.row())
                self.scrollTo(place)


_WIDTHS = {
    Column.QUBE: 16,
    Column.ENTRANCE: 24,
    Column.STATE: 17,
    Column.TARGET: 11,
    Column.PROTOCOL: 9,
    Column.CLIENTS: 16,
    Column.LEFT: 8,
    Column.TRAFFIC: 8,
    Column.CONNECTIONS: 11,
    Column.COMMENT: 16,
}
"""Initial widths of columns, in digits."""
