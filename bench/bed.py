# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The network with the product's own firewall in it: load a variant, and it is ready to be measured."""

import enum
import time
from collections.abc import Iterable
from dataclasses import dataclass

from bench import rulesets
from bench.entries import SPARE_PORT, Clients, around, forwards, middle, spare
from bench.network import HOP1, HOP1_AT, HOP2, HOP2_AT, HOPS, TARGET, TARGET_AT, Network
from bench.traffic import Line
from lab.inside.network import BASE_TABLES, NFT
from portfwd.agent.rules.firewall import Firewall
from portfwd.kernel.conntrack import Conntrack
from portfwd.kernel.netlink import NETLINK_NETFILTER, Netlink
from portfwd.kernel.nft import LibNft
from portfwd.wire.acknowledgement import Result
from portfwd.wire.entry import Entry
from portfwd.wire.values import Proto

_CT_DELETE = 0x102
_ALLOWED = {
    HOP1: f'"vif1.0" . {HOP2_AT}, "vif1.0" . {TARGET_AT}',
    HOP2: f'"vif2.0" . {TARGET_AT}',
}
_DOWNSTREAM = {HOP1: HOP2_AT, HOP2: TARGET_AT}
FILTERED = (*HOPS, TARGET)


class Layout(enum.Enum):
    """A way to forward ports."""

    PLAIN = "plain routing"
    OURS = "ours"
    MARKED = "number in the mark"
    LINEAR = "one rule each"


@dataclass(frozen=True)
class Variant:
    """What is loaded: `count` forwards in both hops.

    `guard`: with the chains that watch for revoked connections. `numbered`: with those that lead replies back to the
    uplink by which the connection came. `target`: the product opens the target's input, too.
    """

    layout: Layout
    count: int = 0
    clients: Clients = Clients.ANYONE
    width: int = 1
    guard: bool = False
    numbered: bool = False
    target: bool = False

    @property
    def title(self) -> str:
        """For a table."""
        words = [self.layout.value]
        if self.clients is not Clients.ANYONE:
            words.append(self.clients.value)
        if self.width > 1:
            words.append(f"ranges of {self.width}")
        words += ["guard"] * self.guard + ["numbered uplink"] * self.numbered + ["target's input too"] * self.target
        return ", ".join(words)

    @property
    def line(self) -> Line:
        """What the client dials."""
        if self.layout is Layout.PLAIN:
            return Line(TARGET_AT, middle(1))
        return Line(HOP1_AT, middle(self.count, self.width))


class Bed:
    """The namespaces with nftables and conntrack of each."""

    def __init__(self) -> None:
        self.net = Network()
        self.nft: dict[str, LibNft] = {}
        self.conntrack: dict[str, Conntrack] = {}
        self.firewalls: dict[str, Firewall] = {}
        self._netlink: dict[str, Netlink] = {}
        for node in FILTERED:
            with self.net.inside(node):
                self.nft[node], self.conntrack[node] = LibNft(), Conntrack()
                self._netlink[node] = Netlink(NETLINK_NETFILTER)

    def load(self, variant: Variant) -> None:
        """Empty everything, connections too, and load the variant."""
        self.empty()
        ports = [middle(1) + index for index in range(variant.count)]
        udp = variant.line.port
        for node in HOPS:
            if variant.layout is Layout.PLAIN:
                self.nft[node].run(rulesets.PLAIN_FORWARD)
            elif variant.layout is Layout.LINEAR:
                self.nft[node].run(rulesets.linear(node, ports, udp))
            elif variant.layout is Layout.MARKED:
                self.nft[node].run(rulesets.marked(node, ports, udp))
            else:
                self.bring(node, _many(node, variant), variant.clients, variant.numbered)
        if variant.target:
            self.bring(TARGET, _many(TARGET, variant), variant.clients, variant.numbered)
        else:
            self.nft[TARGET].run(rulesets.PLAIN_INPUT)
        if variant.guard:
            self._summon_guards(variant)

    def empty(self) -> None:
        """Base tables only, no connections, an agent that has just started."""
        base = "".join((NFT / name).read_text(encoding="utf-8") for name in BASE_TABLES)
        for node in FILTERED:
            self.nft[node].run("flush ruleset\n" + base + _known_clients(node))
            with self.net.inside(node):
                self.firewalls[node] = Firewall(self.nft[node], self.conntrack[node])
        self.forget_flows()

    def forget_flows(self) -> None:
        """No connection is known anywhere."""
        for netlink in self._netlink.values():
            netlink.request(_CT_DELETE, b"\0\0\0\0")

    def bring(
        self, node: str, entries: Iterable[Entry], clients: Clients = Clients.ANYONE, numbered: bool = False
    ) -> None:
        """Let the product bring a node to these entries. RuntimeError when one of them does not work."""
        wanted = list(entries)
        surroundings = around(len(wanted), time.time(), clients, numbered)
        results = self.firewalls[node].bring(wanted, surroundings)
        self.firewalls[node].revoke_all(surroundings.now)
        failed = [key for key, result in results.items() if result is not Result.OK]
        if failed:
            raise RuntimeError(f"{len(failed)} entries did not work at {node}, such as {failed[0]}")

    def _summon_guards(self, variant: Variant) -> None:
        """Have a forward revoked while a connection goes through it: the guards stand from then on."""
        many = {node: _many(node, variant) for node in HOPS}
        for node in HOPS:
            self.bring(node, [*many[node], spare(node, proto=Proto.UDP)], variant.clients)
        Line(HOP1_AT, SPARE_PORT).udp(self.net).close()
        for node in HOPS:
            self.bring(node, many[node], variant.clients)
            self.nft[node].run("list chain ip qubes-port-forward guard-forward")


def _many(node: str, variant: Variant) -> list[Entry]:
    return forwards(node, variant.count, variant.clients, variant.width)


def _known_clients(node: str) -> str:
    if node not in _ALLOWED:
        return ""
    return (
        f"add element ip qubes allowed {{ {_ALLOWED[node]} }}\n"
        f"add element ip qubes downstream {{ {_DOWNSTREAM[node]} }}\n"
    )
