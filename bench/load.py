# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""What happens to other traffic while forwards change, and what is left of the connections of a revoked one."""

import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace

from bench.bed import Bed, Layout, Variant
from bench.entries import SPARE_PORT, Clients, forwards, middle, spare
from bench.network import HOP1_AT, HOPS
from bench.traffic import Line, Pair
from lab.inside.commands import sysctl
from portfwd.wire.entry import Entry
from portfwd.wire.values import Proto

_ANSWER_SECONDS = 0.3
_PER_SECOND = 1000
_FLOW_SECONDS = 2
_SPARE = Line(HOP1_AT, SPARE_PORT)


@dataclass
class Sent:
    """New UDP flows, each a datagram there and one back: how many, and what became of those that failed."""

    flows: int = 0
    lost: int = 0
    refused: int = 0
    wrong: int = 0

    @property
    def failed(self) -> int:
        """All that failed."""
        return self.lost + self.refused + self.wrong


@dataclass(frozen=True)
class LossRow:
    """Changes under load."""

    what: str
    count: int
    clients: Clients
    changes: int
    sent: Sent


@dataclass(frozen=True)
class CutRow:
    """Connections before a forward is revoked, and how many of them can still speak after it."""

    proto: Proto
    opened: int
    alive: int
    others: int
    others_alive: int


def losses(
    bed: Bed, cases: Iterable[tuple[int, Clients]], changes: int, say: Callable[[str], None]
) -> Iterator[LossRow]:
    """Change a neighbour of the measured forward, then the measured forward itself, while new flows go through it."""
    for node in HOPS:
        with bed.net.inside(node):
            # The flows shall not fill the connection table: the sweep of each removal reads it.
            sysctl(netfilter__nf_conntrack_udp_timeout=_FLOW_SECONDS)
    for count, clients in cases:
        for what, change in (("another forward comes and goes", _neighbour), ("its own expiry changes", _expiry)):
            say(f"losses: {what}, {count} forwards, {clients.value}")
            variant = Variant(Layout.OURS, count, clients)
            bed.load(variant)
            with _load(bed, variant.line) as sent:
                for turn in range(changes):
                    for node in HOPS:
                        bed.bring(node, change(forwards(node, count, clients), node, clients, turn), clients)
            yield LossRow(what, count, clients, changes, sent)


def _neighbour(many: list[Entry], node: str, clients: Clients, turn: int) -> list[Entry]:
    return [*many, spare(node, clients, Proto.UDP)] if turn % 2 == 0 else many


def _expiry(many: list[Entry], _node: str, _clients: Clients, turn: int) -> list[Entry]:
    *others, measured = many
    return [*others, replace(measured, expire=int(time.time()) + 3600 + turn)]


@contextlib.contextmanager
def _load(bed: Bed, line: Line) -> Iterator[Sent]:
    """New flows from another process as long as this lasts; the figures are there afterwards."""
    sent = Sent()
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        status = 1
        try:
            os.write(write_end, json.dumps(asdict(_send(bed, line, write_end))).encode())
            status = 0
        finally:
            sys.stderr.flush()
            os._exit(status)
    os.close(write_end)
    with os.fdopen(read_end, "rb", buffering=0) as answer:
        answer.read(1)
        try:
            yield sent
        finally:
            os.kill(child, signal.SIGTERM)
            found = answer.read(4096)
            _, status = os.waitpid(child, 0)
    if status:
        raise RuntimeError("the load generator failed")
    for name, number in json.loads(found).items():
        setattr(sent, name, number)


def _send(bed: Bed, line: Line, ready: int) -> Sent:
    sent, stopped = Sent(), []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
    with contextlib.closing(line.udp_server(bed.net)) as server:
        server.settimeout(_ANSWER_SECONDS)
        os.write(ready, b".")
        begin = time.monotonic()
        while not stopped:
            if sent.flows > (time.monotonic() - begin) * _PER_SECOND:
                time.sleep(0.001)
                continue
            with contextlib.closing(line.udp_client(bed.net)) as client:
                _one_flow(client, server, sent)
    return sent


def _one_flow(client: socket.socket, server: socket.socket, sent: Sent) -> None:
    client.settimeout(_ANSWER_SECONDS)
    sent.flows += 1
    word = str(sent.flows).encode()
    try:
        client.send(word)
        while True:
            heard, peer = server.recvfrom(64)
            if heard == word:
                break
        server.sendto(word, peer)
        sent.wrong += client.recv(64) != word
    except TimeoutError:
        sent.lost += 1
    except OSError:
        sent.refused += 1


def cuts(bed: Bed, count: int, flows: int, say: Callable[[str], None]) -> Iterator[CutRow]:
    """Revoke a forward with open connections; both sides of each go on speaking, the server first."""
    for proto in Proto:
        say(f"cuts: {flows} {proto.value} connections")
        bed.load(Variant(Layout.OURS, count))
        for node in HOPS:
            bed.bring(node, [*forwards(node, count), spare(node, proto=proto)])
        line = Line(HOP1_AT, middle(count))
        with _opened(bed, _SPARE, proto, flows) as doomed, _opened(bed, line, proto, flows) as kept:
            for node in HOPS:
                bed.bring(node, forwards(node, count))
            yield CutRow(proto, flows, _speaking(doomed), flows, _speaking(kept))


@contextlib.contextmanager
def _opened(bed: Bed, line: Line, proto: Proto, count: int) -> Iterator[list[Pair]]:
    with contextlib.ExitStack() as stack:
        if proto is Proto.UDP:
            yield [stack.enter_context(line.udp(bed.net)) for _ in range(count)]
            return
        listener = stack.enter_context(contextlib.closing(line.listener(bed.net)))
        with bed.net.inside(line.client):
            pairs = [stack.enter_context(line.dial(listener)) for _ in range(count)]
        for pair in pairs:
            pair.round_trip()
        yield pairs


def _speaking(pairs: list[Pair]) -> int:
    """Over how many a message still gets through, in whichever direction, at the first or the second try."""
    for pair in pairs:
        pair.server.setblocking(False)
        pair.client.setblocking(False)
    alive: set[int] = set()
    for first in (0, 1):
        for pair in pairs:
            for end in (pair.server, pair.client)[:: 1 - 2 * first]:
                with contextlib.suppress(OSError):
                    end.send(b"hello")
        deadline = time.monotonic() + _ANSWER_SECONDS
        while len(alive) < len(pairs) and time.monotonic() < deadline:
            alive |= {place for place, pair in enumerate(pairs) if _heard(pair.client) or _heard(pair.server)}
    return len(alive)


def _heard(end: socket.socket) -> bool:
    with contextlib.suppress(OSError):
        return bool(end.recv(64))
    return False
