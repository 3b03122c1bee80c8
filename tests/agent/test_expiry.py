# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Expiry holds without us: the kernel shuts the port, whatever has become of the agent."""

import dataclasses

import pytest

from portfwd.wire.acknowledgement import Result
from portfwd.wire.values import Side
from tests.agent.world import LAPTOP, PHONE, SIBLING, Attempt, Life, World, accept, check, relay, through


def _shut(world: World, attempt: Attempt) -> bool:
    return world.probe([attempt], 0) == [None]


SHORT = 0.4
"""Seconds; the kernel is told the difference between an entry's end and the agent's clock."""


def _end(world: World) -> tuple[int, float]:
    """An end in epoch seconds, and a time of the agent that is just before it."""
    end = int(world.now()) + 100
    return end, end - SHORT


def test_the_kernel_ends_a_forward_alone(world: World) -> None:
    end, now = _end(world)
    begin = world.now()
    world.apply([*through(relay(443, expire=end)), *through(relay("9000-9010", expire=end)), *through(relay(80))], now)
    check(world, {Attempt(LAPTOP, 443): 443, Attempt(LAPTOP, 9005): 9005, Attempt(LAPTOP, 80): 80})
    world.restart_agent()
    world.wait_until(lambda: _shut(world, Attempt(LAPTOP, 443)) and _shut(world, Attempt(LAPTOP, 9005)))
    assert world.now() - begin >= SHORT
    check(world, {Attempt(LAPTOP, 80): 80}, [Attempt(LAPTOP, 443), Attempt(LAPTOP, 9005)])


@pytest.mark.parametrize("days", [2, 7, 400, 2_900_000])
def test_an_end_may_be_far_away(world: World, days: int) -> None:
    """Mistake: nft refuses a time of nine digits, and with it everything: all forwards of the hop shut."""
    now = world.now()
    world.apply([*through(relay(443, expire=int(now) + days * 86400)), *through(relay(80))], now)
    check(world, {Attempt(LAPTOP, 443): 443, Attempt(LAPTOP, 80): 80})


def test_c24_an_expiry_ends_open_connections_and_the_agent_says_so(world: World) -> None:
    """The target's kernel lets nothing more through, whoever is dead; the agent then resets both sides."""
    end, now = _end(world)
    entries = [*through(relay(443, expire=end)), *through(relay(80))]
    world.apply(entries, now)
    ends, lives = world.open(Attempt(LAPTOP, 443)), world.open(Attempt(LAPTOP, 80))
    world.wait_until(lambda: _shut(world, Attempt(LAPTOP, 443)))
    assert world.client_speaks(ends) is Life.SILENT
    assert world.client_speaks(lives) is Life.ALIVE
    applied = world.apply(entries, end)
    assert sorted(applied.hop.values()) == [Result.EXPIRED, Result.OK]
    assert world.client_speaks(lives) is Life.ALIVE
    assert world.client_speaks(ends) is Life.RESET


def test_a_forward_may_be_extended(world: World) -> None:
    end, now = _end(world)
    begin = world.now()
    first = through(relay(443, expire=end))
    world.apply(first, now)
    world.apply([dataclasses.replace(entry, expire=end + 600) for entry in first], now)
    world.wait_until(lambda: world.now() - begin > SHORT + 0.1)
    check(world, {Attempt(LAPTOP, 443): 443})


@pytest.mark.parametrize("listen", ["443", "9000-9010"])
def test_a_door_that_several_share_stays_open_for_the_others(world: World, listen: str) -> None:
    """The rest is applied at the end of the first one's time, which the kernel may not have noticed yet."""
    end, now = _end(world)
    begin = world.now()
    port = int(listen.partition("-")[0])
    short, long = accept(listen, source="192.168.7.3", expire=end), accept(listen, source="192.168.7.2")
    entries = [relay(listen), short, long]
    world.apply(entries, now)
    check(world, {Attempt(LAPTOP, port): port, Attempt(PHONE, port): port})
    world.apply(entries, end)
    check(world, {Attempt(LAPTOP, port): port}, [Attempt(PHONE, port)])
    world.wait_until(lambda: world.now() - begin > SHORT + 0.1)
    check(world, {Attempt(LAPTOP, port): port}, [Attempt(PHONE, port)])


@pytest.mark.parametrize("listen", ["443", "9000-9010"])
def test_an_end_that_the_clock_has_jumped_over(world: World, listen: str) -> None:
    """After suspend the clock is set forward; the kernel's timer has not run meanwhile, so the agent must remove."""
    end = int(world.now()) + 3600
    port = int(listen.partition("-")[0])
    standing, (expiring, opened) = relay(port), through(relay(listen, expire=end, side=Side.DOWNSTREAM))
    world.apply([standing, expiring, opened])
    check(world, {Attempt(LAPTOP, port): port, Attempt(SIBLING, port): port})
    applied = world.apply([standing, expiring, opened], end + 1)
    assert set(applied.work.values()) == {Result.EXPIRED}
    check(world, shut=[Attempt(LAPTOP, port), Attempt(SIBLING, port)])
    world.apply([standing, *through(relay(listen, side=Side.DOWNSTREAM))], end + 2)
    check(world, {Attempt(LAPTOP, port): port, Attempt(SIBLING, port): port})


def test_ends_that_pass_between_two_changes(world: World) -> None:
    """Elements that the kernel has removed meanwhile do not make the next change fail."""
    end, now = _end(world)
    lasting = through(relay(80))
    world.apply([*through(relay(443, expire=end)), *lasting], now)
    world.wait_until(lambda: _shut(world, Attempt(LAPTOP, 443)))
    # By the agent's clock the end is still to come; the rule is removed.
    applied = world.apply([*lasting, *through(relay(22))], end - 0.1)
    assert set(applied.hop.values()) == {Result.OK}
    check(world, {Attempt(LAPTOP, 80): 80, Attempt(LAPTOP, 22): 22}, [Attempt(LAPTOP, 443)])
