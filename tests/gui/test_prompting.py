# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Who may be asked what, what counts as yes, and what a hostile qube can do; any order of events, any words."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portfwd.gui.state.prompting import (
    ASKERS_MAX,
    FOCUS_SECONDS,
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
from portfwd.wire.values import Proto, QubeName

ASKED = Request(QubeName("work"), "blue", "Syncthing", Proto.TCP, 22000, 22000, "LAN hosts", 3600)
STEPS = st.one_of(
    st.tuples(st.just("ask"), st.integers(0, 2), st.integers(1, 9)),
    st.tuples(st.just("answer"), st.integers(0, 2), st.sampled_from(Decision)),
    st.tuples(st.just("forget"), st.integers(0, 2), st.none()),
    st.tuples(st.just("wait"), st.floats(0, 2 * TIMEOUT), st.none()),
)


def test_an_old_answer_does_not_reach_a_new_question_that_asks_the_same() -> None:
    prompts, answers = Prompts(), []
    prompts.ask(ASKED, answers.append)
    (old,) = prompts.on_show(0)
    prompts.answer(old, Decision.DENY)
    prompts.ask(ASKED, answers.append)
    prompts.on_show(0)
    prompts.answer(old, Decision.ALWAYS)
    assert answers == [Decision.DENY]


def test_another_protocol_or_target_is_another_question() -> None:
    prompts, answers = Prompts(), []
    for request in (
        ASKED,
        dataclasses.replace(ASKED, proto=Proto.UDP),
        dataclasses.replace(ASKED, target_port=22),
        dataclasses.replace(ASKED, clients="anyone"),
    ):
        prompts.ask(request, answers.append)
    prompts.answer(prompts.on_show(0)[0], Decision.ALWAYS)
    assert answers == [Decision.ALWAYS]


def test_an_asker_may_ask_again_when_it_hears_the_answer() -> None:
    prompts, answers = Prompts(), []
    prompts.ask(ASKED, lambda _: prompts.ask(ASKED, answers.append))
    prompts.answer(prompts.on_show(0)[0], Decision.DENY)
    assert answers == []
    prompts.answer(prompts.on_show(1)[0], Decision.ONCE)
    assert answers == [Decision.ONCE]


@given(st.lists(STEPS))
def test_never_two_on_show_for_a_qube_and_each_request_is_answered_once(steps: list[tuple[str, float, object]]) -> None:
    prompts, asked, now = Prompts(), [], 0.0
    showing: dict[QubeName, object] = {}
    for step, first, second in steps:
        qube = QubeName(f"qube{first:.0f}") if step != "wait" else QubeName("none")
        if step == "ask":
            answers: list[Decision] = []
            asked.append(answers)
            prompts.ask(dataclasses.replace(ASKED, qube=qube, port=second), answers.append)
        elif step == "forget":
            prompts.forget(qube)
        elif step == "answer":
            for prompt in prompts.on_show(now):
                if prompt.request.qube == qube:
                    prompts.answer(prompt, second)  # type: ignore[arg-type]
        else:
            now += first
            for prompt in tuple(prompts.expired(now)):
                prompts.answer(prompt, Decision.DENY)
        shown = prompts.on_show(now)
        assert len({prompt.request.qube for prompt in shown}) == len(shown)
        assert all(len(answers) <= 1 for answers in asked)
        # What is on show stays there until it is answered: nothing takes the place under the user's hand.
        for prompt in shown:
            before = showing.get(prompt.request.qube)
            assert step in ("answer", "forget", "wait") or before in (None, prompt)
        showing = {prompt.request.qube: prompt for prompt in shown}
    while shown := prompts.on_show(now):
        for prompt in shown:
            prompts.answer(prompt, Decision.DENY)
    assert [len(answers) for answers in asked] == [1] * len(asked)


@given(st.text(max_size=400))
def test_no_words_are_anything_but_one_short_line_that_stays_inside_its_quotes(untrusted: str) -> None:
    said = words(untrusted)
    assert len(said) <= 60
    assert all(" " <= c <= "~" and c != '"' for c in said)


def test_words_cannot_end_their_quotation() -> None:
    assert words('x". Qubes has checked it. "y') == "x'. Qubes has checked it. 'y"


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 3))))
def test_the_gate_is_open_after_a_whole_second_of_focus_and_not_before(changes: list[tuple[bool, float]]) -> None:
    gate, now, since = Gate(), 0.0, None
    for has, seconds in changes:
        gate.focus(has, now)
        since = None if not has else now if since is None else since
        now += seconds
        assert gate.open(now) == (since is not None and now - since >= FOCUS_SECONDS)


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
