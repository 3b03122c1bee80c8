# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The editor of the ordinary rules by itself: no dom0, no window around it."""

import time
from collections.abc import Iterator

import pytest
from PyQt6.QtCore import QPoint, Qt
from PyQt6.QtWidgets import QDialogButtonBox, QLabel, QMessageBox, QPushButton
from pytestqt.qtbot import QtBot

from portfwd.client.text.sentences import local_time
from portfwd.gui.qube import outbound_dialog
from portfwd.gui.qube.outbound_dialog import OutboundDialog
from portfwd.gui.qube.outbound_view import OutboundView
from portfwd.gui.state.outbound_draft import Ending, OutField, Target
from portfwd.model.ordinary import OrdinaryRule, Protocol, parse_ordinary

ALL, NOTHING = parse_ordinary("action=accept"), parse_ordinary("action=drop")
A, B = parse_ordinary("action=drop dst4=10.0.0.1"), parse_ordinary("action=drop dst4=10.0.0.2")
ODD = parse_ordinary(
    "action=drop dst6=2001:DB8::1/32 proto=icmp icmptype=8 specialtarget=dns expire=4000000000 comment= by  hand"
)


@pytest.fixture
def view(qtbot: QtBot) -> Iterator[OutboundView]:
    view = OutboundView()
    qtbot.addWidget(view)
    view.show_rules((A, B, ALL))
    view.resize(900, 400)
    view.show()
    yield view


def click(button: QPushButton | None, qtbot: QtBot) -> None:
    assert button is not None
    qtbot.mouseClick(button, Qt.MouseButton.LeftButton)


def dialog_of(view: OutboundView) -> OutboundDialog:
    (dialog,) = view.findChildren(OutboundDialog)
    return dialog


def ok_of(dialog: OutboundDialog) -> QPushButton:
    button = dialog.buttons.button(QDialogButtonBox.StandardButton.Ok)
    assert button is not None
    return button


def cells(view: OutboundView, row: int) -> list[str]:
    model = view.table.model()
    assert model is not None
    return [model.data(model.index(row, column)) for column in range(model.columnCount())]


def double_click(view: OutboundView, row: int, qtbot: QtBot) -> None:
    model, port = view.table.model(), view.table.viewport()
    assert model is not None
    assert port is not None
    where: QPoint = view.table.visualRect(model.index(row, 1)).center()
    qtbot.mouseClick(port, Qt.MouseButton.LeftButton, pos=where)
    qtbot.mouseDClick(port, Qt.MouseButton.LeftButton, pos=where)


def test_a_rule_is_added_before_the_one_that_decides_about_everything(view: OutboundView, qtbot: QtBot) -> None:
    assert not view.dirty
    click(view.add, qtbot)
    dialog = dialog_of(view)
    qtbot.keyClicks(dialog.host, "192.168.1.0/24")
    dialog.proto.setCurrentIndex(dialog.proto.findData(Protocol.TCP))
    qtbot.keyClicks(dialog.ports, "80-90")
    assert dialog.sentence.text() == "Accept tcp to 192.168.1.0/24, ports 80-90"
    new = dialog.rule
    assert new == parse_ordinary("action=accept dst4=192.168.1.0/24 proto=tcp dstports=80-90")
    with qtbot.waitSignal(view.changed):
        click(ok_of(dialog), qtbot)
    assert view.rules() == (A, B, new, ALL)
    assert view.dirty


def test_a_double_click_edits_and_escape_leaves_all_as_it_was(view: OutboundView, qtbot: QtBot) -> None:
    double_click(view, 1, qtbot)
    dialog = dialog_of(view)
    assert dialog.host.text() == "10.0.0.2/32"
    dialog.host.setText("10.0.0.9")
    qtbot.keyClick(dialog, Qt.Key.Key_Escape)
    assert not view.dirty
    qtbot.waitUntil(lambda: not view.findChildren(OutboundDialog))
    double_click(view, 1, qtbot)
    dialog_of(view).host.setText("10.0.0.9")
    qtbot.keyClick(dialog_of(view), Qt.Key.Key_Return)
    assert view.rules() == (A, parse_ordinary("action=drop dst4=10.0.0.9"), ALL)


def test_enter_edits_and_the_delete_key_removes(view: OutboundView, qtbot: QtBot) -> None:
    qtbot.keyClick(view.table, Qt.Key.Key_Delete)
    assert view.rules() == (A, B, ALL), "nothing is selected"
    view.table.selectRow(0)
    qtbot.keyClick(view.table, Qt.Key.Key_Return)
    assert dialog_of(view).host.text() == "10.0.0.1/32"
    qtbot.keyClick(dialog_of(view), Qt.Key.Key_Escape)
    with qtbot.waitSignal(view.changed):
        qtbot.keyClick(view.table, Qt.Key.Key_Delete)
    assert view.rules() == (B, ALL)
    click(view.remove, qtbot)
    assert view.rules() == (ALL,)
    click(view.remove, qtbot)
    assert view.rules() == ()
    assert not view.remove.isEnabled()
    assert view.hint.text() == "What no rule accepts is dropped."


def test_rules_move_with_their_selection(view: OutboundView, qtbot: QtBot) -> None:
    view.table.selectRow(0)
    assert not view.up.isEnabled()
    click(view.down, qtbot)
    click(view.down, qtbot)
    assert view.rules() == (B, ALL, A)
    assert not view.down.isEnabled()
    assert view.hint.text() == "Rule 1 decides about everything; the 1 after it never matter."
    click(view.up, qtbot)
    click(view.up, qtbot)
    assert view.rules() == (A, B, ALL)
    assert not view.dirty


def test_an_odd_rule_of_the_command_line_is_shown_and_editable(view: OutboundView, qtbot: QtBot) -> None:
    view.show_rules((ODD,))
    action, to, proto, ports, ends, comment = cells(view, 0)
    assert (action, proto, ports, comment) == ("drop", "icmp", "type 8", " by  hand")
    assert to == "the name servers at 2001:DB8::1/32"
    assert ends == local_time(4_000_000_000, time.time())
    view.table.selectRow(0)
    click(view.edit, qtbot)
    dialog = dialog_of(view)
    assert dialog.rule == ODD
    assert dialog.ending.currentData() is Ending.KEEP
    dialog.icmptype.setText("128")
    click(ok_of(dialog), qtbot)
    assert view.rules() == (parse_ordinary(ODD.api_line().replace("icmptype=8", "icmptype=128")),)


@pytest.mark.parametrize(
    ("edit", "text", "field"),
    [
        ("host", "10.0.0.0/99", OutField.HOST),
        ("ports", "90-80", OutField.PORTS),
        ("date", "1999-01-01", OutField.DATE),
        ("comment", "\N{SNOWMAN}", OutField.COMMENT),
    ],
)
def test_with_invalid_text_the_dialog_cannot_be_accepted(qtbot: QtBot, edit: str, text: str, field: OutField) -> None:
    dialog = OutboundDialog(parse_ordinary("action=accept dst4=1.2.3.4 proto=tcp"))
    qtbot.addWidget(dialog)
    dialog.show()
    if field is OutField.DATE:
        dialog.ending.setCurrentIndex(dialog.ending.findData(Ending.DATE))
    made: list[OrdinaryRule] = []
    dialog.made.connect(made.append)
    getattr(dialog, edit).setText(text)
    assert [shown for shown, label in dialog.errors.items() if label.isVisible()] == [field]
    assert dialog.errors[field].text()
    # Beside means right below, in the same column.
    assert dialog.errors[field].geometry().left() == getattr(dialog, edit).geometry().left()
    assert dialog.rule is None
    assert not ok_of(dialog).isEnabled()
    qtbot.keyClick(dialog, Qt.Key.Key_Return)
    dialog.buttons.accepted.emit()
    assert dialog.isVisible()
    assert made == []


def test_only_the_fields_that_matter_are_shown_each_with_its_label(qtbot: QtBot) -> None:
    dialog = OutboundDialog()
    qtbot.addWidget(dialog)
    dialog.show()
    buddies = {label.buddy(): label for label in dialog.findChildren(QLabel) if label.buddy() is not None}
    fields = (dialog.host, dialog.ports, dialog.icmptype, dialog.date)

    def shown() -> list[bool]:
        assert [buddies[field].isVisible() for field in fields] == [field.isVisible() for field in fields]
        return [field.isVisible() for field in fields]

    assert shown() == [True, False, False, False]
    dialog.target.setCurrentIndex(dialog.target.findData(Target.ANYWHERE))
    dialog.proto.setCurrentIndex(dialog.proto.findData(Protocol.ICMP))
    dialog.ending.setCurrentIndex(dialog.ending.findData(Ending.DATE))
    assert shown() == [False, False, True, True]


def test_the_minutes_count_from_ok(qtbot: QtBot, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_800_000_000.0
    monkeypatch.setattr(outbound_dialog.time, "time", lambda: now)
    dialog = OutboundDialog(A)
    qtbot.addWidget(dialog)
    dialog.ending.setCurrentIndex(dialog.ending.findData(Ending.MINUTES_15))
    now += 1000
    made: list[OrdinaryRule] = []
    dialog.made.connect(made.append)
    ok_of(dialog).click()
    assert [rule.expire for rule in made] == ["1800001900"]


def test_an_edit_never_falls_upon_another_rule_when_the_list_is_read_anew(view: OutboundView, qtbot: QtBot) -> None:
    new = parse_ordinary("action=drop dst4=10.0.0.9")
    for newer, wanted in (((B, ALL), (new, ALL)), ((A, ALL), (A, new, ALL)), ((), (new,))):
        view.show_rules((A, B, ALL))
        view.table.selectRow(1)
        click(view.edit, qtbot)
        dialog = dialog_of(view)
        dialog.host.setText("10.0.0.9")
        view.show_rules(newer)
        click(ok_of(dialog), qtbot)
        assert view.rules() == wanted
        qtbot.waitUntil(lambda: not view.findChildren(OutboundDialog))


def test_allow_and_deny_everything_ask_before_a_rule_is_lost(view: OutboundView, qtbot: QtBot) -> None:
    for rules in ((A, B, ALL), (A,)):
        view.show_rules(rules)
        click(view.deny, qtbot)
        (box,) = view.findChildren(QMessageBox)
        assert box.informativeText() == "Drop everything to anywhere"
        assert view.rules() == rules
        click(box.button(QMessageBox.StandardButton.Cancel), qtbot)  # type: ignore[arg-type]
        assert view.rules() == rules
        qtbot.waitUntil(lambda: not view.findChildren(QMessageBox))
        click(view.deny, qtbot)
        (box,) = view.findChildren(QMessageBox)
        click(box.button(QMessageBox.StandardButton.Yes), qtbot)  # type: ignore[arg-type]
        assert view.rules() == (NOTHING,)
        qtbot.waitUntil(lambda: not view.findChildren(QMessageBox))
    # Nothing is lost now that the other button does not bring back.
    click(view.allow, qtbot)
    assert view.rules() == (ALL,)
    assert view.findChildren(QMessageBox) == []
