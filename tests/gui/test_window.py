# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The window of one qube's firewall: ordinary rules above, as many and as odd as the command line can make them."""

from collections.abc import Callable, Iterable, Iterator

import pytest
from PyQt6.QtCore import Qt
from PyQt6.QtWidgets import QDialogButtonBox, QMessageBox
from pytestqt.qtbot import QtBot

from portfwd.client.adminapi import AdminClient, CallError
from portfwd.gui.qube.outbound_dialog import OutboundDialog
from portfwd.gui.qube.window import QubeWindow
from portfwd.gui.shared.watch import Watch
from portfwd.gui.state.outbound_draft import OutField, Target
from portfwd.model.forward import parse_forward
from portfwd.model.ordinary import OrdinaryRule, Protocol, parse_ordinary
from portfwd.wire.values import QubeName

WORK = QubeName("work")
ACCEPT = parse_ordinary("action=accept")
ODD = parse_ordinary("action=drop dst6=2001:db8::/48 proto=icmp icmptype=8 expire=4000000000 comment=by hand")
Until = Callable[[Callable[[], bool]], None]


@pytest.fixture
def window(qtbot: QtBot, watch: Watch, client: AdminClient, until: Until) -> Iterator[QubeWindow]:
    client.set_rules(WORK, [ODD, ACCEPT])
    window = QubeWindow(watch, WORK)
    qtbot.addWidget(window)
    window.show()
    until(window.outbound.isEnabled)
    yield window
    client.set_rules(WORK, [ACCEPT])


def shown(window: QubeWindow) -> list[str]:
    return [str(rule.line(everything=True)) for rule in window.outbound.list.rules]


def dialog_of(window: QubeWindow) -> OutboundDialog:
    return window.outbound.findChildren(OutboundDialog)[-1]


def press(window: QubeWindow, qtbot: QtBot, which: QDialogButtonBox.StandardButton) -> None:
    button = window.buttons.button(which)
    assert button is not None
    qtbot.mouseClick(button, Qt.MouseButton.LeftButton)


def ok(dialog: OutboundDialog, qtbot: QtBot) -> None:
    button = dialog.buttons.button(QDialogButtonBox.StandardButton.Ok)
    assert button is not None
    qtbot.mouseClick(button, Qt.MouseButton.LeftButton)


def test_a_rule_that_the_stock_window_refuses_is_shown_and_can_be_edited(
    window: QubeWindow, qtbot: QtBot, client: AdminClient, until: Until
) -> None:
    window.outbound.table.selectRow(0)
    qtbot.mouseClick(window.outbound.edit, Qt.MouseButton.LeftButton)
    dialog = dialog_of(window)
    assert (dialog.host.text(), dialog.icmptype.text()) == ("2001:db8::/48", "8")
    dialog.icmptype.setText("128")
    ok(dialog, qtbot)
    assert client.rules(WORK) == (ODD, ACCEPT)
    press(window, qtbot, QDialogButtonBox.StandardButton.Apply)
    changed = parse_ordinary(ODD.api_line().replace("icmptype=8", "icmptype=128"))
    until(lambda: client.rules(WORK) == (changed, ACCEPT))


def test_a_new_rule_goes_before_the_one_that_decides_about_everything(
    window: QubeWindow, qtbot: QtBot, client: AdminClient, until: Until
) -> None:
    qtbot.mouseClick(window.outbound.add, Qt.MouseButton.LeftButton)
    dialog = dialog_of(window)
    dialog.host.setText("192.168.1.20")
    dialog.proto.setCurrentIndex(dialog.proto.findData(Protocol.TCP))
    dialog.ports.setText("https")
    dialog.action.setCurrentIndex(1)
    assert dialog.sentence.text() == "Drop tcp to 192.168.1.20, port 443"
    ok(dialog, qtbot)
    press(window, qtbot, QDialogButtonBox.StandardButton.Ok)
    until(lambda: not window.isVisible())
    assert [rule.line() for rule in client.rules(WORK)][
        1
    ] == "action=drop proto=tcp dst4=192.168.1.20/32 dstports=443-443"


def test_an_error_stands_beside_its_field_and_ok_is_dead(window: QubeWindow, qtbot: QtBot) -> None:
    qtbot.mouseClick(window.outbound.add, Qt.MouseButton.LeftButton)
    dialog = dialog_of(window)
    dialog.host.setText("10.0.0.0/99")
    button = dialog.buttons.button(QDialogButtonBox.StandardButton.Ok)
    assert button is not None
    assert not button.isEnabled()
    assert dialog.errors[OutField.HOST].isVisible()
    dialog.target.setCurrentIndex(dialog.target.findData(Target.ANYWHERE))
    assert button.isEnabled()


def test_rules_move_and_go_and_nothing_is_saved_by_cancel(
    window: QubeWindow, qtbot: QtBot, client: AdminClient
) -> None:
    window.outbound.table.selectRow(0)
    qtbot.mouseClick(window.outbound.down, Qt.MouseButton.LeftButton)
    assert shown(window)[1] == ODD.line(everything=True)
    assert window.outbound.hint.text() == "Rule 0 decides about everything; the 1 after it never matter."
    qtbot.mouseClick(window.outbound.remove, Qt.MouseButton.LeftButton)
    assert shown(window) == ["action=accept"]
    press(window, qtbot, QDialogButtonBox.StandardButton.Cancel)
    assert client.rules(WORK) == (ODD, ACCEPT)


def test_everything_at_once_is_asked_for(window: QubeWindow, qtbot: QtBot) -> None:
    qtbot.mouseClick(window.outbound.deny, Qt.MouseButton.LeftButton)
    (box,) = window.outbound.findChildren(QMessageBox)
    yes = box.button(QMessageBox.StandardButton.Yes)
    assert yes is not None
    qtbot.mouseClick(yes, Qt.MouseButton.LeftButton)
    assert shown(window) == ["action=drop"]


def test_an_edit_by_someone_else_meanwhile_is_not_overwritten_in_silence(
    window: QubeWindow, qtbot: QtBot, client: AdminClient, until: Until
) -> None:
    window.outbound.table.selectRow(0)
    qtbot.mouseClick(window.outbound.remove, Qt.MouseButton.LeftButton)
    theirs = parse_ordinary("action=drop")
    client.set_rules(WORK, [theirs])
    press(window, qtbot, QDialogButtonBox.StandardButton.Apply)
    until(lambda: bool(window.findChildren(QMessageBox)))
    assert client.rules(WORK) == (theirs,)
    (box,) = window.findChildren(QMessageBox)
    (mine,) = (button for button in box.buttons() if "mine" in button.text())
    qtbot.mouseClick(mine, Qt.MouseButton.LeftButton)
    until(lambda: client.rules(WORK) == (ACCEPT,))


def test_saving_ordinary_rules_keeps_the_forwards(
    window: QubeWindow, qtbot: QtBot, client: AdminClient, until: Until
) -> None:
    forward = parse_forward("action=forward forwardtype=external proto=tcp srcports=443-443")
    client.edit_forwards(WORK, lambda _: (forward,))
    until(lambda: window.panel.table.sorted.rowCount() == 1)
    window.outbound.table.selectRow(0)
    qtbot.mouseClick(window.outbound.remove, Qt.MouseButton.LeftButton)
    press(window, qtbot, QDialogButtonBox.StandardButton.Apply)
    until(lambda: client.rules(WORK) == (ACCEPT,))
    assert client.forwards(WORK).rules == (forward,)


def test_rules_whose_saving_was_not_answered_are_not_said_to_be_unsaved(
    window: QubeWindow, qtbot: QtBot, client: AdminClient, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mistake: "Nothing was saved", while dom0 had stored them."""
    store = AdminClient.set_rules

    def lose(self: AdminClient, qube: QubeName, rules: Iterable[OrdinaryRule]) -> None:
        store(self, qube, rules)
        raise CallError("no answer to the change")

    monkeypatch.setattr(AdminClient, "set_rules", lose)
    window.outbound.table.selectRow(0)
    qtbot.mouseClick(window.outbound.remove, Qt.MouseButton.LeftButton)
    press(window, qtbot, QDialogButtonBox.StandardButton.Apply)
    until(lambda: "no answer to the change" in window.message.text())
    assert window.message.text().startswith("It is not known whether the rules were saved")
    assert client.rules(WORK) == (ACCEPT,)


def test_both_halves_can_be_used(window: QubeWindow) -> None:
    heights = window.splitter.sizes()
    assert min(heights) > 150
    window.resize(700, 420)
    assert window.outbound.table.isVisible()
    assert window.panel.table.isVisible()


def test_nothing_can_be_edited_that_an_answer_under_way_would_throw_away(
    window: QubeWindow, qtbot: QtBot, client: AdminClient, until: Until
) -> None:
    window.outbound.table.selectRow(0)
    qtbot.mouseClick(window.outbound.remove, Qt.MouseButton.LeftButton)
    press(window, qtbot, QDialogButtonBox.StandardButton.Apply)
    assert not window.outbound.isEnabled()
    until(window.outbound.isEnabled)
    assert client.rules(WORK) == (ACCEPT,)
    assert not window.outbound.dirty
