# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""A small line chart of recent traffic."""

from collections.abc import Sequence

from PyQt6.QtCore import QPointF, QSize
from PyQt6.QtGui import QPainter, QPaintEvent, QPalette, QPen, QPolygonF
from PyQt6.QtWidgets import QSizePolicy, QWidget

from portfwd.client.text.tables import amount

_POINTS = 90


class Sparkline(QWidget):
    """Bytes per second, the newest at the right."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._rates: tuple[float, ...] = ()
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setAccessibleName(self.tr("Traffic lately"))

    def sizeHint(self) -> QSize:
        return QSize(240, 44)

    def show_rates(self, rates: Sequence[float]) -> None:
        """Draw these rates."""
        self._rates = tuple(rates)[-_POINTS:]
        text = self.tr("{0}/s now, {1}/s at most").format(*(amount(round(number)) for number in self._ends()))
        self.setToolTip(text)
        self.setAccessibleDescription(text)
        self.update()

    def _ends(self) -> tuple[float, float]:
        return (self._rates[-1], max(self._rates)) if self._rates else (0.0, 0.0)

    def paintEvent(self, a0: QPaintEvent | None) -> None:  # noqa: ARG002 - Qt's signature
        painter = QPainter(self)
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        palette, width, height = self.palette(), self.width(), self.height()
        painter.fillRect(self.rect(), palette.color(QPalette.ColorRole.Base))
        now, most = self._ends()
        bottom, room = height - 4.0, height - 20.0
        if most > 0:
            step = width / (_POINTS - 1)
            first = _POINTS - len(self._rates)
            points = [
                QPointF((first + place) * step, bottom - rate / most * room) for place, rate in enumerate(self._rates)
            ]
            painter.setPen(QPen(palette.color(QPalette.ColorRole.Highlight), 1.6))
            painter.drawPolyline(QPolygonF(points))
        painter.setPen(palette.color(QPalette.ColorRole.Text))
        painter.drawText(6, painter.fontMetrics().ascent() + 2, f"{amount(round(now))}/s")
        painter.end()
