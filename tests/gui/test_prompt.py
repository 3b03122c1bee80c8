# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The question whether a program gets a port: who may be asked, what counts as yes, and what a hostile qube can do."""

import dataclasses
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PyQt6.QtCore import Qt
from PyQt6.QtWidgets import QWidget
from pytestqt.qtbot import QtBot

from portfwd.gui.state.prompting import (
    ASKERS_MAX,
    TIMEOUT,
    WAITING_MAX,
    Decision,
    Gate,
    Limits,
    Prompts,
    Request,
    sentence,
    words,
)
from portfwd.gui.widgets.prompt_dialog import PromptDesk, PromptDialog
from portfwd.wire.values import Proto, QubeName

ASKED = Request(QubeName("work"), "blue", "Syncthing", Proto.TCP, 22000, 22000, "LAN hosts", 3600)
Until = Callable[[Callable[[], bool]], None]


def other(port: int, qube: str = "work") -> Request:
    return dataclasses.replace(ASKED, port=port, target_port=port, qube=QubeName(qube))


def test_what_is_asked_is_said_in_our_words() -> None:
    assert sentence(ASKED) == "work asks to be reachable at tcp port 22000. LAN hosts could connect, for 1h00m."


@pytest.mark.parametrize(
    ("untrusted", "shown"),
    [
        ("<b>Update</b>", "<b>Update</b>"),
        ("two\nlines\x1b[2J", "two?lines?[2J"),
        ("x" * 10_000, "x" * 57 + "..."),
        ("", ""),
    ],
)
def test_a_programs_words_stay_one_short_harmless_line(untrusted: str, shown: str) -> None:
    assert words(untrusted) == shown


def test_repeats_are_one_question_and_everybody_gets_the_answer() -> None:
    prompts, answers = Prompts(), []
    for name in ("first", "second"):
        prompts.ask(ASKED, lambda decision, name=name: answers.append((name, decision)))
    (prompt,) = prompts.on_show(0)
    prompts.answer(prompt, Decision.ONCE)
    prompts.answer(prompt, Decision.ALWAYS)
    assert answers == [("first", Decision.ONCE), ("second", Decision.ONCE)]
    assert prompts.on_show(0) == ()


def test_a_longer_lifetime_is_another_question_and_repeats_have_a_bound() -> None:
    prompts, answers = Prompts(), []
    prompts.ask(ASKED, answers.append)
    prompts.ask(dataclasses.replace(ASKED, seconds=ASKED.seconds * 2), answers.append)
    prompts.answer(prompts.on_show(0)[0], Decision.ONCE)
    assert answers == [Decision.ONCE]
    assert prompts.on_show(0)[0].request.seconds == ASKED.seconds * 2
    for _ in range(ASKERS_MAX + 5):
        prompts.ask(other(7, "personal"), answers.append)
    assert answers == [Decision.ONCE] + [Decision.DENY] * 5


def test_one_question_of_a_qube_at_a_time_and_too_many_are_denied() -> None:
    prompts, answers = Prompts(), []
    for port in range(1000):
        prompts.ask(other(20000 + port), answers.append)
    prompts.ask(other(1, "personal"), answers.append)
    assert [prompt.request.qube for prompt in prompts.on_show(0)] == ["work", "personal"]
    assert answers == [Decision.DENY] * (1000 - WAITING_MAX - 1)


def test_an_asker_that_fails_does_not_cost_the_others_their_answer(caplog: pytest.LogCaptureFixture) -> None:
    prompts, answers = Prompts(), []

    def broken(_: Decision) -> None:
        raise OSError("gone")

    prompts.ask(ASKED, broken)
    prompts.ask(ASKED, answers.append)
    prompts.answer(prompts.on_show(0)[0], Decision.ONCE)
    assert answers == [Decision.ONCE]
    assert "gone" in caplog.text


def test_what_may_not_be_agreed_to_is_denied_and_long_lifetimes_are_cut() -> None:
    answers: list[Decision] = []
    prompts = Prompts(Limits(frozenset({Decision.ONCE}), seconds_max=600))
    prompts.ask(dataclasses.replace(ASKED, seconds=10**9), answers.append)
    (prompt,) = prompts.on_show(0)
    assert prompt.request.seconds == 600
    prompts.answer(prompt, Decision.ALWAYS)
    assert answers == [Decision.DENY]


def test_the_time_runs_only_while_a_question_is_on_show() -> None:
    prompts = Prompts()
    prompts.ask(ASKED, lambda _: None)
    prompts.ask(other(5), lambda _: None)
    prompts.on_show(0)
    assert [p.request.port for p in prompts.expired(TIMEOUT)] == [22000]
    prompts.answer(next(prompts.expired(TIMEOUT)), Decision.DENY)
    prompts.on_show(TIMEOUT)
    assert list(prompts.expired(TIMEOUT + 1)) == []


@given(st.lists(st.tuples(st.sampled_from(["ask", "answer", "forget"]), st.integers(0, 3), st.integers(1, 9))))
def test_every_question_is_answered_once_and_each_qube_has_one_on_show(steps: list[tuple[str, int, int]]) -> None:
    prompts, asked = Prompts(), []
    for step, qube, port in steps:
        if step == "ask":
            answers: list[Decision] = []
            asked.append(answers)
            prompts.ask(other(port, f"qube{qube}"), answers.append)
        elif step == "forget":
            prompts.forget(QubeName(f"qube{qube}"))
        for prompt in prompts.on_show(0)[:1] if step == "answer" else ():
            prompts.answer(prompt, Decision.ONCE)
        shown = [prompt.request.qube for prompt in prompts.on_show(0)]
        assert len(shown) == len(set(shown))
    for qube in range(4):
        prompts.forget(QubeName(f"qube{qube}"))
    assert [len(answers) for answers in asked] == [1] * len(asked)


def test_a_click_counts_after_a_second_of_unbroken_focus() -> None:
    gate = Gate()
    gate.focus(True, 10.0)
    assert not gate.open(10.9)
    gate.focus(False, 10.95)
    gate.focus(True, 11.0)
    assert not gate.open(11.9)
    assert gate.open(12.0)


@pytest.fixture
def dialog(qtbot: QtBot) -> Iterator[PromptDialog]:
    dialog = PromptDialog(ASKED, Limits(), 60)
    qtbot.addWidget(dialog)
    dialog.decisions = []  # type: ignore[attr-defined]
    dialog.decided.connect(dialog.decisions.append)  # type: ignore[attr-defined]
    dialog.show()
    qtbot.waitUntil(dialog.isActiveWindow)
    yield dialog


def decisions(dialog: PromptDialog) -> list[Decision]:
    return dialog.decisions  # type: ignore[attr-defined,no-any-return]


def test_escape_and_close_and_enter_deny(dialog: PromptDialog, qtbot: QtBot) -> None:
    qtbot.keyClick(dialog, Qt.Key.Key_Escape)
    dialog.close()
    assert decisions(dialog) == [Decision.DENY]


def test_enter_denies(dialog: PromptDialog, qtbot: QtBot) -> None:
    qtbot.keyClick(dialog, Qt.Key.Key_Return)
    assert decisions(dialog) == [Decision.DENY]


def test_allow_is_dead_at_first_and_lives_after_a_second_of_focus(dialog: PromptDialog, qtbot: QtBot) -> None:
    once = dialog.allows[Decision.ONCE]
    qtbot.mouseClick(once, Qt.MouseButton.LeftButton)
    qtbot.keyClick(dialog, Qt.Key.Key_O, Qt.KeyboardModifier.AltModifier)
    assert decisions(dialog) == []
    qtbot.waitUntil(once.isEnabled, timeout=3000)
    qtbot.mouseClick(once, Qt.MouseButton.LeftButton)
    assert decisions(dialog) == [Decision.ONCE]


def test_a_window_that_steals_the_focus_makes_allow_dead_again(dialog: PromptDialog, qtbot: QtBot) -> None:
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


def test_no_answer_is_a_no(qtbot: QtBot) -> None:
    dialog = PromptDialog(ASKED, Limits(), 0.3)
    qtbot.addWidget(dialog)
    with qtbot.waitSignal(dialog.decided, timeout=3000) as said:
        dialog.show()
    assert said.args == [Decision.DENY]


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
    desk.ask(other(5), answers.append)
    first = desk.dialogs[ASKED.qube]
    assert "22000" in first.question.text()
    first.reject()
    qtbot.waitUntil(lambda: ASKED.qube in desk.dialogs, timeout=3000)
    assert "port 5." in desk.dialogs[ASKED.qube].question.text()
    desk.forget(ASKED.qube)
    assert answers == [Decision.DENY, Decision.DENY]
