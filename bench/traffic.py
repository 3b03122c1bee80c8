# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The traffic: client and server in one thread, timed in batches. All times are in seconds.

A batch takes a few milliseconds: long enough that the clock costs nothing, short enough that two batches beside each
other see the same state of a busy machine.
"""

import contextlib
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from bench.network import OUTSIDE, OUTSIDE_AT, TARGET, TARGET_AT, Network

PAYLOAD = b"x" * 64
_NO_LINGER = struct.pack("ii", 1, 0)
_PATIENCE = struct.pack("ll", 2, 0)
_MEGABYTE = 1 << 20
_UDP_BATCH, _TCP_BATCH, _STREAM_BATCH = 60, 12, 2 * _MEGABYTE
_STANDSTILL = 10.0


class Pair:
    """A client's and a server's connected socket."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client, self.server = client, server

    def close(self) -> None:
        """Close both, without TIME_WAIT."""
        for end in (self.client, self.server):
            if end.family == socket.AF_INET and end.type == socket.SOCK_STREAM:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            end.close()

    def round_trip(self) -> None:
        """A message there and one back. BlockingIOError when none comes in two seconds."""
        self.client.send(PAYLOAD)
        self.server.recv(128)
        self.server.send(PAYLOAD)
        self.client.recv(128)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True)
class Line:
    """A way from a client to a server: what is dialled and where it arrives."""

    dialled: str
    port: int
    client: str = OUTSIDE
    server: str = TARGET
    server_at: str = TARGET_AT

    def udp(self, net: Network) -> Pair:
        """An established UDP flow: a datagram has gone each way."""
        server, client = self.udp_server(net), self.udp_client(net)
        client.send(PAYLOAD)
        _, peer = server.recvfrom(128)
        server.connect(peer)
        server.send(PAYLOAD)
        client.recv(128)
        return Pair(client, server)

    def udp_server(self, net: Network) -> socket.socket:
        """The server's socket."""
        with net.inside(self.server):
            server = _patient(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            # Connected servers on one port are told apart by their peers.
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind((self.server_at, self.port))
            return server

    def udp_client(self, net: Network, port: int = 0) -> socket.socket:
        """A client's socket; port 0: any."""
        with net.inside(self.client):
            client = _patient(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            client.bind(("", port))
            client.connect((self.dialled, self.port))
            return client

    def listener(self, net: Network) -> socket.socket:
        """The server's listening socket."""
        with net.inside(self.server):
            return _patient(socket.create_server((self.server_at, self.port), backlog=4096))

    def dial(self, listener: socket.socket) -> Pair:
        """A new TCP connection; to be called inside the client's namespace."""
        client = _patient(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
        client.connect((self.dialled, self.port))
        server, _ = listener.accept()
        return Pair(client, server)


def outward(port: int) -> Line:
    """Unrelated traffic: the qube's own, to a server outside."""
    return Line(OUTSIDE_AT, port, client=TARGET, server=OUTSIDE, server_at=OUTSIDE_AT)


def _patient(made: socket.socket) -> socket.socket:
    # Not settimeout(): it makes Python poll before each call.
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _PATIENCE)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _PATIENCE)
    return made


Batch = Callable[[], float]
"""Does a batch and gives the seconds that one unit took: a round trip, a transaction, a byte."""
Kind = Callable[[Network, Line], AbstractContextManager[Batch]]


@contextlib.contextmanager
def udp_round_trips(net: Network, line: Line) -> Iterator[Batch]:
    """Round trips of an established UDP flow."""
    with line.udp(net) as pair:
        yield lambda: _timed(pair.round_trip, _UDP_BATCH)


@contextlib.contextmanager
def tcp_transactions(net: Network, line: Line) -> Iterator[Batch]:
    """New TCP connections: connect, a message each way, close."""

    def transact() -> None:
        with line.dial(listener) as pair:
            pair.round_trip()

    def batch() -> float:
        with net.inside(line.client):
            return _timed(transact, _TCP_BATCH)

    with contextlib.closing(line.listener(net)) as listener:
        yield batch


@contextlib.contextmanager
def tcp_bytes(net: Network, line: Line) -> Iterator[Batch]:
    """The bytes of one TCP stream."""
    buffer, data = bytearray(4 * _MEGABYTE), memoryview(bytes(_MEGABYTE))
    with contextlib.closing(line.listener(net)) as listener:
        with net.inside(line.client):
            pair = line.dial(listener)
        with pair:
            pair.client.setblocking(False)
            pair.server.setblocking(False)
            yield lambda: _move(pair, buffer, data) / _STREAM_BATCH


@contextlib.contextmanager
def idle_round_trips() -> Iterator[Batch]:
    """The loop of udp_round_trips() between two sockets without a network: what the measuring program costs."""
    with Pair(*socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)) as pair:
        yield lambda: _timed(pair.round_trip, _UDP_BATCH)


def _move(pair: Pair, buffer: bytearray, data: memoryview) -> float:
    sent = received = 0
    begin = time.perf_counter()
    while received < _STREAM_BATCH:
        with contextlib.suppress(BlockingIOError):
            while sent < _STREAM_BATCH:
                sent += pair.client.send(data[: _STREAM_BATCH - sent])
        with contextlib.suppress(BlockingIOError):
            while received < sent:
                received += pair.server.recv_into(buffer)
        if time.perf_counter() - begin > _STANDSTILL:
            raise RuntimeError("a TCP stream stands still")
    return time.perf_counter() - begin


def _timed(work: Callable[[], None], count: int) -> float:
    begin = time.perf_counter()
    for _ in range(count):
        work()
    return (time.perf_counter() - begin) / count
