# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""What fields, buttons and tables of the windows have in common."""

from collections.abc import Callable, Mapping
from typing import Any

from PyQt6.QtCore import Qt, pyqtSignal
from PyQt6.QtGui import QKeyEvent
from PyQt6.QtWidgets import QAbstractItemView, QComboBox, QLabel, QPushButton, QTableView, QWidget

from portfwd.gui.shared.appearance import plain_label


def choices(texts: Mapping[Any, str], chosen: object, name: str = "") -> QComboBox:
    """A box with these values and texts. `name` is for screen readers, where no label is its buddy."""
    box = QComboBox()
    if name:
        box.setAccessibleName(name)
    for value, text in texts.items():
        box.addItem(text, value)
    box.setCurrentIndex(list(texts).index(chosen))
    return box


def button(text: str, slot: Callable[[], object]) -> QPushButton:
    """A button that Enter never means: in the stock's dialogs that is OK."""
    made = QPushButton(text)
    made.setAutoDefault(False)
    made.clicked.connect(lambda: slot())
    return made


def heading(text: str) -> QLabel:
    """A bold label."""
    label = plain_label(text)
    font = label.font()
    font.setBold(True)
    label.setFont(font)
    return label


class RowsTable(QTableView):
    """Rows are selected as a whole; Enter and double click mean `opened`, Delete means `deleted`."""

    opened = pyqtSignal()
    deleted = pyqtSignal()

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.setTabKeyNavigation(False)
        self.setShowGrid(False)
        self.setWordWrap(False)
        head, rows = self.horizontalHeader(), self.verticalHeader()
        if head is not None and rows is not None:
            head.setStretchLastSection(True)
            rows.setDefaultSectionSize(max(22, self.fontMetrics().height() + 8))
        self.doubleClicked.connect(lambda _: self.opened.emit())

    def set_widths(self, digits: Mapping[int, int]) -> None:
        """Widths of columns at first, in digits."""
        head = self.horizontalHeader()
        if head is not None:
            for column, number in digits.items():
                head.resizeSection(column, number * self.fontMetrics().horizontalAdvance("0"))

    def keyPressEvent(self, e: QKeyEvent | None) -> None:
        key = None if e is None else e.key()
        if key == Qt.Key.Key_Delete:
            self.deleted.emit()
        elif key in (Qt.Key.Key_Return, Qt.Key.Key_Enter):
            self.opened.emit()
        else:
            super().keyPressEvent(e)
