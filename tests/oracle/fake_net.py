# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The cables of the computer on fakes: interfaces and routes as Qubes sets them, and packets that run through them."""

import ipaddress
import itertools
from collections.abc import Iterable
from typing import NamedTuple

from portfwd.wire.values import Family, IPAddress, Proto
from tests.fakes.app import FakeVM
from tests.fakes.nft_trace import FakeHost, Interface
from tests.fakes.packets import ACK, SYN, SYN_ACK, Fate, Packet
from tests.oracle.driver import Question
from tests.oracle.node import Node
from tests.oracle.rules import Client, Home

HOME_LAN, GUEST_LAN = ("192.168.1", "2001:db8:1"), ("192.168.77", "2001:db8:77")
OUTSIDE = {
    "laptop": ("192.168.1.20", "2001:db8:1::14"),
    "phone": ("192.168.1.30", "2001:db8:1::1e"),
    "guest": ("192.168.77.20", "2001:db8:77::14"),
    "stranger": ("203.0.113.80", "2001:db8:ffff::50"),
}
PORTS = tuple(range(1000, 1008))
_NONE: frozenset[str] = frozenset()
_LONGEST = 16
"""Hops."""


class Card(NamedTuple):
    """A network card: its network, and its number there."""

    lan: tuple[str, str]
    number: int

    @property
    def addresses(self) -> dict[int, ipaddress.IPv4Interface | ipaddress.IPv6Interface]:
        """By family."""
        return {
            4: ipaddress.IPv4Interface(f"{self.lan[0]}.{self.number}/24"),
            6: ipaddress.IPv6Interface(f"{self.lan[1]}::{self.number:x}/64"),
        }


class Open(NamedTuple):
    """A connection: its first packet, the entrance and interface by which that came, the qube and port it reached."""

    first: Packet
    entrance: str
    interface: str
    qube: str
    port: int


def addresses_of(vm: FakeVM) -> list[str]:
    """The addresses that lead to a qube; the translation of net.fake-ip knows IPv4 only."""
    return [str(a) for a in (vm.ip, None if "net.fake-ip" in vm.features else vm.ip6) if a]


class FakeNet:
    """Qubes, their kernels, and the cables between them."""

    def __init__(self) -> None:
        self.vms: dict[str, FakeVM] = {}
        self.nodes: dict[str, Node] = {}
        self.numbers: dict[str, int] = {}
        self.cards = {
            "sys-net": {"ens6": Card(HOME_LAN, 10), "wls7": Card(GUEST_LAN, 10)},
            "sys-usb": {"ens6": Card(HOME_LAN, 11)},
        }
        self.paused: set[str] = set()
        self.connections: dict[Question, Open] = {}
        self._ephemeral = itertools.count(30000)

    def clients(self, home: Home) -> list[Client]:
        """See Driver."""
        lans = {card.lan for cards in self.cards.values() for card in cards.values()}
        outside = [
            Client(name, {4: v4, 6: v6}, any(v4.startswith(f"{lan[0]}.") for lan in lans))
            for name, (v4, v6) in OUTSIDE.items()
        ]
        inside = [
            Client(q.name, q.addresses, qube=q.name, netvm=q.netvm)
            for q in home.qubes.values()
            if q.running and q.netvm and not q.paused
        ]
        return outside + inside

    def questions(self, home: Home) -> list[Question]:
        """See Driver."""
        found = []
        for client in self.clients(home):
            netvm = home.qubes[client.qube].netvm if client.qube else None
            entrances = [netvm] if netvm else [name for name in self.cards if self.card(client.name, name)]
            for entrance in entrances:
                # Who does not know an address of the net qube in a family cannot knock by it.
                families = home.qubes[entrance].addresses if client.qube else client.addresses
                ways = itertools.product(client.addresses.keys() & families.keys(), ("tcp", "udp"), PORTS)
                found += [Question(client.name, entrance, way) for way in ways]
        return found

    def ask(self, home: Home, questions: Iterable[Question]) -> dict[Question, tuple[str, int] | None]:
        """See Driver."""
        clients = {client.name: client for client in self.clients(home)}
        found = {question: self._knock(clients[question.client], question) for question in questions}
        return {q: None if answer is None else answer[0] for q, answer in found.items()}

    def may_hold(self, question: Question) -> bool:
        """See Driver."""
        del question
        return True

    def hold(self, home: Home, question: Question) -> bool:
        """See Driver."""
        client = next(client for client in self.clients(home) if client.name == question.client)
        if found := self._knock(client, question):
            self.connections[question] = found[1]
        return found is not None

    def speaks(self, question: Question, patience: float) -> bool:
        """See Driver."""
        del patience
        connection = self.connections[question]
        return self._there_and_back(connection._replace(first=connection.first._replace(flags=ACK)), ACK)

    def release(self, question: Question) -> None:
        """See Driver."""
        del self.connections[question]

    def card(self, client: str, entrance: str) -> str:
        """The name of a card by which a client outside knocks; '' when it can reach none."""
        lan = GUEST_LAN if client == "guest" else HOME_LAN
        return next((name for name, card in self.cards[entrance].items() if card.lan == lan), "")

    def wire(self) -> None:
        """Interfaces, routes and the qubes behind each net qube, as Qubes sets them."""
        for name, node in self.nodes.items():
            vm = self.vms[name]
            mine = tuple(ipaddress.ip_interface(address) for address in addresses_of(vm))
            cards = [Interface(n, 0, "", tuple(c.addresses.values())) for n, c in self.cards.get(name, {}).items()]
            up = [Interface("eth0", 1, "", mine)] if vm.netvm is not None and vm.netvm.running else []
            behind = [other for other in self.vms.values() if other.running and other.netvm is vm]
            vifs = {f"vif{self.numbers[other.name]}.0": addresses_of(other) for other in behind}
            routes = [(a.network, card.name) for card in cards for a in card.addresses]
            routes += [(ipaddress.ip_network(address), vif) for vif, found in vifs.items() for address in found]
            # A route that leads nowhere stands for none.
            up = up or cards[:1] or [Interface("nowhere", 99)]
            routes += [(f.everything, up[0].name) for f in Family]
            interfaces = [*{i.name: i for i in (*cards, *up)}.values(), *(Interface(vif, 2, "", mine) for vif in vifs)]
            if node.wires == (wires := (interfaces, routes)):
                continue
            node.wires = wires
            node.wake()
            node.host = FakeHost(node.nft, interfaces, routes)
            node.host.connections = node.connections
            for family in Family:
                if ("ip" if family == 4 else "ip6", "qubes") in node.nft.ruleset:
                    node.nft.run(_served(family, vifs))

    def _knock(self, client: Client, question: Question) -> tuple[tuple[str, int], Open] | None:
        family, word, port = question.way
        at = question.entrance
        if client.qube:
            entrance = self.vms[at]
            vif, dial = f"vif{self.numbers[client.qube]}.0", entrance.ip if family == 4 else entrance.ip6
        else:
            vif = self.card(client.name, at)
            dial = str(self.cards[at][vif].addresses[family].ip) if vif else None
        if at not in self.nodes or vif not in self.nodes[at].host.interfaces or not dial:
            return None
        proto = Proto(word)
        source: IPAddress = ipaddress.ip_address(client.addresses[family])
        flags = SYN if proto is Proto.TCP else _NONE
        first = Packet(proto, source, next(self._ephemeral) % 30000 + 30000, ipaddress.ip_address(dial), port, flags)
        arrived = self._inward(at, vif, first)
        if arrived is None:
            return None
        name, packet = arrived
        if client.qube == name or packet.target_port not in PORTS:
            return None
        connection = Open(first, at, vif, name, packet.target_port)
        if not self._there_and_back(connection, SYN_ACK if proto is Proto.TCP else _NONE, arrived):
            return None
        again = self._inward(at, vif, first._replace(flags=ACK if proto is Proto.TCP else _NONE))
        return ((name, packet.target_port), connection) if again is not None else None

    def _there_and_back(
        self, connection: Open, answer: frozenset[str], arrived: tuple[str, Packet] | None = None
    ) -> bool:
        first, at, interface, name, port = connection
        if at not in self.nodes or interface not in self.nodes[at].host.interfaces:
            return False
        arrived = arrived or self._inward(at, interface, first)
        if arrived is None or (arrived[0], arrived[1].target_port) != (name, port):
            return False
        back = self._outward(name, arrived[1].answer(answer), at, interface)
        return back is not None and back.ends == first.answer(_NONE).ends and arrived[1].source == first.source

    def _inward(self, at: str, interface: str, packet: Packet) -> tuple[str, Packet] | None:
        """From an entrance to the program at the end of the way, and what arrives there."""
        for _ in range(_LONGEST):
            if at in self.paused:
                return None
            outcome = self.nodes[at].host.receive(packet, interface)
            if outcome.fate is Fate.LOCAL:
                return at, outcome.packet
            if outcome.fate is not Fate.FORWARDED or not outcome.interface.startswith("vif"):
                return None
            number = int(outcome.interface[3:].partition(".")[0])
            at = next(name for name, own in self.numbers.items() if own == number)
            packet, interface = outcome.packet, "eth0"
            if at not in self.nodes or "eth0" not in self.nodes[at].host.interfaces:
                return None
        return None

    def _outward(self, name: str, packet: Packet, entrance: str, interface: str) -> Packet | None:
        """From a program back to the client; None when it does not leave the entrance by that interface."""
        outcome = self.nodes[name].host.send(packet)
        while outcome.fate is Fate.FORWARDED and outcome.interface == "eth0":
            netvm = self.vms[name].netvm
            if netvm is None or netvm.name not in self.nodes:
                return None
            outcome = self.nodes[netvm.name].host.receive(outcome.packet, f"vif{self.numbers[name]}.0")
            name = netvm.name
        right = outcome.fate is Fate.FORWARDED and (name, outcome.interface) == (entrance, interface)
        return outcome.packet if right else None


def _served(family: Family, vifs: dict[str, list[str]]) -> str:
    ip = "ip" if family is Family.V4 else "ip6"
    text = f"flush set {ip} qubes allowed\nflush set {ip} qubes downstream\n"
    text += f"flush chain {ip} qubes-firewall qubes-forward\n"
    for vif, found in vifs.items():
        for address in found:
            if ipaddress.ip_address(address).version == family:
                text += f'add element {ip} qubes allowed {{ "{vif}" . {address} }}\n'
                text += f"add element {ip} qubes downstream {{ {address} }}\n"
                text += f"add rule {ip} qubes-firewall qubes-forward {ip} saddr {address} accept\n"
    return text
