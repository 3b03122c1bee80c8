# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The results as a Markdown page. PURE text, apart from the description of the machine."""

import os
import platform
import subprocess
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from bench.bed import Layout
from bench.changes import ChangeRow, Cost, SweepRow
from bench.entries import Clients
from bench.load import CutRow, LossRow
from bench.packets import MEASURES, PLAIN, Table

UDP, TCP, STREAM, OTHER_UDP, OTHER_TCP = (measure.title for measure in MEASURES)


_METHOD = """\
The network is outside - sys-net - sys-firewall - work, in namespaces, with the base tables of Qubes. The product itself
loads the forwards, as many in both net qubes, and the measured connection takes the middle one. Plain routing is the
same network with the base tables and no DNAT, where everything that comes in is accepted. Two such networks stand side
by side, one with plain routing and one with the variant; short batches alternate between them, each ratio is of two
batches that followed each other, and the networks change roles at every repetition. A ratio is the median of the
repetitions, the figure behind it half the distance of their quartiles. Smaller is faster. The first line, plain routing
beside itself, shows what is noise. Ratios carry over to other machines better than times.

The measuring program, client and server in one thread, is a part of every time, of plain routing's as well:"""

_PACKETS = """\
## Packets and connections

`one rule each` is what people write by hand, a DNAT rule and an accept rule for each forward; with a single forward it
is the price of DNAT itself. `number in the mark` is another layout of maps, where the connection mark holds the
forward's number. `guard`: with the chains that stand for ten minutes after connections of a revoked forward were cut.
`numbered uplink`: with the chains that lead replies back to the uplink of their connection, for net qubes with several.
`target's input too`: the product opens the target's input as well (in all other lines the target accepts everything).
Unrelated traffic is the target's own, outward.
"""


@dataclass
class Results:
    """Everything that one run found. `client` is in seconds per round trip."""

    mode: str
    client: float
    packets: Table
    changes: list[ChangeRow] = field(default_factory=list)
    sweeps: list[SweepRow] = field(default_factory=list)
    losses: list[LossRow] = field(default_factory=list)
    cuts: list[CutRow] = field(default_factory=list)


@dataclass(frozen=True)
class Aim:
    """A figure that we want to reach: at most `limit`. `noise` is the uncertainty of what was found."""

    what: str
    limit: float
    found: float
    noise: float = 0.0

    @property
    def verdict(self) -> str:
        """For the table."""
        if self.found <= self.limit:
            return "reached"
        return "missed by less than the noise" if self.found - self.noise <= self.limit else "missed"


def machine() -> str:
    """What was measured on."""
    nft = (
        subprocess.run(["nft", "--version"], capture_output=True, text=True, check=False).stdout.split(" (")[0].strip()
    )
    load = " ".join(f"{number:.1f}" for number in os.getloadavg())
    return (
        f"{time.strftime('%Y-%m-%d', time.gmtime())}, Linux {platform.release().split('-')[0]} {platform.machine()}, "
        f"{nft}, {os.cpu_count()} cores, Python {platform.python_version()}, load average before {load}"
    )


def aims(results: Results) -> list[Aim]:
    """The aims, and what this run found for the plain case: forwards for anyone, no guard."""
    usual = {
        v.count: figures
        for v, figures in results.packets.items()
        if v.layout is Layout.OURS
        and v.clients is Clients.ANYONE
        and v.width == 1
        and not (v.guard or v.numbered or v.target)
    }
    low, high = min(usual), max(usual)

    def worst(title: str, limit: float, name: str = "") -> Aim:
        figures = max((found[title] for found in usual.values()), key=lambda f: f.ratio)
        return Aim(f"{name}{title} / plain routing", limit, figures.ratio, figures.spread)

    def growth(title: str) -> Aim:
        one, many = usual[low][title], usual[high][title]
        return Aim(f"{title}, {high:,} forwards / {low:,}", 1.05, many.ratio / one.ratio, one.spread + many.spread)

    open_to_all = {row.count: row for row in results.changes if row.clients is Clients.ANYONE}
    few, lot = min(open_to_all), max(open_to_all)
    before, after = open_to_all[few].add, open_to_all[lot].add
    return [
        worst(UDP, 1.10),
        worst(UDP, 1.06, "stretch: "),
        worst(TCP, 1.12),
        worst(TCP, 1.08, "stretch: "),
        growth(UDP),
        growth(TCP),
        worst(STREAM, 1.05),
        worst(OTHER_UDP, 1.02),
        worst(OTHER_TCP, 1.02),
        Aim(f"adding one among {lot:,} / among {few:,}: in nft", 1.5, after.nft / before.nft),
        Aim(f"adding one among {lot:,} / among {few:,}: in all", 1.5, after.total / before.total),
        Aim("new flows that failed during changes", 0, sum(row.sent.failed for row in results.losses)),
        Aim("connections of a revoked forward that live on", 0, sum(row.alive for row in results.cuts)),
        Aim("connections of other forwards that were hit", 0, sum(r.others - r.others_alive for r in results.cuts)),
    ]


def page(results: Results, described: str) -> str:
    """The whole page."""
    parts = (_head(described, results), _aims(results), _packets(results), _changes(results), _sweeps(results))
    return "\n".join("\n".join(part) for part in (*parts, _losses(results), _cuts(results)))


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> Iterator[str]:
    titles = list(head)
    yield f"| {' | '.join(titles)} |"
    yield f"|{'|'.join(['---', *['---:'] * (len(titles) - 1)])}|"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def _head(described: str, results: Results) -> Iterator[str]:
    yield from ("# Benchmarks", "", f"Written by `./run bench`: {described}; {results.mode} mode.", "")
    yield from _METHOD.splitlines()
    yield f"a round trip between two local sockets, without any network, takes it {results.client * 1e6:.1f} us."
    yield ""


def _aims(results: Results) -> Iterator[str]:
    yield from ("## Aims", "", "For forwards that are open to anyone; the worst of all numbers of forwards.", "")
    rows = (
        [aim.what, f"{aim.limit:g}", f"{aim.found:.3f}" if aim.limit else f"{aim.found:g}", aim.verdict]
        for aim in aims(results)
    )
    yield from _table(("", "at most", "found", ""), rows)


def _packets(results: Results) -> Iterator[str]:
    yield from (*_PACKETS.splitlines(), "")
    rows = []
    for variant, figures in results.packets.items():
        count = f"{variant.count:,}" if variant is not PLAIN else "-"
        rows.append([variant.title, count, *(f"{f.ratio:.3f} ± {f.spread:.3f}" for f in figures.values())])
    yield from _table(("ruleset", "forwards", *(measure.title for measure in MEASURES)), rows)
    found = results.packets[PLAIN]
    yield f"Plain routing in this run: {found[UDP].plain_median * 1e6:.1f} us a round trip, "
    yield f"{1 / found[TCP].plain_median:,.0f} new TCP connections a second one after the other, "
    yield f"{8e-9 / found[STREAM].plain_median:.1f} Gbit/s in one TCP stream."
    yield ""


def _cost(cost: Cost) -> list[str]:
    return [f"{seconds * 1e3:.1f}" for seconds in (cost.total, cost.nft, cost.flows, cost.python)]


_PARTS = ("in all", "nft", "conntrack", "Python")


def _changes(results: Results) -> Iterator[str]:
    yield from (
        "## Changes",
        "",
        "One forward more or less among N in one net qube, from the agent's decision to the end of the transaction, in",
        "milliseconds. A removal always looks through the connection table of the kernel.",
        "",
    )
    rows = [
        [f"{what}, {row.clients.value}", f"{row.count:,}", *_cost(cost)]
        for row in results.changes
        for what, cost in (("load all", row.load), ("add one", row.add), ("remove one", row.remove))
    ]
    yield from _table(("change, clients", "forwards", *_PARTS), rows)


def _sweeps(results: Results) -> Iterator[str]:
    yield from ("Removing a forward while connections are open, in milliseconds:", "")
    rows = [
        [f"{row.others:,} stay, {row.doomed:,} end", f"{row.forwards:,}", *_cost(row.remove)] for row in results.sweeps
    ]
    yield from _table(("connections", "forwards", *_PARTS), rows)


def _losses(results: Results) -> Iterator[str]:
    yield from (
        "## Under load",
        "",
        "New UDP flows go through one forward all the time, a datagram each way, while the forwards of both net qubes",
        "change.",
        "",
    )
    rows = [
        [
            f"{row.what}, {row.clients.value}",
            *(
                f"{n:,}"
                for n in (row.count, row.changes, row.sent.flows, row.sent.lost, row.sent.refused, row.sent.wrong)
            ),
        ]
        for row in results.losses
    ]
    yield from _table(("change", "forwards", "changes", "new flows", "lost", "refused", "misdelivered"), rows)


def _cuts(results: Results) -> Iterator[str]:
    yield from ("A forward is revoked in both net qubes; then both sides of every connection go on speaking.", "")
    rows = [
        [row.proto.value, f"{row.opened} / {row.alive}", f"{row.others} / {row.others_alive}"] for row in results.cuts
    ]
    yield from _table(("connections before / after", "of the revoked forward", "of another"), rows)
