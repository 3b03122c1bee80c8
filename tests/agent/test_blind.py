# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The kernel does not tell the agent what it asks: what is not known stays shut, and everything else goes on."""

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from portfwd.wire import limits
from tests.agent.kernel_world import KernelWorld
from tests.agent.machine import run
from tests.agent.process import RunningAgent
from tests.agent.world import LAPTOP, TCP, UDP, V4, V6, Attempt, accept, check, relay

WIDE = relay(443)
NEAR = [relay(80, source="neighbours", proto=proto, family=family) for proto in (TCP, UDP) for family in (V4, V6)]
NEIGHBOURS = [Attempt(LAPTOP, 80, entry.proto, entry.family) for entry in NEAR]
TARGETS = [accept(443), *(accept(80, proto=entry.proto, family=entry.family) for entry in NEAR)]
FLAKY = """
import pathlib
from portfwd.agent import __main__ as program
real = program.read_networks
def flaky():
    if pathlib.Path("/run/qubes/blind").exists():
        raise OSError(105, "No buffer space available")
    return real()
program.read_networks = flaky
program.main()
"""


@pytest.fixture(params=["as it is", "no addresses"])
def agent(kernel: KernelWorld, request: pytest.FixtureRequest) -> Iterator[RunningAgent]:
    kernel.reset()
    running = RunningAgent(kernel, program=FLAKY) if request.param == "no addresses" else RunningAgent(kernel)
    running.open_target(TARGETS)
    yield running
    running.close()


@contextlib.contextmanager
def without_descriptors(agent: RunningAgent) -> Iterator[None]:
    """The agent can open no further socket to the kernel meanwhile."""
    before = resource.prlimit(agent.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(agent.pid, resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        yield
    finally:
        resource.prlimit(agent.pid, resource.RLIMIT_NOFILE, before)


def word(agent: RunningAgent, key: str) -> str:
    return (agent.dom0.read(limits.STATUS + key) or b"").decode()


def a_link_changes(agent: RunningAgent) -> None:
    for verb in ("add", "del"):
        agent.world.machine("hop").call(run, ["ip", "address", verb, "192.0.2.1/32", "dev", "lo"])


@pytest.mark.parametrize("agent", ["as it is"], indirect=True)
def test_f26_neighbours_that_cannot_be_seen_are_shut_out_and_nothing_else(agent: RunningAgent) -> None:
    agent.publish([WIDE, *NEAR])
    check(agent.world, {Attempt(LAPTOP, 443): 443} | dict.fromkeys(NEIGHBOURS, 80))
    with without_descriptors(agent):
        a_link_changes(agent)
        agent.world.wait_until(lambda: word(agent, NEAR[0].key) == "failed", 10)
        assert [word(agent, entry.key) for entry in (WIDE, *NEAR)] == ["ok", *["failed"] * len(NEAR)]
        check(agent.world, {Attempt(LAPTOP, 443): 443}, NEIGHBOURS)
        assert word(agent, "uplinks") == ""
    agent.world.wait_until(lambda: word(agent, NEAR[0].key) == "ok", 10)
    check(agent.world, {Attempt(LAPTOP, 443): 443} | dict.fromkeys(NEIGHBOURS, 80))
    agent.world.wait_until(lambda: bool(word(agent, "uplinks")), 10)
    assert agent.log().count("networks of the uplinks cannot be read") == 1
    assert "QubesDB" not in agent.log()


@pytest.mark.parametrize("agent", ["as it is"], indirect=True)
def test_f26_ports_in_use_that_cannot_be_seen_are_not_taken_away(agent: RunningAgent) -> None:
    """A forward that is open stays; a new one waits until it is known that the port is nobody's."""
    agent.publish([WIDE])
    fresh = relay(80)
    with without_descriptors(agent):
        agent.publish([WIDE, fresh])
        assert (word(agent, WIDE.key), word(agent, fresh.key)) == ("ok", "failed")
        check(agent.world, {Attempt(LAPTOP, 443): 443}, [Attempt(LAPTOP, 80)])
    agent.world.wait_until(lambda: word(agent, fresh.key) == "ok", 10)
    check(agent.world, {Attempt(LAPTOP, 443): 443, Attempt(LAPTOP, 80): 80})


@pytest.mark.parametrize("agent", ["no addresses"], indirect=True)
def test_f26_addresses_that_cannot_be_read_are_no_lost_database(agent: RunningAgent) -> None:
    blind = Path(f"/proc/{agent.pid}/root/run/qubes/blind")
    agent.publish([WIDE])
    blind.touch()
    agent.publish([WIDE, *NEAR])
    assert word(agent, "uplinks") == ""
    assert "QubesDB" not in agent.log()
    assert agent.log().count("networks of the uplinks cannot be read") == 1
    blind.unlink()
    agent.world.wait_until(lambda: word(agent, "uplinks") != "", 10)
