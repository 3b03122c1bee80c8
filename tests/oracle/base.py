# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""How the model-based test works: events happen to a Driver and to the oracle's Home; after each both must agree."""

import collections
import contextlib
import copy
import dataclasses
import random
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from hypothesis import strategies as st
from hypothesis.errors import HypothesisException
from hypothesis.stateful import RuleBasedStateMachine, rule

from tests.oracle.driver import Driver, Question, Refused
from tests.oracle.rules import Forged, Home, Qube, Rule, Way

SOURCES = ("neighbours", "neighbours", "any", "192.168.1.20/32", "192.168.0.0/16", "0.0.0.0/0", "2001:db8:1::/64")
INSIDE = ("neighbours", "neighbours", "any", "10.137.0.0/24", "fd09:24ef:4179::/64", "192.168.1.20/32")
Reached = dict[tuple[str, str, Way], tuple[str, int]]
EVERYBODY = frozenset({"*"})
"""As those who are touched: no connection is sure to outlive the event."""


E = TypeVar("E", bound=Callable[..., None])


@dataclasses.dataclass
class Figures:
    """What happened in all runs; `steps` are those of the last one."""

    events: "collections.Counter[str]" = dataclasses.field(default_factory=collections.Counter)
    questions: int = 0
    forged: "collections.Counter[str]" = dataclasses.field(default_factory=collections.Counter)
    """By sender; those that were heard, as they must, once more as "heard"."""
    seconds: list[float] = dataclasses.field(default_factory=list)
    steps: list[str] = dataclasses.field(default_factory=list)


class ViolationError(BaseException):
    """No Exception: hypothesis would try it again, which takes long and would show something else."""


@dataclasses.dataclass
class Held:
    """An open connection: the qube and port that it reached, and the qubes on its way with the client, if it is one."""

    answer: tuple[str, int]
    way: set[str]


def event(function: E) -> E:
    """Mark a method as an event that may happen at any time; it does nothing where it cannot."""
    function.is_event = True  # type: ignore[attr-defined]
    return function


class Base(RuleBasedStateMachine):
    """Subclasses say what is driven. `sample` shut ways are tried after each event, `between` on the way there.

    `forged`: so many datagrams with made up sources are sent after each event.
    """

    make: Callable[[], Driver]
    figures = Figures()
    sample = 24
    between = 6
    forged = 8
    lifetimes: tuple[int, ...] = (1, 5, 60)
    repeatable = True
    """Whether the same seed gives the same run."""
    most_held = 4
    often: tuple[str, ...] = ("add", "add", "replace", "start", "start", "switch")
    """Events that are more likely than others: without rules and running qubes the others would mean nothing."""
    dead_patience = 0.2
    """Seconds that a connection is given to show that it lives although it must not."""

    def __init__(self) -> None:
        super().__init__()
        self.figures.steps.clear()
        self.held: dict[Question, Held] = {}
        self.random = random.Random(0)
        self.added = 0
        self.default = "sys-firewall"
        with self.found():
            self.driver = type(self).make()
        self.home = self.driver.home()
        self.outermost = [q.name for q in self.home.qubes.values() if q.netvm is None]
        self.before = copy.deepcopy(self.home)
        try:
            with self.found():
                self.settle("begin")
        except BaseException:
            # Nobody calls teardown() of what has not begun.
            self.driver.close()
            raise

    def teardown(self) -> None:
        """Nothing is left behind."""
        for question in self.held:
            self.driver.release(question)
        self.driver.close()

    def happen(self, kind: str, act: Callable[[], object], touched: Iterable[str] = (), words: object = "") -> None:
        """Let an event happen that the model knows already, and compare.

        touched: those who lose connections by the event itself, whatever the rules say. words: for the list of steps.
        """
        began = time.monotonic()
        self.figures.steps.append(f"{kind} {words or ' '.join(touched)}".strip())
        act()
        self.settle(kind, touched)
        self.hold_more()
        self.figures.seconds.append(time.monotonic() - began)

    def place(self, qube: Qube, rules: list[Rule]) -> tuple[list[tuple[int, Rule]], bool]:
        """The rules with the order in which they were added, and whether a new one must be refused."""
        self.prune()
        known = {r.does: (order, r) for order, r in qube.rules}
        placed, fresh, asked = [], [], []
        for one in rules:
            order, old = known.get(one.does, (0, None))
            if old is None:
                self.added += 1
                order = self.added
            placed.append((order, one))
            asked.append((order, one))
            if one.enabled and not self.home.over(one) and (old is None or not old.enabled):
                fresh.append((qube.name, one))
                # One that is enabled again drives out nobody, however old it is.
                asked[-1] = (self.added + len(rules) + len(fresh), one)
        trial = copy.deepcopy(self.home)
        trial.qubes[qube.name].rules = asked
        if self.home.outermost(qube.name):
            return placed, any(one.does not in known for one in rules)
        return placed, not trial.accepts(fresh)

    def tell(self, kind: str, qube: Qube, rules: list[Rule]) -> bool:
        """Set a qube's rules; a new or newly enabled one that wants a held port must be refused."""
        placed, refused = self.place(qube, rules)
        answer = False
        with contextlib.suppress(Refused):
            self.driver.set_forwards(qube.name, lines(rules))
            answer = True
        assert answer is not refused, f"{kind}: {'accepted' if answer else 'refused'}"
        if answer:
            qube.rules = placed
        return answer

    def change(self, kind: str, qube: Qube, rules: list[Rule]) -> None:
        """Set a qube's rules, and compare."""
        answer = self.tell(kind, qube, rules)
        words = f"{qube.name}: {'; '.join(lines(rules).splitlines())}"
        self.happen(kind if answer else f"{kind} refused", lambda: None, (), words)

    def settle(self, kind: str, touched: Iterable[str] = ()) -> None:
        """Nothing is open on the way that was not open before and is not asked for; in the end all is as it must be."""
        self.figures.events[kind] += 1
        self.on_the_way()
        self.home.now = self.before.now = self.driver.now()
        self.prune()
        self.home.rest()
        wanted = self.home.doors()
        for name, doors in wanted.items():
            found = self.driver.doors(name)
            assert self.home.stands(name, found, doors), f"after {kind} in {name}: {difference(found, doors)}"
        self.compare(exact=True)
        self.compare_forged()
        self.look_at_held(kind, set(touched))
        self.before = copy.deepcopy(self.home)

    def on_the_way(self) -> None:
        """Let what has happened arrive everywhere, and look in between."""
        self.home.now = self.before.now = self.driver.now()
        for _ in self.driver.settle(self.home):
            self.compare(exact=False)

    def compare(self, exact: bool) -> None:
        """Knock at the open ways and at some of the others."""
        clients = self.driver.clients(self.home)
        now = self.home.reached(clients)
        # Who has just moved meets, until the change has arrived, the doors that stood there before.
        before = self.before.reached(clients) | self.before.reached(self.driver.clients(self.before))
        possible = self.driver.questions(self.home)
        opened = [q for q in possible if q in now or q in before]
        count = self.sample if exact else self.between
        chosen = self.random.sample(opened, min(count, len(opened))) + self.random.sample(
            possible, min(count, len(possible))
        )
        answers = self.driver.ask(self.home, dict.fromkeys(chosen))
        self.figures.questions += len(answers)
        # What a kernel without an agent still has may be open, shut at another hop, or both in turn.
        older = [
            (q.silent, q.silent.reached(clients))
            for h in (self.home, self.before)
            for q in h.qubes.values()
            if q.silent
        ]
        for question, answer in answers.items():
            if self.dark():
                continue
            right = [now.get(question)] if exact else [None, now.get(question), before.get(question)]
            for then, reached in older:
                old, new = reached.get(question), now.get(question)
                ways = [h.way(end[0], question.entrance) for h, end in ((then, old), (self.home, new)) if end]
                if old not in right or ways[:1] != ways[1:]:
                    right += [old, None]
            assert answer in right, f"{question} reaches {answer}, not {right}"

    def compare_forged(self) -> None:
        """Who makes up a source is heard only where it could be true; every machine tries."""
        if self.dark() or self.some(lambda q: q.silent is not None):
            return
        possible = self.driver.forgeries(self.home)
        by_sender: dict[str, list[Forged]] = {}
        for one in possible:
            by_sender.setdefault(one.sender, []).append(one)
        heard = [one for one in possible if self.home.heard(one) is not None]
        chosen = [self.random.choice(mine) for mine in by_sender.values()]
        chosen += self.random.sample(heard, min(self.forged, len(heard)))
        chosen += self.random.sample(possible, min(self.forged, len(possible)))
        chosen = list(dict.fromkeys(chosen))
        for one, found in zip(chosen, self.driver.forge(self.home, chosen), strict=True):
            self.figures.forged[one.sender] += 1
            self.figures.forged["heard"] += found is not None
            wanted = self.home.heard(one)
            assert found == wanted, f"{one} was heard by {found}, not by {wanted}"

    def look_at_held(self, kind: str, touched: set[str]) -> None:
        """A connection whose way is allowed lives, one whose way is gone is dead."""
        now = self.home.reached(self.driver.clients(self.home))
        for question, held in list(self.held.items()):
            allowed = now.get(question) == held.answer and held.way >= set(
                self.home.way(held.answer[0], question.entrance)
            )
            way = [self.home.qubes[name] for name in held.way if name in self.home.qubes]
            unknown = "*" in touched or touched & {*held.way, question.client} or self.dark()
            if unknown or any(qube.silent or qube.paused for qube in way):
                self.let_go(question)
            elif allowed:
                assert self.driver.speaks(question, 5.0), f"after {kind} the connection {question} is dead"
            else:
                assert not self.driver.speaks(question, self.dead_patience), f"after {kind} {question} is still alive"
                self.let_go(question)

    def hold_more(self) -> None:
        """Open connections that stay open over what follows."""
        if self.dark() or len(self.held) >= self.most_held or self.some(lambda q: q.silent is not None):
            return
        ends = [r.expire for q in self.home.qubes.values() for _, r in q.rules if isinstance(r.expire, int)]
        # One whose rule ends while it is being opened would tell nothing.
        if any(end < self.driver.now() + 3 for end in ends):
            return
        now = self.home.reached(self.driver.clients(self.home))
        possible = [
            q
            for q in self.driver.questions(self.home)
            if q.way[1] == "tcp" and q in now and q not in self.held and self.driver.may_hold(q)
        ]
        for question in self.random.sample(possible, min(2, len(possible))):
            self.figures.events["connection held"] += 1
            self.figures.steps.append(f"hold {question}")
            assert self.driver.hold(self.home, question), f"{question} is not to be had"
            self.held[question] = Held(now[question], set(self.home.way(now[question][0], question.entrance)))

    def let_go(self, question: Question) -> None:
        """Hold a connection no longer."""
        del self.held[question]
        self.driver.release(question)

    def dark(self) -> bool:
        """A qube without Qubes' own firewall lets in what it likes: nothing can be said of what goes through it."""
        return any(not q.base for home in (self.home, self.before) for q in home.qubes.values())

    def prune(self) -> None:
        """Rules whose time has come leave the list."""
        self.home.now = self.driver.now()
        for qube in self.home.qubes.values():
            qube.rules = [placed for placed in qube.rules if not self.home.over(placed[1])]

    def end(self, qube: Qube) -> None:
        """A qube is not running any more."""
        qube.running = qube.paused = qube.unplugged = False
        qube.silent = None
        qube.rules = [placed for placed in qube.rules if placed[1].expire != "shutdown"]
        if qube.disposable:
            del self.home.qubes[qube.name]

    # Drawing

    @rule(data=st.data())
    def step(self, data: st.DataObject) -> None:
        """Any event. One step, so that all are as likely: hypothesis itself prefers some of its rules in each run."""
        names = [name for name in dir(type(self)) if hasattr(getattr(type(self), name), "is_event")]
        # hypothesis begins with the most boring run of all, which has the first of these in each step.
        name = data.draw(st.sampled_from(["", *names, *self.often]), "event")
        if not name:
            return
        with self.found():
            getattr(self, name)(data)

    @contextlib.contextmanager
    def found(self) -> Iterator[None]:
        """Turn what was found into a ViolationError with its steps, where it would not happen again in the same way."""
        try:
            yield
        except HypothesisException:
            raise
        except Exception as error:
            if self.repeatable:
                raise
            steps = "".join(f"\n  {number}. {step}" for number, step in enumerate(self.figures.steps, 1))
            raise ViolationError(f"{type(error).__name__}: {error}{steps}") from error

    def some(self, fits: Callable[[Qube], bool]) -> bool:
        """Whether there is such a qube."""
        return any(fits(qube) for qube in self.home.qubes.values())

    def pick(self, data: st.DataObject, fits: Callable[[Qube], bool]) -> Qube | None:
        """One of the qubes; the words of a test are those of the step in hypothesis' own list."""
        found = [q.name for q in self.home.qubes.values() if fits(q)]
        return self.home.qubes[data.draw(st.sampled_from(found), "qube")] if found else None

    def pick_any(self, data: st.DataObject) -> Qube:
        """Any of the qubes."""
        return self.home.qubes[data.draw(st.sampled_from(list(self.home.qubes)), "qube")]

    def draw_rule(self, data: st.DataObject) -> Rule:
        """A rule at a few ports, so that rules meet."""
        ports = self.driver.ports
        first = data.draw(st.sampled_from(ports), "first")
        last = min(first + data.draw(st.sampled_from((0, 0, 0, 1, 2)), "more"), ports[-1])
        targets = self.driver.targets
        to_first = data.draw(st.sampled_from(targets), "to")
        to_last = to_first
        if last != first and data.draw(st.booleans(), "shifted") and to_first + last - first <= targets[-1]:
            to_last = to_first + last - first
        external = data.draw(st.sampled_from((True, True, False)), "external")
        source = data.draw(st.sampled_from(SOURCES if external else INSIDE), "source")
        proto = data.draw(st.sampled_from(("", "tcp", "udp")), "proto")
        return Rule(external, first, last, to_first, to_last, proto, source, True, self.draw_end(data))

    def draw_rules(self, data: st.DataObject) -> list[Rule]:
        """A whole list."""
        rules: list[Rule] = []
        for _ in range(data.draw(st.integers(0, 3), "count")):
            new = self.draw_rule(data)
            rules += [] if any(new.does == other.does for other in rules) else [new]
        return rules

    def draw_end(self, data: st.DataObject) -> int | str | None:
        """When a rule ends."""
        end = data.draw(st.sampled_from((None, None, None, "shutdown", "reboot", *self.lifetimes)), "end")
        return self.driver.now() + end if isinstance(end, int) else end

    def may_change_netvm(self, qube: Qube) -> bool:
        """An outermost net qube has cards; and a paused net qube can do nothing about a qube that comes or goes."""
        return qube.name not in self.outermost and not self.paused_above(qube)

    def paused_above(self, qube: Qube) -> bool:
        """Whether a hop above a qube is paused."""
        return any(hop.paused for hop in self.home.above(qube.name))

    def net_qubes(self, qube: Qube) -> list[str]:
        """The net qubes that this one may have at the moment, without a loop."""
        return [
            hop.name
            for hop in self.home.qubes.values()
            if hop.provides and not hop.paused and not hop.disposable and not self.paused_above(hop)
            if qube not in [hop, *self.home.above(hop.name)]
            if hop.running or not qube.running
        ]

    def home_without_agent(self) -> Home:
        """What the kernel of a qube holds whose agent falls silent now."""
        self.prune()
        return self.home.without_agent()


def lines(rules: list[Rule]) -> str:
    """As the Admin API takes them."""
    return "".join(one.line for one in rules)


def difference(found: Any, wanted: Any) -> str:
    """What two doors differ in."""
    extra = {key: value for key, value in found.items() if wanted.get(key) != value}
    missing = {key: value for key, value in wanted.items() if found.get(key) != value}
    return f"there is {extra}, there should be {missing}"
