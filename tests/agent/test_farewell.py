# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""A client that only receives is told that its connection has ended, and does not wait for ever."""

import contextlib
import socket

import pytest

from portfwd.agent.rules.skeleton import LATE_SECONDS
from portfwd.wire.values import Family, Proto, Side
from tests.agent import sockets
from tests.agent.kernel_world import KernelWorld
from tests.agent.machine import Machine
from tests.agent.world import (
    LAPTOP,
    PHONE,
    SIBLING,
    TCP,
    UDP,
    Attempt,
    Client,
    Life,
    World,
    accept,
    check,
    relay,
    through,
)

EVERY = [(proto, family) for proto in Proto for family in Family]
SHORT = 0.4
"""Seconds; the kernel is told the difference between an entry's end and the agent's clock."""


def shut(world: World, attempt: Attempt) -> None:
    world.wait_until(lambda: world.probe([attempt], 0) == [None])


@pytest.mark.parametrize("side", [Side.UPLINK, Side.DOWNSTREAM])
@pytest.mark.parametrize("how", ["expiry", "deletion"])
@pytest.mark.parametrize(("proto", "family"), EVERY)
def test_f29_a_client_that_only_receives_is_told(
    world: World, proto: Proto, family: Family, how: str, side: Side
) -> None:
    """Over TCP by a reset, over UDP by an ICMP error; whoever has another rule is told nothing."""
    end = int(world.now()) + 100
    client: Client = LAPTOP if side is Side.UPLINK else SIBLING
    ends = through(relay(443, 8443, proto=proto, family=family, expire=end, side=side))
    lives = through(relay(80, proto=proto, family=family, side=side))
    world.apply([*ends, *lives])
    over, open_ = (world.open(Attempt(client, port, proto, family)) for port in (443, 80))
    if how == "expiry":
        world.apply([*ends, *lives], end)
    else:
        world.apply(lives)
    assert world.client_waits(over) is Life.RESET
    assert world.client_waits(open_) is Life.SILENT
    assert world.client_speaks(open_) is Life.ALIVE


@pytest.mark.parametrize("family", list(Family))
def test_f29_the_kernel_alone_resets_a_client_that_only_receives(world: World, family: Family) -> None:
    """All agents are dead: the target's kernel resets it for what it acknowledges."""
    end = int(world.now()) + 100
    attempt = Attempt(LAPTOP, 443, TCP, family)
    world.apply(through(relay(443, 8443, family=family, expire=end)), end - SHORT)
    begin, handle = world.now(), world.open(attempt)
    shut(world, attempt)
    world.wait_until(lambda: world.now() - begin > SHORT + LATE_SECONDS + 0.2)
    world.server_speaks(handle)
    assert world.client_waits(handle) in (Life.ALIVE, Life.RESET)
    assert world.client_waits(handle) is Life.RESET


@pytest.mark.parametrize("family", list(Family))
def test_f29_the_kernel_alone_ends_what_is_only_sent(world: World, family: Family) -> None:
    """A server that streams datagrams to a client whose time is over: with all agents dead nothing more comes out."""
    end = int(world.now()) + 100
    attempt = Attempt(LAPTOP, 443, UDP, family)
    world.apply(through(relay(443, 8443, proto=UDP, family=family, expire=end)), end - SHORT)
    begin, handle = world.now(), world.open(attempt)
    assert world.server_speaks(handle) is Life.ALIVE
    shut(world, attempt)
    world.wait_until(lambda: world.now() - begin > SHORT + LATE_SECONDS + 0.2)
    assert world.server_speaks(handle) is not Life.ALIVE


def begin_one(machine: Machine, client: Client, proto: Proto, family: Family) -> int:
    """Command: dial, and wait for nothing; the handle."""
    kind = socket.SOCK_STREAM if proto is Proto.TCP else socket.SOCK_DGRAM
    made = socket.socket(socket.AF_INET if family is Family.V4 else socket.AF_INET6, kind)
    made.setblocking(False)
    made.bind((str(client.addresses[family]), 0))
    with contextlib.suppress(BlockingIOError):
        made.connect((str(client.dials[family]), 443))
        made.send(b"hello\n")
    machine.kept["client -1"] = made
    return -1


@pytest.mark.parametrize(("proto", "family"), EVERY)
def test_f29_a_client_whom_no_server_has_answered_is_told_nothing(
    kernel: KernelWorld, proto: Proto, family: Family
) -> None:
    """Anybody can send a first packet with an address that is not his: nobody there shall hear of it from us."""
    kernel.reset()
    kernel.apply([relay(443, proto=proto, family=family)])
    outside = kernel.machine("outside")
    handle = outside.call(begin_one, LAPTOP, proto, family)
    assert outside.call(sockets.client_waits, handle, 0.1) is Life.SILENT
    kernel.apply([])
    assert outside.call(sockets.client_waits, handle, 0.5) is Life.SILENT
    kernel.forget_connections()


def test_f29_others_at_a_shared_door_are_not_reset_before_the_agent_has_opened_it_anew(world: World) -> None:
    end = int(world.now()) + 100
    entries = [relay(443), accept(443, source="192.168.7.3", expire=end), accept(443, source="192.168.7.2")]
    world.apply(entries, end - SHORT)
    handle = world.open(Attempt(LAPTOP, 443))
    shut(world, Attempt(PHONE, 443))
    assert world.client_speaks(handle) is Life.SILENT
    world.apply(entries, end)
    assert world.client_speaks(handle) is Life.ALIVE
    check(world, {Attempt(LAPTOP, 443): 443}, [Attempt(PHONE, 443)])
