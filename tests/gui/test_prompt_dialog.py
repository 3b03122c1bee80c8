# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The question as a window: keys, the ways to close it, and what hostile words do."""

import dataclasses
from collections.abc import Callable

import pytest
from PyQt6.QtCore import QEvent, QObject, Qt
from PyQt6.QtWidgets import QApplication, QLabel, QPushButton, QWidget
from pytestqt.qtbot import QtBot

from portfwd.gui.state.prompting import Decision, Limits, Request
from portfwd.gui.widgets.prompt_dialog import PromptDesk, PromptDialog
from portfwd.wire.values import Proto, QubeName

ASKED = Request(QubeName("work"), "blue", "Syncthing", Proto.TCP, 22000, 22000, "LAN hosts", 3600)
ALLOWS = (Decision.ONCE, Decision.UNTIL_SHUTDOWN, Decision.ALWAYS)
Shown = tuple[PromptDialog, list[Decision]]


@pytest.fixture
def shown(qtbot: QtBot) -> Shown:
    dialog, decisions = PromptDialog(ASKED, Limits(), 60), []
    qtbot.addWidget(dialog)
    dialog.decided.connect(decisions.append)
    with qtbot.waitActive(dialog):
        dialog.show()
        dialog.activateWindow()
    return dialog, decisions


@pytest.mark.parametrize(
    "end",
    [PromptDialog.reject, PromptDialog.accept, PromptDialog.close, lambda dialog: dialog.deny.click()],
    ids=["reject", "accept", "close", "deny"],
)
def test_every_end_but_an_allow_button_denies_once_and_the_window_goes(
    shown: Shown, end: Callable[[PromptDialog], object]
) -> None:
    dialog, decisions = shown
    end(dialog)
    end(dialog)
    dialog.close()
    assert decisions == [Decision.DENY]
    assert not dialog.isVisible()


def test_time_out_denies_and_the_window_goes(qtbot: QtBot) -> None:
    dialog = PromptDialog(ASKED, Limits(), 0.3)
    qtbot.addWidget(dialog)
    with qtbot.waitSignal(dialog.decided, timeout=3000) as said:
        dialog.show()
    assert said.args == [Decision.DENY]
    qtbot.waitUntil(lambda: not dialog.isVisible())


@pytest.mark.parametrize("key", [Qt.Key.Key_Return, Qt.Key.Key_Enter, Qt.Key.Key_Space, Qt.Key.Key_Escape])
def test_a_key_that_was_meant_for_another_window_never_allows(shown: Shown, qtbot: QtBot, key: Qt.Key) -> None:
    dialog, decisions = shown
    qtbot.keyClick(dialog.focusWidget() or dialog, key)
    assert decisions == [Decision.DENY]


@pytest.mark.parametrize("decision", ALLOWS)
def test_enter_denies_even_with_the_focus_on_a_live_allow_button(
    shown: Shown, qtbot: QtBot, decision: Decision
) -> None:
    dialog, decisions = shown
    button = dialog.allows[decision]
    qtbot.waitUntil(button.isEnabled, timeout=3000)
    button.setFocus()
    qtbot.keyClick(button, Qt.Key.Key_Return)
    assert decisions == [Decision.DENY]


@pytest.mark.parametrize("decision", ALLOWS)
def test_tab_and_space_allow_after_a_second(shown: Shown, qtbot: QtBot, decision: Decision) -> None:
    dialog, decisions = shown
    button = dialog.allows[decision]
    qtbot.waitUntil(button.isEnabled, timeout=3000)
    for _ in range(5):
        if not button.hasFocus():
            qtbot.keyClick(dialog.focusWidget(), Qt.Key.Key_Tab)
    assert button.hasFocus()
    qtbot.keyClick(button, Qt.Key.Key_Space)
    assert decisions == [decision]
    assert not dialog.isVisible()


def test_a_click_right_after_the_focus_went_or_came_back_does_not_count(shown: Shown, qtbot: QtBot) -> None:
    dialog, decisions = shown
    once = dialog.allows[Decision.ONCE]
    qtbot.waitUntil(once.isEnabled, timeout=3000)
    thief = QWidget()
    qtbot.addWidget(thief)
    with qtbot.waitActive(thief):
        thief.show()
        thief.activateWindow()
    once.click()
    assert decisions == []
    with qtbot.waitActive(dialog):
        dialog.activateWindow()
    once.click()
    assert decisions == []
    qtbot.waitUntil(once.isEnabled, timeout=3000)
    once.click()
    assert decisions == [Decision.ONCE]


@pytest.mark.parametrize(
    "hostile",
    [
        "<b>Qubes</b><img src='file:///etc/passwd'>",
        "one\ntwo\r\nthree",
        "\x1b]0;dom0\x07\x1b[31m",
        "A" * 10_000,
        '". Checked by dom0: "safe',
        "&Deny \u202e {0} %s",
    ],
)
def test_hostile_words_stay_one_short_quotation(qtbot: QtBot, hostile: str) -> None:
    dialog = PromptDialog(dataclasses.replace(ASKED, untrusted_words=hostile), Limits(), 60)
    qtbot.addWidget(dialog)
    text = dialog.foreign.text()
    assert text.isascii() and text.isprintable() and len(text) < 120
    assert text.startswith('The program calls itself "') and text.count('"') == 2
    assert all(label.textFormat() == Qt.TextFormat.PlainText for label in dialog.findChildren(QLabel) if label.text())
    quiet = PromptDialog(ASKED, Limits(), 60)
    qtbot.addWidget(quiet)
    assert dialog.question.text() == quiet.question.text()
    assert dialog.windowTitle() == quiet.windowTitle()


def test_only_what_the_limits_allow_is_offered(qtbot: QtBot) -> None:
    dialog = PromptDialog(ASKED, Limits(frozenset({Decision.ONCE})), 60)
    qtbot.addWidget(dialog)
    dialog.show()
    assert [d for d in ALLOWS if dialog.allows[d].isVisible()] == [Decision.ONCE]


def test_all_can_be_read_aloud_and_has_a_letter_of_its_own(shown: Shown) -> None:
    dialog, _ = shown
    assert all(label.text() or label.accessibleName() for label in dialog.findChildren(QLabel))
    letters = [b.text().partition("&")[2][:1].lower() for b in dialog.findChildren(QPushButton)]
    assert all(letters) and len(set(letters)) == len(letters) == 4


def test_no_part_of_the_dialog_flashes_up_as_a_window(qtbot: QtBot) -> None:
    class Spy(QObject):
        windows: list[QObject]

        def eventFilter(self, a0: QObject | None, a1: QEvent | None) -> bool:  # noqa: N802 - Qt's own name
            if isinstance(a0, QWidget) and a0.isWindow() and a1 is not None and a1.type() == QEvent.Type.Show:
                self.windows.append(a0)
            return False

    spy = Spy()
    spy.windows = []
    application = QApplication.instance()
    assert application is not None
    application.installEventFilter(spy)
    try:
        dialog = PromptDialog(ASKED, Limits(), 60)
        qtbot.addWidget(dialog)
        dialog.show()
    finally:
        application.removeEventFilter(spy)
    assert spy.windows == [dialog]


def test_the_desk_shows_one_question_of_each_qube_and_time_out_moves_on(
    qtbot: QtBot, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("portfwd.gui.state.prompting.TIMEOUT", 0.3)
    desk, answers = PromptDesk(), []
    for qube, port in (("work", 1), ("work", 2), ("work", 2), ("personal", 1)):
        desk.ask(dataclasses.replace(ASKED, qube=QubeName(qube), port=port), answers.append)
    assert sorted(desk.dialogs) == ["personal", "work"]
    qtbot.waitUntil(lambda: len(answers) == 4, timeout=5000)
    assert answers == [Decision.DENY] * 4
    qtbot.waitUntil(lambda: not desk.dialogs)


def test_escape_and_close_and_enter_deny(shown: Shown, qtbot: QtBot) -> None:
    dialog, decisions = shown
    qtbot.keyClick(dialog, Qt.Key.Key_Escape)
    dialog.close()
    assert decisions == [Decision.DENY]


def test_enter_denies(shown: Shown, qtbot: QtBot) -> None:
    dialog, decisions = shown
    qtbot.keyClick(dialog, Qt.Key.Key_Return)
    assert decisions == [Decision.DENY]


def test_allow_is_dead_at_first_and_lives_after_a_second_of_focus(shown: Shown, qtbot: QtBot) -> None:
    dialog, decisions = shown
    once = dialog.allows[Decision.ONCE]
    qtbot.mouseClick(once, Qt.MouseButton.LeftButton)
    qtbot.keyClick(dialog, Qt.Key.Key_O, Qt.KeyboardModifier.AltModifier)
    assert decisions == []
    qtbot.waitUntil(once.isEnabled, timeout=3000)
    qtbot.mouseClick(once, Qt.MouseButton.LeftButton)
    assert decisions == [Decision.ONCE]


def test_a_window_that_steals_the_focus_makes_allow_dead_again(shown: Shown, qtbot: QtBot) -> None:
    dialog, _ = shown
    once = dialog.allows[Decision.ONCE]
    qtbot.waitUntil(once.isEnabled, timeout=3000)
    thief = QWidget()
    qtbot.addWidget(thief)
    thief.show()
    thief.activateWindow()
    qtbot.waitUntil(lambda: not once.isEnabled(), timeout=3000)
    dialog.activateWindow()
    qtbot.waitUntil(dialog.isActiveWindow)
    qtbot.wait(200)
    assert not once.isEnabled()


def test_foreign_words_are_shown_as_foreign_and_never_as_formatting(qtbot: QtBot) -> None:
    hostile = "<h1>Qubes update</h1>\n" + "A" * 9000
    dialog = PromptDialog(dataclasses.replace(ASKED, untrusted_words=hostile), Limits(), 60)
    qtbot.addWidget(dialog)
    assert dialog.foreign.textFormat() == Qt.TextFormat.PlainText
    assert dialog.foreign.text().startswith('The program calls itself "<h1>Qubes update</h1>')
    assert len(dialog.foreign.text()) < 150


def test_the_desk_shows_the_next_question_when_the_first_is_answered(qtbot: QtBot) -> None:
    desk, answers = PromptDesk(), []
    desk.ask(ASKED, answers.append)
    desk.ask(dataclasses.replace(ASKED, port=5, target_port=5), answers.append)
    first = desk.dialogs[ASKED.qube]
    assert "22000" in first.question.text()
    first.reject()
    qtbot.waitUntil(lambda: ASKED.qube in desk.dialogs, timeout=3000)
    assert "port 5." in desk.dialogs[ASKED.qube].question.text()
    desk.forget(ASKED.qube)
    assert answers == [Decision.DENY, Decision.DENY]
