# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The network as a picture: qubes in their label colours, forwards as lines from the LAN to their qube."""

import itertools
import time

from PyQt6.QtCore import QPointF, QRectF, Qt, pyqtSignal
from PyQt6.QtGui import QColor, QKeyEvent, QMouseEvent, QPainter, QPainterPath, QPalette, QPen, QResizeEvent, QTransform
from PyQt6.QtWidgets import QGraphicsPathItem, QGraphicsScene, QGraphicsView, QWidget

from portfwd.client.text.sentences import told
from portfwd.gui.shared.appearance import label_colour, state_colour
from portfwd.gui.state.overview import Key
from portfwd.gui.state.picture import BOX_HEIGHT, BOX_WIDTH, Box, Path, Picture

_KEY = 0
_SMALLEST = 0.6
_SPREAD = 5.0
"""Pixels between two lines that pass the same box."""


class NetworkView(QGraphicsView):
    """`chosen` names the forward whose line was clicked."""

    chosen = pyqtSignal(object)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._scene = QGraphicsScene(self)
        self.setScene(self._scene)
        self.setRenderHint(QPainter.RenderHint.Antialiasing)
        self.setAccessibleName(self.tr("Network"))
        self.setDragMode(QGraphicsView.DragMode.ScrollHandDrag)
        self.setAlignment(Qt.AlignmentFlag.AlignTop | Qt.AlignmentFlag.AlignHCenter)
        self._selected: Key | None = None
        self.picture = Picture((), (), 0, 0)

    def show_picture(self, picture: Picture, selected: Key | None) -> None:
        """Draw the picture, unless it is drawn already."""
        if picture == self.picture and selected == self._selected:
            return
        self.picture, self._selected = picture, selected
        self._scene.clear()
        boxes = {box.name: box for box in picture.boxes}
        lanes: dict[str, int] = {}
        for path in picture.paths:
            self._draw_path(path, boxes, lanes)
        for box in picture.boxes:
            self._draw_box(box)
        self._scene.setSceneRect(0, 0, picture.width, picture.height)
        self._fit()
        count = len(picture.paths)
        self.setAccessibleDescription(self.tr("{0} forwards through {1} qubes").format(count, len(picture.boxes) - 1))

    def _fit(self) -> None:
        """Scale to show all columns at once, as long as names can be read; rows are scrolled."""
        port = self.viewport()
        room = port.width() - 4 if port is not None else 0
        scale = min(1.0, max(_SMALLEST, room / self.picture.width)) if self.picture.width else 1.0
        self.setTransform(QTransform.fromScale(scale, scale))

    def resizeEvent(self, event: QResizeEvent | None) -> None:
        super().resizeEvent(event)
        self._fit()

    def _draw_box(self, box: Box) -> None:
        palette = self.palette()
        text_colour = palette.color(QPalette.ColorRole.Text)
        running = box.qube is None or box.qube.running
        border = QPen(text_colour, 1.2, Qt.PenStyle.SolidLine if running else Qt.PenStyle.DashLine)
        outline = QPainterPath()
        outline.addRoundedRect(QRectF(box.x, box.y, BOX_WIDTH, BOX_HEIGHT), 6, 6)
        item = self._scene.addPath(outline, border, palette.color(QPalette.ColorRole.Base))
        if item is not None and box.qube is not None:
            state = "" if running else self.tr(", not running")
            item.setToolTip(f"{box.name}{state}")
        if box.qube is not None:
            bar = QPainterPath()
            bar.addRoundedRect(QRectF(box.x + 6, box.y + 7, 12, BOX_HEIGHT - 14), 3, 3)
            self._scene.addPath(bar, QPen(QColor("#808080")), label_colour(box.qube.label))
        metrics = self.fontMetrics()
        text = self._scene.addSimpleText(
            metrics.elidedText(box.name, Qt.TextElideMode.ElideRight, round(BOX_WIDTH - 34)), self.font()
        )
        if text is not None:
            text.setBrush(text_colour)
            text.setPos(box.x + 26, box.y + (BOX_HEIGHT - metrics.height()) / 2)
            text.setAcceptedMouseButtons(Qt.MouseButton.NoButton)

    def _draw_path(self, path: Path, boxes: dict[str, Box], lanes: dict[str, int]) -> None:
        points, breaks = [], None
        for name in path.names:
            box = boxes.get(name)
            if box is None:
                continue
            lane = lanes[name] = lanes.get(name, 0) + 1
            # Lines that pass the same box lie side by side, within it.
            offset = ((lane % 5) - 2) * _SPREAD
            points.append(QPointF(box.x, box.y + BOX_HEIGHT / 2 + offset))
            if name == path.broken:
                breaks = points[-1]
        if len(points) < 2:
            return
        line = QPainterPath(points[0])
        for here, there in itertools.pairwise(points):
            end = QPointF(there.x() + BOX_WIDTH, there.y())
            middle = (here.x() + end.x()) / 2
            line.cubicTo(QPointF(middle, here.y()), QPointF(middle, end.y()), end)
            line.lineTo(there if there is not points[-1] else end)
        chosen = path.key == self._selected
        pen = QPen(state_colour(path.status.state), 4.0 if chosen else 1.8)
        if path.broken is not None or not path.status.rule.enabled:
            pen.setStyle(Qt.PenStyle.DashLine)
        item = QGraphicsPathItem(line)
        item.setPen(pen)
        item.setData(_KEY, path.key)
        item.setToolTip(told(path.status, time.time()))
        item.setZValue(1 if chosen else -1)
        self._scene.addItem(item)
        if breaks is not None:
            self._draw_break(QPointF(breaks.x() + BOX_WIDTH + 10, breaks.y()), path)

    def _draw_break(self, at: QPointF, path: Path) -> None:
        cross = QPainterPath()
        for dx, dy in ((-6, -6), (-6, 6)):
            cross.moveTo(at.x() + dx, at.y() + dy)
            cross.lineTo(at.x() - dx, at.y() - dy)
        item = self._scene.addPath(cross, QPen(state_colour(path.status.state), 3))
        if item is not None:
            item.setZValue(2)
            item.setData(_KEY, path.key)
            item.setToolTip(told(path.status, time.time()))

    def mouseReleaseEvent(self, event: QMouseEvent | None) -> None:
        super().mouseReleaseEvent(event)
        if event is not None:
            area = QRectF(self.mapToScene(event.pos()), self.mapToScene(event.pos())).adjusted(-4, -4, 4, 4)
            keys = [item.data(_KEY) for item in self._scene.items(area) if item.data(_KEY) is not None]
            if keys:
                self.chosen.emit(keys[0])

    def keyPressEvent(self, event: QKeyEvent | None) -> None:
        """Up and down walk through the forwards, so that nobody needs a mouse."""
        keys = [path.key for path in self.picture.paths]
        if event is None or event.key() not in (Qt.Key.Key_Up, Qt.Key.Key_Down) or not keys:
            super().keyPressEvent(event)
            return
        step = 1 if event.key() == Qt.Key.Key_Down else -1
        at = keys.index(self._selected) + step if self._selected in keys else 0
        self.chosen.emit(keys[at % len(keys)])
