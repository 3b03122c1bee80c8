# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Open, shut and not known: what is said while agents are dead and net qubes lie, and what clients meet."""

import contextlib
import subprocess
from collections.abc import Iterator

import pytest

from portfwd.api.status import Doors
from portfwd.client.forward_state import RuleStatus, State
from portfwd.gui.state.overview import summary
from tests.api.reading import read_status
from tests.chain.world import LAPTOP, SYS_NET, Ask, World, agents_stopped, says, wait_until

GET, SET = "admin.vm.firewall.Get", "admin.vm.firewall.Set"
WEB = "forwardtype=external proto=tcp srcports=443 dstports=8443"
BARE = "forwardtype=external proto=tcp srcports=444 dstports=7777"
LIE = """while :; do
generation=$(qubesdb-read /qubes-port-forward | sed 's/.*generation=\\([0-9]*\\).*/\\1/')
qubesdb-write /qubes-port-forward-status "version=1 generation=$generation state=applied"
sleep 0.05
done"""


def wait_silent(world: World, qube: str, *silent: str) -> RuleStatus:
    """The status of the only forward once all others have answered."""
    wait_until(lambda: look(world, qube)[0].silent == silent, lambda: f"{look(world, qube)} with {silent}")
    return look(world, qube)[0]


def look(world: World, qube: str) -> tuple[RuleStatus, ...]:
    return read_status(world.lab.api(qube, GET, "forward.status"))


@contextlib.contextmanager
def lying(world: World, qube: str) -> Iterator[None]:
    """A qube that acknowledges whatever dom0 commits, and does nothing."""
    with world.lab.popen(qube, ["sh", "-c", LIE], stderr=subprocess.DEVNULL) as liar:
        try:
            yield
        finally:
            liar.kill()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("qvm-port-forward", "remove", "work", "f0", "--wait", "2"), "The forward is removed, but {}"),
        (("qvm-port-forward", "pause", "work", "f0", "--wait", "2"), "The forward is paused, but {}"),
        (("qvm-firewall", "work", "del", "--rule-no", "f0"), "Note: the forward is removed, but {}"),
        (("qvm-firewall", "work", "reset", "--forwards"), "Note: the forward is removed, but {}"),
    ],
    ids=("remove", "pause", "del", "reset"),
)
def test_f6_a_lying_net_qube_makes_no_removal_certain(world: World, words: tuple[str, ...], told: str) -> None:
    """Mistake: "nobody can pass the other hops", exit 0; the next connection is served."""
    world.add("work", WEB)
    with agents_stopped(world.lab, "sys-net", "sys-firewall", "work"), lying(world, "sys-net"):
        done = world.lab.run("dom0", list(words), capture_output=True, text=True, timeout=60)
        silent = "sys-firewall and work have not confirmed it: the port may stay open until they do\n"
        assert done.returncode == 3, done
        assert told.format(silent) in done.stderr
        world.expect({Ask("laptop", SYS_NET, 443): says("work", 8443, LAPTOP)})
    world.settle()


def test_f8_another_port_makes_no_open_one_look_shut_while_an_agent_is_dead(world: World) -> None:
    """Mistake: all older forwards are "not open yet", the window says "No port is open", and the page is served."""
    world.add("work", WEB)
    ask = Ask("laptop", SYS_NET, 443)
    (before,) = look(world, "work")
    assert (before.state, before.doors) == (State.OPEN, Doors.OPEN)
    with agents_stopped(world.lab, "sys-firewall"):
        world.lab.api("personal", SET, "forward", f"action=forward {WEB.replace('443', '445', 1)}\n")
        status = wait_silent(world, "work", "sys-firewall")
        assert (status.state, status.doors) == (State.UNKNOWN, Doors.UNKNOWN)
        assert str(summary([status])) == "1 may be open (not known)"
        other = wait_silent(world, "personal", "sys-firewall")
        assert (other.state, other.doors) == (State.PENDING, Doors.UNKNOWN)
        world.expect({ask: says("work", 8443, LAPTOP)})
        world.lab.api("work", SET, "forward", f"action=forward {WEB} enabled=no\n")
        status = wait_silent(world, "work", "sys-firewall")
        assert (status.state, status.doors) == (State.PAUSED, Doors.UNKNOWN)
    world.settle()
    (status,) = look(world, "work")
    assert (status.state, status.doors) == (State.PAUSED, Doors.SHUT)


def test_f8_a_port_without_server_does_not_turn_green_while_the_agent_of_its_qube_is_dead(world: World) -> None:
    world.add("work", WEB)
    world.add("work", BARE)
    assert {status.state for status in look(world, "work")} == {State.OPEN, State.NO_SERVER}
    with agents_stopped(world.lab, "work"):
        assert [status.state for status in look(world, "work")] == [State.SERVER_UNKNOWN] * 2
    world.settle()
    assert {status.state for status in look(world, "work")} == {State.OPEN, State.NO_SERVER}
