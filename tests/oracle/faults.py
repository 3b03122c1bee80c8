# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""What goes wrong: programs that die, are away for a while, or are missing; others who change nftables."""

from hypothesis import strategies as st

from tests.oracle.base import EVERYBODY, Base, event, lines
from tests.oracle.driver import Fault, Mischief
from tests.oracle.rules import Qube


def awake(qube: Qube) -> bool:
    """Whether a qube's agent is there and works."""
    return qube.running and qube.agent and qube.silent is None


class FaultEvents(Base):
    """See Base."""

    @event
    def disturb(self, data: st.DataObject) -> None:
        if qube := self.pick(data, awake):
            mischief = data.draw(st.sampled_from(self.driver.mischiefs), "mischief")
            self.do_mischief(qube, mischief)
            if qube.base or mischief is not Mischief.FLUSH_CHAINS:
                touched = {qube.name} if mischief in (Mischief.RELOAD_BASE, Mischief.FLUSH_ALL) else ()
                self.happen(mischief.value, lambda: self.driver.disturb(qube.name, mischief), touched, qube.name)

    def do_mischief(self, qube: Qube, mischief: Mischief) -> None:
        qube.base = mischief is Mischief.RELOAD_BASE or (qube.base and mischief is not Mischief.FLUSH_ALL)

    @event
    def restart(self, data: st.DataObject) -> None:
        fault = data.draw(st.sampled_from(Fault), "fault")
        if qube := self.pick(data, awake):
            self.happen(f"restart {fault.value}", lambda: self.driver.restart(fault, qube.name), (), qube.name)

    @event
    def reboot(self, data: st.DataObject) -> None:
        """The whole computer loses its power; what ran before is started again, with its net qubes."""
        del data
        if "reboot" not in self.driver.can:
            return
        ran = [q for q in self.home.qubes.values() if q.running]
        for qube in ran:
            self.end(qube)
        # Whoever is started has its net qubes started first, whether they ran or not.
        ways = [[*reversed([*self.home.above(q.name)]), q] for q in ran if q.name in self.home.qubes]
        names = list(dict.fromkeys(one.name for way in ways for one in way))
        for one in map(self.home.qubes.__getitem__, names):
            one.running = one.base = True
        for qube in self.home.qubes.values():
            qube.rules = [placed for placed in qube.rules if placed[1].expire != "reboot"]
        self.happen("reboot", lambda: self.driver.reboot(names), EVERYBODY)

    @event
    def restart_while_busy(self, data: st.DataObject) -> None:
        """The rules have just been changed, and the change is on its way."""
        fault = data.draw(st.sampled_from(Fault), "fault")
        if qube := self.pick(data, awake):
            changed = self.pick_any(data)
            rules = self.draw_rules(data)
            self.tell("change and restart", changed, rules)
            words = f"{fault.value} of {qube.name} after {changed.name}: {'; '.join(lines(rules).splitlines())}"
            self.happen("change and restart", lambda: self.driver.restart(fault, qube.name), (), words)

    @event
    def lose_agent(self, data: st.DataObject) -> None:
        """It is stopped and does not come again: the kernel keeps what it has, and lets it end."""
        if qube := self.pick(data, awake):
            qube.silent = self.home_without_agent()
            self.happen("agent gone", lambda: self.driver.away(Fault.AGENT, qube.name, True), (), qube.name)

    @event
    def agent_comes(self, data: st.DataObject) -> None:
        if qube := self.pick(data, lambda q: q.agent and q.silent is not None and not q.paused):
            qube.silent = None
            self.happen("agent back", lambda: self.driver.away(Fault.AGENT, qube.name, False), (), qube.name)

    @event
    def uninstall_agent(self, data: st.DataObject) -> None:
        if qube := self.pick(
            data, lambda q: awake(q) and not q.disposable and not self.some(lambda other: not other.agent)
        ):
            qube.silent, qube.agent = self.home_without_agent(), False
            self.happen("agent uninstalled", lambda: self.driver.install_agent(qube.name, False), (), qube.name)

    @event
    def install_agent(self, data: st.DataObject) -> None:
        if qube := self.pick(data, lambda q: not q.agent and q.running and not q.paused):
            qube.agent, qube.silent = True, None
            self.happen("agent installed", lambda: self.driver.install_agent(qube.name, True), (), qube.name)

    @event
    def while_qubesd_is_away(self, data: st.DataObject) -> None:
        """Nobody tells dom0 what happened meanwhile."""
        what = data.draw(st.sampled_from(("nothing", "kill", "agent", "flush", "card", "wait")), "what")
        qube = self.pick(data, lambda q: awake(q) and not self.paused_above(q) and not q.disposable)
        if qube is None:
            return
        outermost = [self.home.qubes[name] for name in self.outermost]
        touched = set()
        if what == "kill":
            if any(self.home.qubes[name].paused for name in self.home.behind(qube.name)):
                # qubesd gives a paused qube its interface back only if it saw the end of its net qube.
                return
            self.end(qube)
            touched = {qube.name}

        def event() -> None:
            self.driver.away(Fault.QUBESD, "", True)
            if what == "kill":
                self.driver.kill(qube.name)
            elif what == "agent":
                self.driver.restart(Fault.AGENT, qube.name)
            elif what == "flush":
                self.driver.disturb(qube.name, Mischief.DELETE_TABLE)
            elif what == "card" and all(awake(one) for one in outermost):
                touched.update(self.driver.recable(data.draw(st.integers(0, 5), "choice")))
            elif what == "wait":
                self.driver.wait(1)
            self.driver.away(Fault.QUBESD, "", False)

        self.happen(f"qubesd away, {what}", event, touched, qube.name)

    @event
    def agent_will_die(self, data: st.DataObject) -> None:
        """Between two of the steps of its next changes."""
        if "arm" not in self.driver.can:
            return
        steps = data.draw(st.integers(1, 6), "steps")
        if qube := self.pick(data, awake):
            self.happen("agent will die", lambda: self.driver.arm(qube.name, steps), (), f"{qube.name} {steps}")

    @event
    def die_publishing(self, data: st.DataObject) -> None:
        """Between two writes to QubesDB. `late`: so long that the agents shut what is half written."""
        if "die" not in self.driver.can:
            return
        steps = data.draw(st.integers(1, 8), "steps")
        late = data.draw(st.booleans(), "late")
        qube = self.pick_any(data)
        rules = self.draw_rules(data)
        placed, refused = self.place(qube, rules)
        if refused:
            return
        qube.rules = placed
        self.figures.steps.append(f"dom0 dies at write {steps} of {qube.name}: {'; '.join(lines(rules).splitlines())}")
        self.driver.die_publishing(qube.name, lines(rules), steps)
        self.on_the_way()
        if late:
            self.driver.wait(3)
            self.on_the_way()
        touched = EVERYBODY if late else ()
        self.happen("death while publishing", lambda: self.driver.restart(Fault.QUBESD, ""), touched, qube.name)

    @event
    def die_saving(self, data: st.DataObject) -> None:
        """At any line of the saving: before or after the rename."""
        if "die" not in self.driver.can:
            return
        steps = data.draw(st.integers(1, 60), "steps")
        qube = self.pick_any(data)
        rules = self.draw_rules(data)
        placed, refused = self.place(qube, rules)
        if refused:
            return
        if self.driver.die_saving(qube.name, lines(rules), steps):
            qube.rules = placed
        words = f"{qube.name} {steps}: {'; '.join(lines(rules).splitlines())}"
        self.happen("death while saving", lambda: self.driver.restart(Fault.QUBESD, ""), (), words)

    @event
    def wait(self, data: st.DataObject) -> None:
        seconds = data.draw(st.sampled_from((1, 4, 30)), "seconds")
        if seconds <= min(self.lifetimes) or "die" in self.driver.can:
            self.happen("wait", lambda: self.driver.wait(seconds), (), seconds)
