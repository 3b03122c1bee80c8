# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""What the dialogs' fields have in common."""

from collections.abc import Mapping
from typing import Any

from PyQt6.QtWidgets import QComboBox


def choices(texts: Mapping[Any, str], chosen: object, name: str = "") -> QComboBox:
    """A box with these values and texts. `name` is for screen readers, where no label is its buddy."""
    box = QComboBox()
    if name:
        box.setAccessibleName(name)
    for value, text in texts.items():
        box.addItem(text, value)
    box.setCurrentIndex(list(texts).index(chosen))
    return box
