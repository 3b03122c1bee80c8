# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""What a change costs: Firewall.bring from call to return, and where the time goes. All times are in seconds."""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from bench.bed import Bed
from bench.entries import SPARE_PORT, Clients, around, forwards, middle, spare
from bench.network import CLIENTS_FROM, HOP1, HOP1_AT
from bench.traffic import PAYLOAD, Line
from portfwd.agent.rules.firewall import Firewall
from portfwd.agent.rules.skeleton import MARK_OURS
from portfwd.kernel.conntrack import ALL, Conntrack, Flow, Which
from portfwd.kernel.nft import LibNft
from portfwd.wire.entry import Entry
from portfwd.wire.values import Proto

NODE = HOP1


@dataclass
class Clock:
    """Seconds spent in nft and in conntrack."""

    nft: float = 0.0
    flows: float = 0.0


class TimedNft:
    """The product's nft, with a clock."""

    def __init__(self, nft: LibNft, clock: Clock) -> None:
        self._nft, self._clock = nft, clock

    def run(self, text: str) -> str:
        """As LibNft.run()."""
        begin = time.perf_counter()
        try:
            return self._nft.run(text)
        finally:
            self._clock.nft += time.perf_counter() - begin


class TimedFlows:
    """The product's connection table, with a clock."""

    def __init__(self, flows: Conntrack, clock: Clock) -> None:
        self._flows, self._clock = flows, clock

    def marked(self, bit: int, which: Which = ALL) -> list[Flow]:
        """As Conntrack.marked()."""
        begin = time.perf_counter()
        try:
            return list(self._flows.marked(bit, which))
        finally:
            self._clock.flows += time.perf_counter() - begin

    def unmarked(self, bit: int, which: Which = ALL) -> list[Flow]:
        """As Conntrack.unmarked()."""
        begin = time.perf_counter()
        try:
            return list(self._flows.unmarked(bit, which))
        finally:
            self._clock.flows += time.perf_counter() - begin

    def forget(self, flow: Flow) -> None:
        """As Conntrack.forget()."""
        begin = time.perf_counter()
        self._flows.forget(flow)
        self._clock.flows += time.perf_counter() - begin


@dataclass(frozen=True)
class Cost:
    """Medians of one kind of change: in all, and of that in nft, in conntrack, and in Python."""

    total: float
    nft: float
    flows: float
    python: float


@dataclass(frozen=True)
class ChangeRow:
    """Changing one forward among `count`."""

    count: int
    clients: Clients
    load: Cost
    add: Cost
    remove: Cost


@dataclass(frozen=True)
class SweepRow:
    """Removing a forward while there are flows."""

    others: int
    doomed: int
    forwards: int
    remove: Cost


class Stopwatch:
    """A hop's firewall with clocks in it."""

    def __init__(self, bed: Bed) -> None:
        self._bed = bed
        self._clock = Clock()
        self._firewall = Firewall(TimedNft(bed.nft[NODE], self._clock), TimedFlows(bed.conntrack[NODE], self._clock))

    def bring(self, entries: Iterable[Entry], count: int, clients: Clients = Clients.ANYONE) -> Cost:
        """One change."""
        wanted, surroundings = list(entries), around(count, time.time(), clients)
        self._clock.nft = self._clock.flows = 0.0
        begin = time.perf_counter()
        results = self._firewall.bring(wanted, surroundings)
        self._firewall.revoke_all(surroundings.now)
        total = time.perf_counter() - begin
        if set(results.values()) - {"ok"}:
            raise RuntimeError("an entry did not work")
        return Cost(total, self._clock.nft, self._clock.flows, total - self._clock.nft - self._clock.flows)


def changes(
    bed: Bed, cases: Iterable[tuple[int, Clients]], repetitions: int, say: Callable[[str], None]
) -> Iterator[ChangeRow]:
    """First load of N forwards, then one more and one less, again and again."""
    for count, clients in cases:
        say(f"changes: {count} forwards, {clients.value}")
        bed.empty()
        watch = Stopwatch(bed)
        many = forwards(NODE, count, clients)
        more = [*many, spare(NODE, clients)]
        load = watch.bring(many, count, clients)
        pairs = [(watch.bring(more, count, clients), watch.bring(many, count, clients)) for _ in range(repetitions)]
        yield ChangeRow(count, clients, load, _middle(p[0] for p in pairs), _middle(p[1] for p in pairs))


def sweeps(
    bed: Bed, cases: Iterable[tuple[int, int, int]], repetitions: int, say: Callable[[str], None]
) -> Iterator[SweepRow]:
    """Remove one forward of many flows; a case is the flows that stay, the flows that go, the forwards that stay."""
    for others, doomed, count in cases:
        say(f"sweeps: {others} flows stay, {doomed} go, {count} forwards")
        many = forwards(NODE, count)
        more = [*many, spare(NODE, proto=Proto.UDP)]
        costs = []
        for _ in range(repetitions):
            bed.empty()
            watch = Stopwatch(bed)
            watch.bring(more, count)
            _open(bed, middle(count), others)
            _open(bed, SPARE_PORT, doomed)
            before = len(list(bed.conntrack[NODE].marked(MARK_OURS)))
            costs.append(watch.bring(many, count))
            after = len(list(bed.conntrack[NODE].marked(MARK_OURS)))
            if before - after != doomed or after < others:
                raise RuntimeError(f"{before} flows became {after}, {doomed} should have gone")
        yield SweepRow(others, doomed, count, _middle(costs))


def _open(bed: Bed, port: int, count: int) -> None:
    """So many UDP flows to one port, from as many ports of the client."""
    line = Line(HOP1_AT, port)
    for place in range(count):
        with contextlib.closing(line.udp_client(bed.net, CLIENTS_FROM + place)) as client:
            client.send(PAYLOAD)


def _middle(costs: Iterable[Cost]) -> Cost:
    found = list(costs)
    return Cost(*(statistics.median(getattr(c, name) for c in found) for name in ("total", "nft", "flows", "python")))
