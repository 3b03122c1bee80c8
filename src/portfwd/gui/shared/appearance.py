# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Colours of labels and states, small drawn icons, QR codes. Colour is never the only sign."""

import socket
from importlib.util import find_spec

from PyQt6.QtCore import QPointF, QRectF, Qt
from PyQt6.QtGui import QColor, QGuiApplication, QIcon, QImage, QPainter, QPalette, QPen, QPixmap, QPolygonF
from PyQt6.QtWidgets import QLabel

from portfwd.client.forward_state import State
from portfwd.wire.values import Proto

_LABELS = {
    "red": "#cc0000",
    "orange": "#f57900",
    "yellow": "#edd400",
    "green": "#73d216",
    "gray": "#555753",
    "blue": "#3465a4",
    "purple": "#75507b",
    "black": "#000000",
}
_GOOD, _DOUBTFUL, _BAD = "#2e9e3f", "#d08000", "#d0312d"
_STATES = {State.OPEN: _GOOD, State.PROBLEM: _BAD, State.UNCLEAR: _BAD, State.PAUSED: "#888888"}
_ICON = 16
_MODULE = 5
"""Pixels of one square of a QR code, at scale 1."""


def label_colour(label: str) -> QColor:
    """The colour of a qube's label; one that an administrator has made is grey."""
    return QColor(_LABELS.get(label, "#999999"))


def state_colour(state: State) -> QColor:
    """The colour of a forward's mark and path."""
    return QColor(_STATES.get(state, _DOUBTFUL))


def is_dark() -> bool:
    """Whether the desktop's theme is a dark one."""
    palette = QGuiApplication.palette()
    return (
        palette.color(QPalette.ColorRole.Window).lightness() < palette.color(QPalette.ColorRole.WindowText).lightness()
    )


def error_colour() -> QColor:
    """The colour of an error text, readable on the theme's background."""
    return QColor("#ff7b72" if is_dark() else "#b3261e")


def plain_label(text: str = "", *, error: bool = False) -> QLabel:
    """A label that shows its text as it is: texts of qubes and users are never markup."""
    label = QLabel(text)
    label.setTextFormat(Qt.TextFormat.PlainText)
    label.setWordWrap(True)
    if error:
        palette = label.palette()
        palette.setColor(label.foregroundRole(), error_colour())
        label.setPalette(palette)
        label.hide()
    return label


def _pixmap(size: float) -> QPixmap:
    ratio = QGuiApplication.primaryScreen()
    scale = ratio.devicePixelRatio() if ratio is not None else 1.0
    pixmap = QPixmap(round(size * scale), round(size * scale))
    pixmap.setDevicePixelRatio(scale)
    pixmap.fill(Qt.GlobalColor.transparent)
    return pixmap


def state_icon(state: State) -> QIcon:
    """A mark whose shape shows the state, too: a disc, a triangle, a cross, two bars."""
    pixmap = _pixmap(_ICON)
    painter = QPainter(pixmap)
    painter.setRenderHint(QPainter.RenderHint.Antialiasing)
    colour = state_colour(state)
    painter.setBrush(colour)
    painter.setPen(Qt.PenStyle.NoPen)
    if state is State.OPEN:
        painter.drawEllipse(QRectF(3, 3, 10, 10))
    elif state is State.PAUSED:
        painter.drawRect(QRectF(4, 3, 3, 10))
        painter.drawRect(QRectF(9, 3, 3, 10))
    elif state in (State.PROBLEM, State.UNCLEAR):
        painter.setPen(QPen(colour, 3, cap=Qt.PenCapStyle.RoundCap))
        painter.drawLine(QPointF(4, 4), QPointF(12, 12))
        painter.drawLine(QPointF(12, 4), QPointF(4, 12))
    else:
        painter.drawPolygon(QPolygonF([QPointF(8, 2.5), QPointF(14, 13), QPointF(2, 13)]))
    painter.end()
    return QIcon(pixmap)


def label_icon(label: str) -> QIcon:
    """A small cube in the label's colour."""
    pixmap = _pixmap(_ICON)
    painter = QPainter(pixmap)
    painter.setRenderHint(QPainter.RenderHint.Antialiasing)
    painter.setBrush(label_colour(label))
    painter.setPen(QPen(QColor("#808080"), 1))
    painter.drawRoundedRect(QRectF(2.5, 2.5, 11, 11), 2.5, 2.5)
    painter.end()
    return QIcon(pixmap)


def tray_icon(passing: int, broken: bool) -> QIcon:
    """A door with the number of forwards that are open."""
    pixmap = _pixmap(22)
    painter = QPainter(pixmap)
    painter.setRenderHint(QPainter.RenderHint.Antialiasing)
    painter.setBrush(QColor(_BAD if broken else _GOOD if passing else "#777777"))
    painter.setPen(Qt.PenStyle.NoPen)
    painter.drawRoundedRect(QRectF(1, 1, 20, 20), 5, 5)
    font = painter.font()
    font.setPixelSize(13 if passing < 10 else 11)
    font.setBold(True)
    painter.setFont(font)
    painter.setPen(QColor("white"))
    painter.drawText(QRectF(0, 0, 22, 22), Qt.AlignmentFlag.AlignCenter, str(passing) if passing < 100 else "99+")
    painter.end()
    return QIcon(pixmap)


def address_text(place: str, proto: Proto | None, port: int) -> str:
    """The address for a client's program: a link where the services database calls the port http or https."""
    if proto is Proto.UDP:
        return place
    try:
        name = socket.getservbyport(port, "tcp")
    except OSError:
        name = ""
    scheme = {"http": "http", "http-alt": "http", "https": "https"}.get(name)
    return f"{scheme}://{place}/" if scheme else place


def has_qr_codes() -> bool:
    """Whether the library for QR codes is there; the windows work without it."""
    return find_spec("qrcode") is not None


def qr_code(text: str) -> QPixmap:
    """The text as a QR code, dark on light in every theme, since cameras want that."""
    import qrcode

    code = qrcode.QRCode(border=3)
    code.add_data(text)
    squares = code.get_matrix()
    image = QImage(len(squares), len(squares), QImage.Format.Format_RGB32)
    for y, line in enumerate(squares):
        for x, dark in enumerate(line):
            image.setPixelColor(x, y, QColor("black" if dark else "white"))
    screen = QGuiApplication.primaryScreen()
    scale = screen.devicePixelRatio() if screen is not None else 1.0
    side = round(len(squares) * _MODULE * scale)
    pixmap = QPixmap.fromImage(image.scaled(side, side))
    pixmap.setDevicePixelRatio(scale)
    return pixmap
