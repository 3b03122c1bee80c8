# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""What a packet and a connection cost: each variant beside plain routing, batch by batch.

Two equal networks stand side by side. One holds plain routing, the other the variant; batches alternate between them,
and each ratio is of two batches that followed each other. The networks change roles at every repetition.
"""

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from bench.bed import Bed, Layout, Variant
from bench.traffic import Kind, Line, idle_round_trips, outward, tcp_bytes, tcp_transactions, udp_round_trips

_OUTWARD_PORT = 5000
PLAIN = Variant(Layout.PLAIN)


@dataclass(frozen=True)
class Measure:
    """One thing that is measured: its batches per repetition, and the line that the traffic takes."""

    title: str
    kind: Kind
    batches: int
    line: Callable[[Variant], Line]


MEASURES = (
    Measure("established UDP round trip", udp_round_trips, 80, lambda v: v.line),
    Measure("new TCP connection", tcp_transactions, 60, lambda v: v.line),
    Measure("byte of a TCP stream", tcp_bytes, 120, lambda v: v.line),
    Measure("unrelated UDP round trip", udp_round_trips, 60, lambda _: outward(_OUTWARD_PORT)),
    Measure("unrelated new TCP connection", tcp_transactions, 40, lambda _: outward(_OUTWARD_PORT)),
)


@dataclass
class Figures:
    """One measure of one variant over the repetitions. Seconds per unit; ratios to plain routing, one a repetition."""

    plain: list[float] = field(default_factory=list)
    own: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """The median of the repetitions."""
        return statistics.median(self.ratios)

    @property
    def plain_median(self) -> float:
        """Seconds per unit with plain routing."""
        return statistics.median(self.plain)

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles of the repetitions."""
        if len(self.ratios) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.ratios, n=4, method="inclusive")
        return (high - low) / 2


Table = dict[Variant, dict[str, Figures]]


def measure(
    beds: tuple[Bed, Bed], variants: Iterable[Variant], repetitions: int, effort: float, say: Callable[[str], None]
) -> Table:
    """Measure all variants, `repetitions` times in turn and every second time in reverse order.

    `effort` is the part of the usual number of batches that is done each time.
    """
    wanted = list(variants)
    table: Table = {variant: {m.title: Figures() for m in MEASURES} for variant in wanted}
    for repetition in range(repetitions):
        say(f"packets: repetition {repetition + 1} of {repetitions}")
        plain, other = beds if repetition % 2 == 0 else beds[::-1]
        plain.load(PLAIN)
        for variant in wanted if repetition % 2 == 0 else reversed(wanted):
            other.load(variant)
            for what in MEASURES:
                batches = max(4, round(what.batches * effort))
                _beside((plain, other), variant, what, batches, table[variant][what.title])
    return table


def _beside(beds: tuple[Bed, Bed], variant: Variant, what: Measure, batches: int, figures: Figures) -> None:
    plain, other = beds
    with what.kind(plain.net, what.line(PLAIN)) as one, what.kind(other.net, what.line(variant)) as two:
        one(), two()
        pairs = [(one(), two()) if turn % 2 == 0 else (two(), one())[::-1] for turn in range(batches)]
    figures.plain.append(statistics.median(pair[0] for pair in pairs))
    figures.own.append(statistics.median(pair[1] for pair in pairs))
    figures.ratios.append(statistics.median(pair[1] / pair[0] for pair in pairs))
    plain.forget_flows()
    other.forget_flows()


def client_cost() -> float:
    """Seconds that the measuring program itself takes for a round trip."""
    with idle_round_trips() as batch:
        return statistics.median(batch() for _ in range(100))
