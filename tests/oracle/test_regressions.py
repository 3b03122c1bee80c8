# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""What the random events have found, in the fewest steps."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.oracle.driver import Question, Refused
from tests.oracle.fakes import FakeHome
from tests.oracle.rules import Rule
from tests.oracle.test_fakes import OnFakes

TCP4 = "action=forward forwardtype=external proto=tcp"


@pytest.fixture
def home() -> Iterator[FakeHome]:
    """The qubes on fakes."""
    found = FakeHome()
    yield found
    found.close()


def reached(home: FakeHome, client: str, port: int) -> tuple[str, int] | None:
    """Who answers a client at sys-net."""
    model = home.home()
    for _ in home.settle(model):
        pass
    question = Question(client, "sys-net", (4, "tcp", port))
    return home.ask(model, [question])[question]


def test_a_net_qube_s_own_port_is_not_handed_on_by_it(home: FakeHome) -> None:
    """A stranger came through the net qube's open port to a qube that was open to neighbours only."""
    home.set_forwards("media", f"{TCP4} srcports=1003 dstports=1000\n")
    with pytest.raises(
        Refused, match=r"dstports '1003' is taken at 'sys-firewall' by external tcp port 1003 of 'media'"
    ):
        home.set_forwards("sys-firewall", f"{TCP4} srcports=1002 dstports=1003 srchost=any\n")
    assert reached(home, "stranger", 1002) is None
    assert reached(home, "laptop", 1003) == ("media", 1000)


def test_a_port_that_a_net_qube_opened_first_is_not_handed_on(home: FakeHome) -> None:
    home.set_forwards("sys-firewall", f"{TCP4} srcports=1002 dstports=1003\n")
    with pytest.raises(Refused, match=r"srcports '1003' is taken at 'sys-firewall' by external tcp port 1002"):
        home.set_forwards("media", f"{TCP4} srcports=1003 dstports=1000\n")
    assert reached(home, "laptop", 1002) == ("sys-firewall", 1003)


def test_what_is_refused_does_not_depend_on_whose_list_is_changed(home: FakeHome) -> None:
    """Of two rules that clash since a net qube was changed, another one held the port when rules were added."""
    home.set_forwards("work", f"{TCP4} srcports=1000-1002\n")
    home.set_forwards("untrusted", f"{TCP4} srcports=1000\n")
    home.set_netvm("untrusted", "sys-firewall")
    with pytest.raises(
        Refused, match=r"srcports '1002' is taken at 'sys-net' by external tcp port 1000-1002 of 'work'"
    ):
        home.set_forwards("work", f"{TCP4} srcports=1000-1002\n{TCP4} srcports=1002 dstports=1007\n")


def test_f5_who_moves_in_takes_no_port_by_an_older_rule_of_its_own(home: FakeHome) -> None:
    """Neither for itself, while that arrives, nor for others."""
    internal = "action=forward forwardtype=internal proto=tcp"
    home.set_netvm("media", "sys-vpn")
    home.set_forwards("media", f"{internal} srcports=1000 dstports=1007\n")
    home.set_forwards("sys-firewall", f"{internal} srcports=1000 dstports=1004 srchost=any\n")
    for _ in home.settle(home.home()):
        pass
    home.set_netvm("media", "sys-net")
    model = home.home()
    mine = Question("media", "sys-net", (4, "tcp", 1000))
    seen = [home.ask(model, [mine])[mine] for _ in home.settle(model)]
    assert set(seen) <= {("sys-firewall", 1004), None}
    home.set_netvm("personal", "sys-net")
    assert reached(home, "personal", 1000) == ("sys-firewall", 1004)


class Drawn:
    """In the place of hypothesis: what an event draws, by the label under which it asks."""

    def __init__(self, **words: object) -> None:
        self._words = words

    def draw(self, strategy: object, label: str) -> Any:
        """The value with this label."""
        del strategy
        return self._words[label]


def test_the_default_net_qube_is_set_once_more_and_its_followers_stay_where_they_are() -> None:
    """qubesd takes their interfaces away, which the fakes do not imitate; the oracle believed that they did."""
    machine = OnFakes()
    try:
        work = machine.home.qubes["work"]
        work.by_default = True
        machine.change("add", work, [Rule(True, 1000, 1000, 1000, 1000, source="any")])
        machine.change_default(Drawn(netvm="sys-firewall"))  # type: ignore[arg-type]
        assert reached(machine.driver, "laptop", 1000) == ("work", 1000)  # type: ignore[arg-type]
    finally:
        machine.teardown()
