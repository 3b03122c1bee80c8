# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Whoever uses keys or a screen reader gets everywhere, and knows where that is."""

from collections.abc import Callable, Iterator

import pytest
from PyQt6.QtCore import Qt
from PyQt6.QtWidgets import QAbstractButton, QApplication, QLabel, QScrollBar, QTabWidget, QWidget
from pytestqt.qtbot import QtBot

from portfwd.client.adminapi import AdminClient
from portfwd.gui.dashboard.dashboard import Dashboard
from portfwd.gui.forward.rule_dialog import RuleDialog
from portfwd.gui.qube.outbound_dialog import OutboundDialog
from portfwd.gui.qube.window import QubeWindow
from portfwd.gui.shared.watch import Watch
from portfwd.gui.state.draft import Lasting, Place, Reach
from portfwd.model.forward import parse_forward
from portfwd.wire.values import QubeName

WORK = QubeName("work")
WEB = "action=forward forwardtype=external proto=tcp srcports=443-443 dstports=8443-8443"
Until = Callable[[Callable[[], bool]], None]


@pytest.fixture
def window(
    request: pytest.FixtureRequest, watch: Watch, client: AdminClient, qtbot: QtBot, until: Until
) -> Iterator[QWidget]:
    client.edit_forwards(WORK, lambda _: (parse_forward(WEB),))
    until(lambda: bool(watch.overview.statuses))
    window = make(request.param, watch)
    window.show()
    window.activateWindow()
    qtbot.waitUntil(window.isActiveWindow)
    if isinstance(window, QubeWindow):
        until(window.outbound.isEnabled)
    yield window
    until(lambda: not watch.tasks.busy)
    window.close()


def make(which: str, watch: Watch) -> QWidget:
    match which:
        case "dashboard":
            return Dashboard(watch)
        case "window":
            return QubeWindow(watch, WORK)
        case "outbound":
            return OutboundDialog()
    rule = RuleDialog(watch.client, watch.tasks, Place(WORK))
    rule.form.reach.setCurrentIndex(rule.form.reach.findData(Reach.ADDRESS))
    rule.form.lasting.setCurrentIndex(rule.form.lasting.findData(Lasting.DATE))
    return rule


def name_of(widget: QWidget, window: QWidget) -> str:
    """What a screen reader says: the name, the text, or the label that belongs to it."""
    if isinstance(widget, QTabWidget | QAbstractButton) or widget.accessibleName():
        return widget.accessibleName() or getattr(widget, "text", lambda: "tabs")()
    return next((label.text() for label in window.findChildren(QLabel) if label.buddy() is widget), "")


@pytest.mark.parametrize("window", ["dashboard", "window", "rule", "outbound"], indirect=True)
def test_everything_that_takes_the_focus_has_a_name(window: QWidget) -> None:
    nameless = [
        f"{type(widget).__name__} {widget.objectName()}"
        for widget in window.findChildren(QWidget)
        if widget.focusPolicy() != Qt.FocusPolicy.NoFocus
        and widget.isVisible()
        and not isinstance(widget, QScrollBar)
        and not widget.objectName().startswith("qt_")
        and not name_of(widget, window)
    ]
    assert nameless == []


@pytest.mark.parametrize("window", ["dashboard", "window", "rule", "outbound"], indirect=True)
def test_tab_reaches_every_button_and_field(window: QWidget, qtbot: QtBot) -> None:
    wanted = {
        widget
        for widget in window.findChildren(QWidget)
        if widget.focusPolicy() & Qt.FocusPolicy.TabFocus and widget.isVisible() and widget.isEnabled()
    }
    reached: set[QWidget] = set()
    qtbot.waitUntil(lambda: QApplication.focusWidget() is not None)
    for _ in range(2 * len(wanted) + 5):
        focus = QApplication.focusWidget()
        assert focus is not None
        reached.add(focus)
        qtbot.keyClick(focus, Qt.Key.Key_Tab)
        QApplication.processEvents()
    proxies = {widget for widget in wanted if widget.focusProxy() is not None}
    assert {f"{type(w).__name__} {w.accessibleName()}" for w in wanted - reached - proxies} == set()


def test_a_port_is_opened_with_keys_alone(watch: Watch, client: AdminClient, qtbot: QtBot, until: Until) -> None:
    window = QubeWindow(watch, WORK)
    qtbot.addWidget(window)
    window.show()
    window.activateWindow()
    qtbot.waitUntil(window.isActiveWindow)
    window.panel.add.setFocus()
    qtbot.keyClick(window.panel.add, Qt.Key.Key_Space)
    (dialog,) = window.panel.findChildren(RuleDialog)
    # The first field has the focus at once.
    until(lambda: QApplication.focusWidget() is dialog.form.ports)
    qtbot.keyClicks(dialog.form.ports, "22")
    qtbot.keyClick(dialog.form.ports, Qt.Key.Key_Return)
    until(lambda: [rule.srcports.first for rule in client.forwards(WORK).rules] == [22])
    until(lambda: dialog.ok.text() == "&Close")
    qtbot.keyClick(dialog, Qt.Key.Key_Return)
    until(lambda: not window.panel.findChildren(RuleDialog))


def test_a_qube_that_is_removed_meanwhile_is_met_calmly(
    watch: Watch, client: AdminClient, qtbot: QtBot, until: Until
) -> None:
    gone = QubeName("gone")
    window = QubeWindow(watch, gone)
    qtbot.addWidget(window)
    window.show()
    until(lambda: "cannot be read" in window.message.text())
    dialog = RuleDialog(client, watch.tasks, Place(gone))
    qtbot.addWidget(dialog)
    dialog.show()
    dialog.form.ports.setText("22")
    dialog.ok.click()
    until(dialog.refusal.isVisible)
    assert "gone" in dialog.refusal.text()
    assert dialog.form.ports.text() == "22"
