# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Connections end in steps, and all of them in the end: also when the kernel does not show them at first."""

import contextlib
import errno
from collections.abc import Iterator

import pytest

from portfwd.agent.rules import revoke
from portfwd.kernel.conntrack import ALL, Flow, Which
from tests.agent.fake_world import FakeWorld
from tests.agent.world import LAPTOP, PHONE, Attempt, Life, Node, relay, through
from tests.fakes.flows import FakeFlows


@contextlib.contextmanager
def blind(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The kernel does not show its connections meanwhile."""

    def refuse(_flows: FakeFlows, _bit: int, _which: Which = ALL) -> list[Flow]:
        raise OSError(errno.ENOBUFS, "No buffer space available")

    with monkeypatch.context() as patched:
        patched.setattr(FakeFlows, "marked", refuse)
        patched.setattr(FakeFlows, "unmarked", refuse)
        yield


def test_what_lost_its_mark_ends_too_when_connections_are_shown_again(monkeypatch: pytest.MonkeyPatch) -> None:
    world = FakeWorld()
    script = "ip mine { chain post { type filter hook postrouting priority mangle; policy accept;\nct mark set 1\n}\n}"
    world.nft(Node.HOP, f"add rule ip qubes custom-forward ct status dnat accept\ntable {script}")
    world.nft(Node.WORK, "add rule ip qubes custom-input accept")
    rest = through(relay(80))
    world.apply([relay(443), *rest])
    handle, other = world.open(Attempt(LAPTOP, 443)), world.open(Attempt(LAPTOP, 80))
    with blind(monkeypatch):
        for _ in range(2):
            world.apply(rest)
        assert world.client_speaks(handle) is Life.ALIVE
    world.apply(rest)
    assert world.client_speaks(handle) is Life.RESET
    assert world.client_speaks(other) is Life.ALIVE


def test_a_connection_that_the_kernel_does_not_give_up_keeps_no_other_one(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Kernels before 6.1.32 do not delete what a flow table has taken over (of Qubes: qubes-nat-accel)."""
    world, forget = FakeWorld(), FakeFlows.forget
    world.apply(through(relay(443)))
    handles = [world.open(Attempt(client, 443)) for client in (LAPTOP, PHONE)]

    def busy(flows: FakeFlows, flow: Flow) -> None:
        if flow.client in LAPTOP.addresses.values():
            raise OSError(errno.EBUSY, "Device or resource busy")
        forget(flows, flow)

    with monkeypatch.context() as patched:
        patched.setattr(FakeFlows, "forget", busy)
        for _ in range(3):
            world.apply([])
        assert len(world.marks(Node.HOP)) == 1
        assert world.client_speaks(handles[1]) is Life.RESET
        assert caplog.text.count("busy") == len(Node), "said once by each agent, not at each try"
    assert world.tend(Node.HOP, world.now()) == world.now() + 1
    world.apply([])
    assert world.marks(Node.HOP) == []
    assert world.client_speaks(handles[0]) is Life.RESET


def test_a_removal_that_could_end_no_connection_does_not_count_as_done(monkeypatch: pytest.MonkeyPatch) -> None:
    world = FakeWorld()
    world.apply(through(relay(443)))
    handle = world.open(Attempt(LAPTOP, 443))
    with blind(monkeypatch), pytest.raises(OSError, match="connections"):
        world.leave()
    world.leave()
    assert world.client_speaks(handle) is Life.RESET


def test_connections_end_step_by_step_by_what_is_wanted_by_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(revoke, "STEP", 1)
    world = FakeWorld()
    web, shell = through(relay(443)), through(relay(22))
    world.apply([*web, *shell])
    handles = [world.open(Attempt(client, port)) for port in (443, 22) for client in (LAPTOP, PHONE)]
    world.apply([])
    assert len(world.marks(Node.HOP)) == 3, "the first step is done at once"
    hop = world.agents[Node.HOP]
    hop.revoke(world.now())
    assert len(world.marks(Node.HOP)) == 2
    world.apply(shell)
    for agent in world.agents.values():
        agent.revoke_all(world.now())
    lives = [world.client_speaks(handle) for handle in handles]
    assert lives[:2] == [Life.RESET, Life.RESET]
    assert lives[2:] == [Life.ALIVE, Life.ALIVE], "it was wanted again before it was looked at"
