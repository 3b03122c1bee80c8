# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Commands of a machine: real programs that serve and real clients that connect, over TCP and UDP.

A server greets with 'ADDRESS PORT PEER' and then sends back every line; over UDP it answers a datagram with both.
"""

import contextlib
import fcntl
import ipaddress
import itertools
import os
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from lab.base import namespaces
from portfwd.wire.values import IPAddress, Proto
from tests.agent.machine import Machine
from tests.agent.world import Life, Reached

_SIOCOUTQ = 0x5411
_TUNSETIFF, _IFF_TUN_NO_PI = 0x400454CA, 0x1001
_LINGER_NOT = struct.pack("ii", 1, 0)
HOPED_SECONDS = 8.0
_handles = itertools.count()


class Dial(NamedTuple):
    """What a client dials: its own address, the other's, and whether it is expected to succeed; from any port if 0."""

    proto: Proto
    source: IPAddress
    target: IPAddress
    port: int
    hoped: bool
    source_port: int = 0


def _plain(address: str) -> IPAddress:
    found = ipaddress.ip_address(address.partition("%")[0])
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return mapped or found


def serve(machine: Machine, ports: Sequence[int]) -> None:
    """Listen on all these ports, TCP and UDP, IPv4 and IPv6."""
    machine.kept["accepted"] = {}
    machine.kept["udp"] = {}
    for port in ports:
        listener = socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=64)
        listener.setblocking(False)
        machine.selector.register(listener, 1, lambda found, m=machine: _accept(m, found))
        datagrams = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        datagrams.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        datagrams.bind(("::", port))
        datagrams.setblocking(False)
        machine.kept["udp"][port] = datagrams
        machine.selector.register(datagrams, 1, _answer_datagram)


def _accept(machine: Machine, listener: socket.socket) -> None:
    connection, peer = listener.accept()
    connection.setblocking(False)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    here = connection.getsockname()
    with contextlib.suppress(OSError):
        connection.send(f"{_plain(here[0])} {here[1]} {_plain(peer[0])}\n".encode())
    place = (_plain(peer[0]), peer[1])
    machine.kept["accepted"][place] = connection
    machine.selector.register(connection, 1, lambda found: _echo(machine, place, found))


def _echo(machine: Machine, place: tuple[IPAddress, int], connection: socket.socket) -> None:
    try:
        data = connection.recv(4096)
        if data:
            connection.send(data)
            return
    except BlockingIOError:
        return
    except OSError:
        machine.kept["accepted"][place] = None
    machine.selector.unregister(connection)
    connection.close()


def _answer_datagram(datagrams: socket.socket) -> None:
    with contextlib.suppress(OSError):
        data, peer = datagrams.recvfrom(4096)
        # To which of its addresses a datagram came, the program is not told: it says its peer's twice.
        seen = _plain(peer[0])
        datagrams.sendto(f"{seen} {datagrams.getsockname()[1]} {seen}\n".encode() + data, peer)


def _start(dial: Dial) -> socket.socket:
    family = socket.AF_INET if dial.target.version == 4 else socket.AF_INET6
    kind = socket.SOCK_STREAM if dial.proto is Proto.TCP else socket.SOCK_DGRAM
    client = socket.socket(family, kind)
    client.setblocking(False)
    if dial.proto is Proto.TCP:
        # What is said goes out at once, even while an answer to what was said before is outstanding.
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if dial.source_port:
        # A connection from there may just have ended.
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    client.bind((str(dial.source), dial.source_port))
    with contextlib.suppress(BlockingIOError, OSError):
        client.connect((str(dial.target), dial.port))
        client.send(b"hello\n")
    return client


def _greeting(client: socket.socket) -> Reached | None:
    """What a server said; None when it has not (yet). Raises OSError when it never will."""
    try:
        words = client.recv(4096).decode().split()
    except BlockingIOError:
        return None
    if len(words) < 3:
        raise ConnectionError("closed")
    return Reached(_plain(words[0]), int(words[1]), _plain(words[2]))


def _connect(
    machine: Machine, dials: Sequence[Dial], patience: float
) -> Iterator[tuple[socket.socket, Reached | None]]:
    begin = time.monotonic()
    clients = [_start(dial) for dial in dials]
    found: dict[int, Reached | None] = {}
    while len(found) < len(dials):
        waited = time.monotonic() - begin
        for place, (dial, client) in enumerate(zip(dials, clients, strict=True)):
            if place in found:
                continue
            try:
                reached = _greeting(client)
            except OSError:
                found[place] = None
                continue
            if reached is not None or waited > (HOPED_SECONDS if dial.hoped else patience):
                found[place] = reached
        machine.turn(0.002)
    for place, client in enumerate(clients):
        yield client, found[place]


def _close(client: socket.socket) -> None:
    if client.type == socket.SOCK_STREAM:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
    client.close()


def probe(machine: Machine, dials: Sequence[Dial], patience: float) -> list[Reached | None]:
    """Dial all at once; those not hoped for get `patience` seconds."""
    results = []
    for client, reached in _connect(machine, dials, patience):
        results.append(reached)
        _close(client)
    return results


def open_one(machine: Machine, dial: Dial) -> tuple[int, IPAddress, int, int] | None:
    """Dial and keep: (handle, address and port as the server sees them, port reached)."""
    ((client, reached),) = _connect(machine, [dial], HOPED_SECONDS)
    if reached is None:
        _close(client)
        return None
    handle = next(_handles)
    machine.kept[f"client {handle}"] = client
    return handle, reached.client, client.getsockname()[1], reached.port


class Spoken:
    """A line sent on a kept connection, until it comes back."""

    def __init__(self, client: socket.socket, patience: float) -> None:
        self._client, self._patience = client, patience
        self._line, self._heard = os.urandom(8).hex().encode() + b"\n", b""
        self._begin = time.monotonic()
        self._refused = False
        try:
            client.send(self._line)
        except OSError:
            self._refused = True

    def look(self) -> Life | None:
        """What has become of it; None while nothing has."""
        gone = Life.RESET if self._client.type == socket.SOCK_STREAM else Life.SILENT
        if self._refused:
            return gone
        try:
            more = self._client.recv(4096)
            if not more:
                return Life.RESET
            self._heard += more
        except BlockingIOError:
            pass
        except OSError:
            return gone
        if self._line in self._heard:
            return Life.ALIVE
        return Life.SILENT if time.monotonic() - self._begin > self._patience else None


class Said:
    """A line that a server sends to a client that has connected over TCP, until the client's system has it."""

    def __init__(self, machine: Machine, place: tuple[IPAddress, int], patience: float) -> None:
        self._accepted: dict[tuple[IPAddress, int], socket.socket | None] = machine.kept["accepted"]
        self._place, self._patience, self._begin = place, patience, time.monotonic()
        self._refused = False
        try:
            if (connection := self._accepted.get(place)) is not None:
                connection.send(b"hello again\n")
        except OSError:
            # The first call after a reset is told of it, and later ones see an ordinary end.
            self._refused = True

    def look(self) -> Life | None:
        """What has become of it; None while nothing has."""
        connection = self._accepted.get(self._place)
        if connection is None or self._refused:
            return Life.RESET
        if struct.unpack("i", fcntl.ioctl(connection.fileno(), _SIOCOUTQ, b"\0" * 4))[0] == 0:
            return Life.ALIVE
        return Life.SILENT if time.monotonic() - self._begin > self._patience else None


def _await(machine: Machine, lines: Sequence[Spoken | Said]) -> list[Life]:
    found: dict[int, Life] = {}
    while len(found) < len(lines):
        machine.turn(0.002)
        for place, line in enumerate(lines):
            if place not in found and (life := line.look()) is not None:
                found[place] = life
    return [found[place] for place in range(len(lines))]


def clients_speak(machine: Machine, clients: Sequence[tuple[int, float]]) -> list[Life]:
    """Send a line on kept connections, (handle, patience), all at once, and wait for each to come back."""
    return _await(machine, [Spoken(machine.kept[f"client {handle}"], patience) for handle, patience in clients])


def client_waits(machine: Machine, handle: int, patience: float) -> Life:
    """Say nothing on a kept connection; an error, also over UDP, is its end."""
    client: socket.socket = machine.kept[f"client {handle}"]
    begin = time.monotonic()
    while time.monotonic() - begin < patience:
        try:
            return Life.ALIVE if client.recv(4096) else Life.RESET
        except BlockingIOError:
            machine.turn(0.002)
        except OSError:
            return Life.RESET
    return Life.SILENT


def hears(machine: Machine, handle: int, patience: float) -> bool:
    """Whether a kept client hears anything."""
    client: socket.socket = machine.kept[f"client {handle}"]
    begin = time.monotonic()
    while time.monotonic() - begin < patience:
        with contextlib.suppress(OSError):
            return bool(client.recv(4096))
        machine.turn(0.002)
    return False


def servers_speak(
    machine: Machine, clients: Sequence[tuple[Proto, IPAddress, int, int]], patience: float
) -> list[Life]:
    """Send a line to clients, all at once: protocol, the client's address and port, the server's port.

    Over UDP the answer is SILENT: only the client can tell.
    """
    lines = []
    for proto, peer, peer_port, port in clients:
        if proto is Proto.TCP:
            lines.append(Said(machine, (peer, peer_port), patience))
            continue
        address = str(peer) if peer.version == 6 else f"::ffff:{peer}"
        with contextlib.suppress(OSError):
            machine.kept["udp"][port].sendto(b"hello again\n", (address, peer_port))
    lives = iter(_await(machine, lines))
    return [next(lives) if proto is Proto.TCP else Life.SILENT for proto, *_ in clients]


def hang_up(machine: Machine) -> None:
    """Drop every kept and accepted connection, without a word."""
    for name in [name for name in machine.kept if name.startswith("client ")]:
        _close(machine.kept.pop(name))
    for connection in machine.kept.get("accepted", {}).values():
        if connection is not None and connection.fileno() >= 0:
            with contextlib.suppress(KeyError):
                machine.selector.unregister(connection)
            _close(connection)
    machine.kept.get("accepted", {}).clear()


def open_tunnel(machine: Machine, other: int) -> None:
    """Make tun0 here and in the network namespace of another process, joined by this one. Raises PermissionError."""
    ends = [_tun("tun0")]
    with open("/proc/self/ns/net") as here, open(f"/proc/{other}/ns/net") as there:  # noqa: PTH123 - descriptors
        namespaces.setns(there.fileno())
        try:
            ends.append(_tun("tun0"))
        finally:
            namespaces.setns(here.fileno())
    for one, two in (ends, ends[::-1]):
        machine.selector.register(one, 1, lambda _, one=one, two=two: _copy(one, two))


def _tun(name: str) -> int:
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN_NO_PI))
    return device


def _copy(one: int, two: int) -> None:
    with contextlib.suppress(OSError):
        os.write(two, os.read(one, 65536))
