# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""What the kernel says of listening sockets, and a port that the net qube uses itself."""

import contextlib
import select
import signal
import socket
import struct
import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portfwd.agent.network.occupancy import Occupancy
from portfwd.agent.rules.accepts import listening
from portfwd.kernel.netlink import Message, messages
from portfwd.kernel.sockets import Socket, freed_ports, read_sockets, sockets_of
from portfwd.wire import limits
from portfwd.wire.answers.report import Listening
from portfwd.wire.entry import Entry
from portfwd.wire.values import Family, Proto, Side
from tests.agent.kernel_world import KernelWorld
from tests.agent.machine import Machine, write
from tests.agent.process import RunningAgent
from tests.agent.world import ENS6, LAPTOP, Attempt, accept, check, relay, through

TCP, UDP, V4, V6 = Proto.TCP, Proto.UDP, Family.V4, Family.V6
EVERYONE, OWN, LOCAL = ("0.0.0.0", "::"), tuple(str(ENS6[f].ip) for f in Family), ("127.0.0.1", "::1")  # noqa: S104


def listen(machine: Machine, proto: Proto, host: str, port: int, only: int = 1, device: str = "") -> None:
    """Command: listen as a program of the qube does, until let_go()."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made = socket.socket(family, socket.SOCK_STREAM if proto is TCP else socket.SOCK_DGRAM)
    if family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, only)
    if device:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
    made.bind((host, port))
    if proto is TCP:
        made.listen()
    machine.kept.setdefault("listeners", []).append(made)


def talk(machine: Machine) -> None:
    """Command: sockets that have ports but do not listen there."""
    listener = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(listener.getsockname())
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind(("127.0.0.1", 7777))
    datagrams.connect(("127.0.0.1", 7778))
    machine.kept.setdefault("listeners", []).extend([client, datagrams])
    listener.close()


def let_go(machine: Machine) -> None:
    """Command: the programs end."""
    for found in machine.kept.pop("listeners", []):
        found.close()


def held_against(machine: Machine, entries: list[Entry]) -> frozenset[str]:
    """Command: what an Occupancy, kept from call to call, says of these entries."""
    if "occupancy" not in machine.kept:
        machine.kept["occupancy"] = Occupancy()
    occupancy: Occupancy = machine.kept["occupancy"]
    return occupancy.check(entries)


def hears(machine: Machine, seconds: float) -> str:
    """Command: what the kernel tells it within that time: that a port is `free`, of `other` sockets, or `nothing`."""
    occupancy: Occupancy = machine.kept["occupancy"]
    deadline, heard = time.monotonic() + seconds, "nothing"
    while (left := deadline - time.monotonic()) > 0:
        if select.select([occupancy], [], [], left)[0]:
            if occupancy.read():
                return "free"
            heard = "other"
    return heard


def forget_occupancy(machine: Machine) -> None:
    """Command: the end of that Occupancy."""
    machine.kept.pop("occupancy").close()


def sockets(_machine: Machine) -> frozenset[Socket]:
    """Command: what the agent sees."""
    return read_sockets()


@pytest.fixture
def hop(kernel: KernelWorld) -> Iterator[KernelWorld]:
    kernel.reset()
    yield kernel
    kernel.machine("hop").call(let_go)


@pytest.mark.parametrize("proto", list(Proto))
def test_every_kind_of_listener_is_seen(hop: KernelWorld, proto: Proto) -> None:
    machine = hop.machine("hop")
    before = machine.call(sockets)
    for number, hosts in enumerate((EVERYONE, OWN, LOCAL)):
        for host in hosts:
            machine.call(listen, proto, host, 1000 + number)
    machine.call(listen, proto, "::", 1003, 0)
    machine.call(listen, proto, "::ffff:127.0.0.1", 1004, 0)
    machine.call(listen, proto, "::ffff:192.168.7.1", 1005, 0)
    machine.call(listen, proto, "0.0.0.0", 1006, 1, "lo")  # noqa: S104
    machine.call(talk)
    both = {(family, 1000 + n, n == 2) for family in Family for n in range(3)}
    both |= {(V4, 1003, False), (V6, 1003, False), (V4, 1004, True), (V4, 1005, False), (V4, 1006, True)}
    assert machine.call(sockets) - before == {Socket(family, proto, port, local) for family, port, local in both}


@given(st.binary(max_size=200), st.integers(0, 65535), st.sampled_from(list(Proto)))
def test_any_bytes_are_read(body: bytes, kind: int, proto: Proto) -> None:
    sockets_of(Message(kind, body), proto)
    freed_ports([Message(kind, body), *messages(body)])


def test_one_port_of_a_range_is_enough_and_the_best_counts() -> None:
    local, everyone, other = Socket(V4, TCP, 5001, True), Socket(V4, TCP, 5002, False), Socket(V4, UDP, 5003, False)
    entry = accept("5000-5010")
    assert listening(entry, [other]) is Listening.NO
    assert listening(entry, [other, local]) is Listening.LOCAL
    assert listening(entry, [other, local, everyone]) is Listening.YES
    assert listening(accept("5000-5010", family=V6), [local, everyone]) is Listening.NO


def test_only_relays_of_the_same_family_and_protocol_are_occupied() -> None:
    own = Socket(V4, TCP, 443, False)
    entries = [relay(443), relay("400-500"), relay(443, side=Side.DOWNSTREAM)]
    others = [relay(442), relay(443, proto=UDP), relay(443, family=V6), accept(443), relay(80, 443)]
    assert held(entries + others, own) == {entry.key for entry in entries}
    assert held(entries, own._replace(local=True)) == set()


def held(entries: list[Entry], own: Socket) -> frozenset[str]:
    """The entries that must stay shut while the qube has this socket."""
    with contextlib.closing(Occupancy(lambda: frozenset({own}))) as occupancy:
        return occupancy.check(entries)


@pytest.mark.parametrize("family", list(Family))
@pytest.mark.parametrize("proto", list(Proto))
def test_the_kernel_tells_when_a_port_is_free_and_is_heard_only_then(
    hop: KernelWorld, proto: Proto, family: Family
) -> None:
    machine, entry = hop.machine("hop"), relay("440-450", 443, proto=proto, family=family)
    host = EVERYONE[family is V6]
    try:
        assert machine.call(held_against, [entry]) == set()
        machine.call(listen, proto, host, 445)
        machine.call(let_go)
        assert machine.call(hears, 0.2) == "nothing", "nothing is occupied, so nothing is listened to"
        machine.call(listen, proto, host, 445)
        assert machine.call(held_against, [entry]) == {entry.key}
        machine.call(talk)
        assert machine.call(hears, 0.2) == "other", "a socket of another port"
        machine.call(let_go)
        assert machine.call(hears, 10) == "free"
        assert machine.call(held_against, [entry]) == set()
        machine.call(hears, 0.2)
        machine.call(listen, proto, host, 445)
        machine.call(let_go)
        assert machine.call(hears, 0.2) == "nothing", "nothing is occupied any more"
    finally:
        machine.call(forget_occupancy)


@pytest.fixture
def agent(hop: KernelWorld) -> Iterator[RunningAgent]:
    running = RunningAgent(hop)
    running.open_target([accept("1-65535", proto=proto, family=family) for proto in Proto for family in Family])
    yield running
    running.close()


def word(agent: RunningAgent, key: str) -> bytes | None:
    return agent.dom0.read(limits.STATUS + key)


@pytest.mark.parametrize("family", list(Family))
@pytest.mark.parametrize("proto", list(Proto))
def test_u18_a_port_of_the_net_qube_stays_its_own_and_opens_when_it_is_free(
    agent: RunningAgent, proto: Proto, family: Family
) -> None:
    hop = agent.world.machine("hop")
    hop.call(listen, proto, EVERYONE[family is V6], 443)
    taken, _ = through(relay("440-450", 8443, proto=proto, family=family))
    free, _ = through(relay(22, proto=proto, family=family))
    agent.publish([taken, free])
    assert (word(agent, taken.key), word(agent, free.key)) == (b"occupied", b"ok")
    shut = [Attempt(LAPTOP, port, proto, family) for port in (443, 445)]
    check(agent.world, {Attempt(LAPTOP, 22, proto, family): 22}, shut)
    hop.call(let_go)
    agent.world.wait_until(lambda: word(agent, taken.key) == b"ok", 20)
    check(agent.world, dict.fromkeys(shut, 8443))


def test_a_program_for_the_qube_itself_is_no_obstacle(agent: RunningAgent) -> None:
    agent.world.machine("hop").call(listen, TCP, "127.0.0.1", 443)
    agent.publish([relay(443)])
    check(agent.world, {Attempt(LAPTOP, 443): 443})


def test_the_last_of_several_programs_frees_the_port(agent: RunningAgent) -> None:
    hop, work = agent.world.machine("hop"), relay(443)
    hop.call(listen, TCP, OWN[0], 443)
    agent.publish([work])
    hop.call(let_go)
    agent.world.wait_until(lambda: word(agent, work.key) == b"ok", 20)
    hop.call(listen, TCP, OWN[0], 22)
    second = relay(22)
    agent.publish([work, second])
    assert (word(agent, work.key), word(agent, second.key)) == (b"ok", b"occupied")
    agent.publish([work])
    hop.call(let_go)
    agent.publish([work, second])
    assert word(agent, second.key) == b"ok"


def test_an_open_forward_is_not_torn_down_by_a_later_program(agent: RunningAgent) -> None:
    hop, work = agent.world.machine("hop"), relay(443)
    agent.publish([work])
    hop.call(listen, TCP, EVERYONE[0], 443)
    later = relay(22)
    agent.publish([work, later])
    check(agent.world, {Attempt(LAPTOP, 443): 443})
    for number in (signal.SIGKILL, signal.SIGTERM):
        agent.end(number)
        agent.start()
        agent.publish([work])
        assert word(agent, work.key) == b"ok"
        check(agent.world, {Attempt(LAPTOP, 443): 443})
    for switch, told in (("0", b"not-forwarding"), ("1", b"ok")):
        hop.call(write, "/proc/sys/net/ipv4/ip_forward", switch)
        agent.world.wait_until(lambda told=told: word(agent, work.key) == told, 20)
        agent.end(signal.SIGTERM)
        agent.start()
        agent.publish([work])
        assert word(agent, work.key) == told, "it stood in the kernel all the time"
    agent.publish([])
    agent.publish([work])
    assert word(agent, work.key) == b"occupied", "the rule was taken away meanwhile, and is a new one"


def test_a_whole_message_of_the_kernel() -> None:
    head = struct.pack(">BBBBHH16s16sI8s20x", 10, 10, 0, 0, 8443, 0, b"\0" * 16, b"\0" * 16, 0, b"\0" * 8)
    v6only = struct.pack("=HHBxxx", 5, 11, 1)
    assert sockets_of(Message(20, head), TCP) == [Socket(V6, TCP, 8443, False), Socket(V4, TCP, 8443, False)]
    assert sockets_of(Message(20, head + v6only), TCP) == [Socket(V6, TCP, 8443, False)]
    assert freed_ports([Message(20, head)]) == {8443}
