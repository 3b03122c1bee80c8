# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The agent dies before any of its steps: nothing opens that was neither open nor asked for, and nothing is lost."""

import itertools
from collections.abc import Sequence

import pytest

from portfwd.agent.desired import Reporter
from portfwd.agent.rules.firewall import Firewall
from portfwd.wire import limits
from portfwd.wire.acknowledgement import Acknowledgement, AgentState, Result
from portfwd.wire.entry import Entry
from tests.agent.fake_world import FakeWorld
from tests.agent.world import LAPTOP, PHONE, STRANGER, Attempt, Life, Node, relay, through
from tests.crash.dying import DyingDatabase, DyingFlows, DyingNft, Fuse, KilledError
from tests.fakes.flows import FakeFlows
from tests.fakes.qubesdb import FakeQubesDB

STAYS, GOES, COMES = through(relay(443)), through(relay(80)), through(relay(22))
NARROWS, NARROWED = through(relay(5000)), through(relay(5000, source="192.168.7.3"))
RANGE, MOVED = through(relay("9000-9010")), through(relay("9000-9010", 8080))
PORTS = (22, 53, 80, 443, 5000, 8080, 9005)
ATTEMPTS = [Attempt(client, port) for client in (LAPTOP, PHONE, STRANGER) for port in PORTS]

Set = Sequence[Entry]
CHANGES: dict[str, tuple[Set, Set]] = {
    "add": ([*STAYS], [*STAYS, *COMES]),
    "remove": ([*STAYS, *GOES], [*STAYS]),
    "narrow": ([*STAYS, *NARROWS], [*STAYS, *NARROWED]),
    "move": ([*STAYS, *RANGE], [*STAYS, *MOVED]),
    "all": ([*STAYS, *GOES, *NARROWS, *RANGE], [*STAYS, *COMES, *NARROWED, *MOVED]),
    "first": ([], [*STAYS, *COMES]),
    "last": ([*STAYS, *GOES], []),
}


class DyingWorld(FakeWorld):
    """Both agents hang on one fuse."""

    def __init__(self) -> None:
        self.fuse = Fuse()
        super().__init__()

    def restart_agent(self) -> None:
        self.fuse.arm(0)
        self.agents = {
            node: Firewall(DyingNft(self._picky[node], self.fuse), DyingFlows(FakeFlows(host), self.fuse))
            for node, host in self._hosts.items()
        }


def open_places(world: FakeWorld) -> dict[Attempt, object]:
    return {a: reached for a, reached in zip(ATTEMPTS, world.probe(ATTEMPTS, 0), strict=True) if reached is not None}


def clean(entries: Set) -> dict[Attempt, object]:
    world = FakeWorld()
    world.apply(entries)
    return open_places(world)


@pytest.mark.parametrize("knows", [True, False], ids=["running", "just started"])
@pytest.mark.parametrize("change", CHANGES)
def test_death_between_two_steps(change: str, knows: bool) -> None:
    before, after = CHANGES[change]
    was, will = clean(before), clean(after)
    for step in itertools.count(1):
        world = DyingWorld()
        world.apply(before)
        doomed = world.open(Attempt(LAPTOP, 80)) if Attempt(LAPTOP, 80) in was else None
        stays = world.open(Attempt(LAPTOP, 443)) if Attempt(LAPTOP, 443) in was else None
        if not knows:
            world.restart_agent()
        world.fuse.arm(step)
        try:
            world.apply(after)
        except KilledError:
            world.fuse.arm(0)
        else:
            break
        for attempt, reached in open_places(world).items():
            assert reached in (was.get(attempt), will.get(attempt)), f"step {step}: {attempt} reaches {reached}"
        for attempt in was.keys() & will.keys():
            if was[attempt] == will[attempt] and attempt.port == 443:
                assert attempt in open_places(world), f"step {step}: {attempt} is lost"
        world.restart_agent()
        results = world.apply(after)
        assert set(results.hop.values()) | set(results.work.values()) <= {Result.OK}
        assert open_places(world) == will, f"step {step}"
        if stays is not None and Attempt(LAPTOP, 443) in will:
            assert world.client_speaks(stays) is Life.ALIVE, f"step {step}"
        if doomed is not None:
            assert world.client_speaks(doomed) is Life.RESET, f"step {step}: an open connection outlives its rule"
    assert step > 4


def test_death_while_guards_are_taken_away() -> None:
    for step in itertools.count(1):
        world = DyingWorld()
        world.apply([*STAYS, *GOES])
        world.open(Attempt(LAPTOP, 80))
        world.apply(STAYS)
        world.fuse.arm(step)
        try:
            due = world.tend(Node.HOP, world.now() + 10_000)
        except KilledError:
            world.restart_agent()
            world.apply(STAYS)
            due = world.tend(Node.HOP, world.now() + 10_000)
            assert due is None
            assert "guard-forward" not in world.ruleset(Node.HOP)
        else:
            break
    assert step > 1


def test_death_before_the_acknowledgement() -> None:
    """dom0 never reads that a generation is applied before it can read how each of its entries fared."""
    key, other = STAYS[0].key, GOES[0].key
    for step in itertools.count(1):
        fuse = Fuse()
        database = FakeQubesDB().connect()
        dying = DyingDatabase(database, fuse)
        Reporter(database).report(1, AgentState.APPLIED, {key: Result.CLASH, other: Result.OK}, "192.168.7.1/24")
        fuse.arm(step)
        wanted = {key: Result.OK}
        try:
            Reporter(dying).report(2, AgentState.APPLIED, wanted, "192.168.7.1/24")
        except KilledError:
            status = database.read(limits.STATUS_BASE)
            assert status is not None
            assert Acknowledgement.parse(status.decode()).generation == 1
        else:
            break
        Reporter(database).report(2, AgentState.APPLIED, wanted, "192.168.7.1/24")
        assert database.read(limits.STATUS + key) == b"ok"
        assert database.read(limits.STATUS + other) is None
    assert step > 2
