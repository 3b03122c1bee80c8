# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Questions under any order of events, and any words: what test_prompt.py shows by examples."""

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from portfwd.gui.state.prompting import FOCUS_SECONDS, TIMEOUT, Decision, Gate, Prompts, Request, words
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
