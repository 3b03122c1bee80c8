# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""What the user does with rules."""

import dataclasses

from hypothesis import strategies as st
from hypothesis.stateful import initialize

from tests.oracle.base import Base, event


class UserEvents(Base):
    """See Base."""

    @initialize(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        """With some rules, so that there is something that events can break."""
        for name in ("work", "media", "sys-firewall"):
            new = self.draw_rule(data)
            with self.found():
                self.change("add", self.home.qubes[name], [new])

    @event
    def add(self, data: st.DataObject) -> None:
        qube = self.pick_any(data)
        rules = [r for _, r in qube.rules]
        new = self.draw_rule(data)
        self.change("add", qube, rules if any(new.does == r.does for r in rules) else [*rules, new])

    @event
    def remove(self, data: st.DataObject) -> None:
        if qube := self.pick(data, lambda q: bool(q.rules)):
            gone = data.draw(st.sampled_from(qube.rules), "rule")
            self.change("remove", qube, [r for placed in qube.rules if placed != gone for r in placed[1:]])

    @event
    def alter(self, data: st.DataObject) -> None:
        """Pause, continue, or give another end."""
        if qube := self.pick(data, lambda q: bool(q.rules)):
            place = data.draw(st.integers(0, len(qube.rules) - 1), "place")
            rules = [r for _, r in qube.rules]
            rules[place] = dataclasses.replace(
                rules[place], enabled=data.draw(st.booleans(), "enabled"), expire=self.draw_end(data)
            )
            self.change("alter", qube, rules)

    @event
    def replace(self, data: st.DataObject) -> None:
        """Another list altogether, which may be empty."""
        self.change("replace", self.pick_any(data), self.draw_rules(data))

    @event
    def stock_call(self, data: st.DataObject) -> None:
        """A stock client replaces the ordinary rules, or has all published again; the forwards stay."""
        what = data.draw(st.sampled_from(("accept", "drop", "Reload")), "what")
        qube = self.pick_any(data)
        if what == "Reload":
            self.happen("Reload", lambda: self.driver.reload(qube.name), (), qube.name)
        else:
            self.happen("stock Set", lambda: self.driver.set_ordinary(qube.name, what == "drop"), (), qube.name)
