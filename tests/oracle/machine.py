# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The model-based test: random events happen to a Driver and to the oracle's Home, and after each both must agree."""

import collections
import contextlib
import copy
import dataclasses
import random
import time
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from tests.oracle.driver import Driver, Fault, Mischief, Question, Refused
from tests.oracle.rules import Qube, Rule

SOURCES = ("neighbours", "neighbours", "any", "192.168.1.20/32", "192.168.0.0/16", "0.0.0.0/0", "2001:db8:1::/64")
INSIDE = ("neighbours", "neighbours", "any", "10.137.0.0/24", "fd09:24ef:4179::/64", "192.168.1.20/32")


@dataclasses.dataclass
class Figures:
    """What happened in all runs."""

    events: "collections.Counter[str]" = dataclasses.field(default_factory=collections.Counter)
    questions: int = 0
    seconds: list[float] = dataclasses.field(default_factory=list)


class Machine(RuleBasedStateMachine):
    """Subclasses say what is driven. `sample` shut ways are tried after each event, `between` on the way there."""

    make: Callable[[], Driver]
    figures = Figures()
    sample = 24
    between = 6
    lifetimes: tuple[int, ...] = (1, 5, 60)

    def __init__(self) -> None:
        super().__init__()
        self.driver = type(self).make()
        self.home = self.driver.home()
        self.before = copy.deepcopy(self.home)
        self.random = random.Random(0)
        self.added = 0
        self.settle("begin")

    def teardown(self) -> None:
        """Nothing is left behind."""
        self.driver.close()

    # Rules of the user

    @rule(data=st.data())
    def add(self, data: st.DataObject) -> None:
        qube = self.pick(data, lambda _: True)
        new = self.draw_rule(data)
        self.change("add", qube, [*(r for _, r in qube.rules), *([] if self.has(qube, new) else [new])])

    @precondition(lambda self: any(q.rules for q in self.home.qubes.values()))
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        qube = self.pick(data, lambda q: bool(q.rules))
        gone = data.draw(st.sampled_from(qube.rules), "rule")
        self.change("remove", qube, [r for placed in qube.rules if placed != gone for r in placed[1:]])

    @precondition(lambda self: any(q.rules for q in self.home.qubes.values()))
    @rule(data=st.data())
    def alter(self, data: st.DataObject) -> None:
        """Pause, continue, or give another end."""
        qube = self.pick(data, lambda q: bool(q.rules))
        place = data.draw(st.integers(0, len(qube.rules) - 1), "place")
        rules = [r for _, r in qube.rules]
        rules[place] = dataclasses.replace(
            rules[place], enabled=data.draw(st.booleans(), "enabled"), expire=self.draw_end(data)
        )
        self.change("alter", qube, rules)

    @rule(data=st.data())
    def replace(self, data: st.DataObject) -> None:
        """Another list altogether, which may be empty."""
        qube = self.pick(data, lambda _: True)
        rules: list[Rule] = []
        for _ in range(data.draw(st.integers(0, 3), "count")):
            new = self.draw_rule(data)
            rules += [] if any(new.does == other.does for other in rules) else [new]
        self.change("replace", qube, rules)

    # Topology

    @rule(data=st.data())
    def switch(self, data: st.DataObject) -> None:
        qube = self.pick(data, self.has_no_cards)
        new = data.draw(st.sampled_from([None, *self.net_qubes(qube)]), "netvm")
        if new is not None and qube.running and not self.home.qubes[new].running:
            return
        qube.netvm = new
        self.happen("switch", lambda: self.driver.set_netvm(qube.name, new))

    @precondition(lambda self: any(not q.running for q in self.home.qubes.values()))
    @rule(data=st.data())
    def start(self, data: st.DataObject) -> None:
        qube = self.pick(data, lambda q: not q.running)
        above = [hop for hop in self.home.above(qube.name) if not hop.running]
        for one in [*reversed(above), qube]:
            one.running = one.base = True

        def start() -> None:
            for one in [*reversed(above), qube]:
                self.driver.start(one.name)

        self.happen("start", start)

    @precondition(lambda self: any(q.running for q in self.home.qubes.values()))
    @rule(data=st.data())
    def kill(self, data: st.DataObject) -> None:
        qube = self.pick(data, lambda q: q.running)
        qube.running = False
        qube.rules = [placed for placed in qube.rules if placed[1].expire != "shutdown"]
        self.happen("kill", lambda: self.driver.kill(qube.name))

    @precondition(lambda self: any(not q.running and self.has_no_cards(q) for q in self.home.qubes.values()))
    @rule(data=st.data(), number=st.integers(100, 110))
    def renumber(self, data: st.DataObject, number: int) -> None:
        qube = self.pick(data, lambda q: not q.running and self.has_no_cards(q))
        address = f"10.137.0.{number}"
        if all(address not in q.addresses.values() for q in self.home.qubes.values()):
            qube.addresses = qube.addresses | {4: address}
            self.happen("renumber", lambda: self.driver.set_address(qube.name, address))

    @rule(data=st.data())
    def toggle_ipv6(self, data: st.DataObject) -> None:
        candidates = self.driver.ipv6_of(self.home)
        if candidates:
            qube = self.home.qubes[data.draw(st.sampled_from(candidates), "qube")]
            own = self.driver.home().qubes[qube.name].addresses[6]
            qube.addresses = {4: qube.addresses[4]} | ({} if 6 in qube.addresses else {6: own})
            self.happen("ipv6", lambda: self.driver.set_ipv6(qube.name, qube.addresses.get(6)))

    @rule(data=st.data(), tor=st.booleans())
    def refuse(self, data: st.DataObject, tor: bool) -> None:
        qube = self.pick(data, lambda q: q.name.startswith("sys-"))
        qube.refuses = not qube.refuses
        self.happen("refuse", lambda: self.driver.set_refusal(qube.name, qube.refuses, tor))

    # Faults

    @precondition(lambda self: any(q.running for q in self.home.qubes.values()))
    @rule(data=st.data())
    def disturb(self, data: st.DataObject) -> None:
        mischief = data.draw(st.sampled_from(self.driver.mischiefs), "mischief")
        qube = self.pick(data, lambda q: q.running)
        qube.base = mischief is Mischief.RELOAD_BASE or (qube.base and mischief is not Mischief.FLUSH_ALL)
        if qube.base or mischief is not Mischief.FLUSH_CHAINS:
            self.happen(mischief.value, lambda: self.driver.disturb(qube.name, mischief))

    @precondition(lambda self: any(q.running for q in self.home.qubes.values()))
    @rule(data=st.data(), fault=st.sampled_from(Fault))
    def restart(self, data: st.DataObject, fault: Fault) -> None:
        qube = self.pick(data, lambda q: q.running)
        self.happen(f"restart {fault.value}", lambda: self.driver.restart(fault, qube.name))

    @rule(seconds=st.sampled_from((1, 4, 30)))
    def wait(self, seconds: int) -> None:
        if seconds <= max(self.lifetimes):
            self.happen("wait", lambda: self.driver.wait(seconds))

    # How

    def happen(self, kind: str, event: Callable[[], object]) -> None:
        """Let an event happen that the model knows already, and compare."""
        began = time.monotonic()
        event()
        self.settle(kind)
        self.figures.seconds.append(time.monotonic() - began)

    def change(self, kind: str, qube: Qube, rules: list[Rule]) -> None:
        """Set a qube's rules; a new or newly enabled one that wants a held port must be refused."""
        self.prune()
        known = {r.does: (order, r) for order, r in qube.rules}
        placed, fresh = [], []
        for one in rules:
            order, old = known.get(one.does, (0, None))
            if old is None:
                self.added += 1
                order = self.added
            placed.append((order, one))
            if one.enabled and not self.home.over(one) and (old is None or not old.enabled):
                fresh.append((qube.name, one))
        trial = copy.deepcopy(self.home)
        trial.qubes[qube.name].rules = placed
        refused = not trial.accepts(fresh)
        answer = False
        with contextlib.suppress(Refused):
            self.driver.set_forwards(qube.name, "".join(one.line for one in rules))
            answer = True
        assert answer is not refused, f"{kind}: {'accepted' if answer else 'refused'}"
        if answer:
            qube.rules = placed
        self.happen(kind if answer else f"{kind} refused", lambda: None)

    def settle(self, kind: str) -> None:
        """Nothing is open on the way that was not open before and is not asked for; in the end all is as it must be."""
        self.figures.events[kind] += 1
        self.home.now = self.before.now = self.driver.now()
        for _ in self.driver.settle(self.home):
            self.compare(exact=False)
        self.home.now = self.before.now = self.driver.now()
        self.prune()
        wanted = self.home.doors()
        for name, doors in wanted.items():
            found = self.driver.doors(name)
            assert found == doors, f"after {kind} in {name}: {difference(found, doors)}"
        self.compare(exact=True)
        self.before = copy.deepcopy(self.home)

    def compare(self, exact: bool) -> None:
        """Knock at the open ways and at some of the others."""
        clients = self.driver.clients(self.home)
        now, before = self.home.reached(clients), self.before.reached(self.driver.clients(self.before))
        possible = self.driver.questions(self.home)
        opened = [q for q in possible if q in now or q in before]
        count = self.sample if exact else self.between
        chosen = self.random.sample(opened, min(count, len(opened))) + self.random.sample(
            possible, min(count, len(possible))
        )
        answers = self.driver.ask(self.home, dict.fromkeys(chosen))
        self.figures.questions += len(answers)
        for question, answer in answers.items():
            if self.dark(question, exact):
                continue
            right = [now.get(question)] if exact else [None, now.get(question), before.get(question)]
            assert answer in right, f"{question} reaches {answer}, not {right}"

    def dark(self, question: Question, exact: bool) -> bool:
        """A qube without Qubes' own firewall lets in what it likes: nothing can be said of what goes through it."""
        del question, exact
        return any(not q.base for home in (self.home, self.before) for q in home.qubes.values())

    def prune(self) -> None:
        """Rules whose time has come leave the list."""
        self.home.now = self.driver.now()
        for qube in self.home.qubes.values():
            qube.rules = [placed for placed in qube.rules if not self.home.over(placed[1])]

    # Drawing

    def pick(self, data: st.DataObject, fits: Callable[[Qube], bool]) -> Qube:
        """One of the qubes."""
        found = [q.name for q in self.home.qubes.values() if fits(q)] or list(self.home.qubes)
        return self.home.qubes[data.draw(st.sampled_from(found), "qube")]

    def draw_rule(self, data: st.DataObject) -> Rule:
        """A rule at a few ports, so that rules meet."""
        ports = self.driver.ports
        first = data.draw(st.sampled_from(ports), "first")
        last = min(first + data.draw(st.sampled_from((0, 0, 0, 1, 2)), "more"), ports[-1])
        to_first = data.draw(st.sampled_from(ports), "to")
        to_last = to_first
        if last != first and data.draw(st.booleans(), "shifted") and to_first + last - first <= ports[-1]:
            to_last = to_first + last - first
        external = data.draw(st.sampled_from((True, True, False)), "external")
        source = data.draw(st.sampled_from(SOURCES if external else INSIDE), "source")
        proto = data.draw(st.sampled_from(("", "tcp", "udp")), "proto")
        return Rule(external, first, last, to_first, to_last, proto, source, True, self.draw_end(data))

    def draw_end(self, data: st.DataObject) -> int | str | None:
        """When a rule ends."""
        end = data.draw(st.sampled_from((None, None, None, "shutdown", "reboot", *self.lifetimes)), "end")
        return self.driver.now() + end if isinstance(end, int) else end

    def has(self, qube: Qube, new: Rule) -> bool:
        """Whether a qube has a rule that does the same."""
        return any(new.does == r.does for _, r in qube.rules)

    def has_no_cards(self, qube: Qube) -> bool:
        """Whether this is not an outermost net qube."""
        return self.driver.home().qubes[qube.name].netvm is not None

    def net_qubes(self, qube: Qube) -> list[str]:
        """The net qubes that this one may have without a loop."""
        return [
            name
            for name in self.home.qubes
            if name.startswith("sys-") and qube not in [self.home.qubes[name], *self.home.above(name)]
        ]


def difference(found: Any, wanted: Any) -> str:
    """What two doors differ in."""
    extra = {key: value for key, value in found.items() if wanted.get(key) != value}
    missing = {key: value for key, value in wanted.items() if found.get(key) != value}
    return f"there is {extra}, there should be {missing}"
