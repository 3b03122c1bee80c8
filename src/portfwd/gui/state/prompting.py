# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""A qube's program asks for a port: which question is on show, who hears the answer, when a click counts.

Whoever asks may be hostile: it may ask a thousand times, name itself as it likes, and hope for a click or a key that
was meant for another window.
"""

import collections
import dataclasses
import enum
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from portfwd.client.sentences import duration
from portfwd.client.terminal import clean
from portfwd.wire.values import Proto, QubeName

log = logging.getLogger(__name__)

FOCUS_SECONDS = 1.0
"""How long a dialog must have had the focus before it can be agreed to; as Qubes' own prompts have it."""
TIMEOUT = 60.0
"""Seconds after which nobody is there: the answer is no."""
WAITING_MAX = 5
"""Different questions of one qube that may wait behind the one on show."""
ASKERS_MAX = 100
"""Repeats of one question that wait for its answer; more are denied at once."""
_WORDS_MAX = 60


class Decision(enum.Enum):
    """What the user says."""

    DENY = enum.auto()
    ONCE = enum.auto()
    UNTIL_SHUTDOWN = enum.auto()
    ALWAYS = enum.auto()


@dataclass(frozen=True, slots=True)
class Request:
    """What a program wants. `clients` and all but `untrusted_words` were made in dom0; `seconds` is the lifetime."""

    qube: QubeName
    label: str
    untrusted_words: str
    proto: Proto
    port: int
    target_port: int
    clients: str
    seconds: int

    @property
    def question(self) -> tuple[object, ...]:
        """Two requests with the same question are one. A longer lifetime is another question: nobody agreed to it."""
        return (self.qube, self.proto, self.port, self.target_port, self.clients, self.seconds)


@dataclass(frozen=True, slots=True)
class Limits:
    """What may be agreed to. A longer lifetime than `seconds_max` is cut, and the cut one is what is asked about."""

    allowed: frozenset[Decision] = frozenset(Decision)
    seconds_max: int = 86400


Answered = Callable[[Decision], None]


@dataclass(slots=True, eq=False)
class Prompt:
    """One question, and everyone who asked it. `deadline` is set once it is on show, in monotonic seconds.

    Each is itself only: the answer to an old one must not reach a new one that asks the same.
    """

    request: Request
    askers: list[Answered]
    deadline: float | None = None


class Prompts:
    """The questions of all qubes. Times are in monotonic seconds and given, so that this has no clock."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._queues: dict[QubeName, collections.deque[Prompt]] = {}

    def ask(self, request: Request, answered: Answered) -> None:
        """Take a question in. `answered` is called exactly once; at once with no, when too many wait."""
        request = dataclasses.replace(request, seconds=max(1, min(request.seconds, self.limits.seconds_max)))
        queue = self._queues.setdefault(request.qube, collections.deque())
        for prompt in queue:
            if prompt.request.question == request.question:
                if len(prompt.askers) < ASKERS_MAX:
                    prompt.askers.append(answered)
                else:
                    _tell([answered], Decision.DENY)
                return
        if len(queue) > WAITING_MAX:
            _tell([answered], Decision.DENY)
            return
        queue.append(Prompt(request, [answered]))

    def on_show(self, now: float) -> tuple[Prompt, ...]:
        """The first question of each qube; from now on its time runs."""
        first = tuple(queue[0] for queue in self._queues.values() if queue)
        for prompt in first:
            if prompt.deadline is None:
                prompt.deadline = now + TIMEOUT
        return first

    def answer(self, prompt: Prompt, decision: Decision) -> None:
        """Tell everyone who asked. What may not be agreed to is a no; a second answer is none."""
        queue = self._queues.get(prompt.request.qube)
        if queue is None or prompt not in queue:
            return
        queue.remove(prompt)
        if not queue:
            del self._queues[prompt.request.qube]
        _tell(prompt.askers, decision if decision in self.limits.allowed else Decision.DENY)

    def forget(self, qube: QubeName) -> None:
        """The qube has shut down: everything that it asked is answered with no."""
        for prompt in tuple(self._queues.get(qube, ())):
            self.answer(prompt, Decision.DENY)

    def expired(self, now: float) -> Iterator[Prompt]:
        """Those whose time on show is over."""
        for queue in tuple(self._queues.values()):
            if queue and queue[0].deadline is not None and queue[0].deadline <= now:
                yield queue[0]


class Gate:
    """Whether a click may count: after a second of focus, without a break."""

    def __init__(self) -> None:
        self._since: float | None = None

    def focus(self, has: bool, now: float) -> None:
        """The window has got the focus, or lost it."""
        if not has:
            self._since = None
        elif self._since is None:
            self._since = now

    def open(self, now: float) -> bool:
        """Whether the focus has been there for long enough."""
        return self._since is not None and now - self._since >= FOCUS_SECONDS


def words(untrusted: str) -> str:
    """What a program says of itself, made harmless: one short line of printable ASCII without double quotes."""
    # They are shown between double quotes, and must not be able to end those and go on in our name.
    text = " ".join(clean(untrusted[: 4 * _WORDS_MAX]).replace('"', "'").split())
    return text if len(text) <= _WORDS_MAX else f"{text[: _WORDS_MAX - 3]}..."


def sentence(request: Request) -> str:
    """What is asked, in our words."""
    target = "" if request.target_port == request.port else f" (its port {request.target_port})"
    return (
        f"{request.qube} asks to be reachable{target} at {request.proto} port {request.port}. "
        f"{request.clients} could connect, for {duration(request.seconds)}."
    )


def _tell(askers: list[Answered], decision: Decision) -> None:
    for answered in askers:
        try:
            answered(decision)
        except Exception:
            # One asker that is gone must not cost the others their answer.
            log.exception("an answer could not be delivered")
