# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""A computer with qubes on fakes: the real service of dom0, the real Firewall in each qube, and a packet tracer.

sys-net (ens6: lan, wls7: guest) - sys-firewall - work, personal, sys-vpn - media
sys-usb (ens6: lan)              - sys-spare    - untrusted
"""

import ipaddress
import itertools
import random
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from portfwd.dom0.service import ForwardService
from portfwd.wire.errors import RefusedError
from portfwd.wire.values import Family, IPAddress, Proto
from tests.fakes.app import FakeVM
from tests.fakes.nft_rules import Verdict
from tests.fakes.nft_trace import FakeHost, Interface
from tests.fakes.packets import ACK, SYN, SYN_ACK, Fate, Packet
from tests.oracle.doors import Row, doors_of
from tests.oracle.driver import Fault, Mischief, Question, Refused
from tests.oracle.node import Node
from tests.oracle.rules import Client, Doors, Home, Qube

QUBES = {
    "sys-net": None,
    "sys-usb": None,
    "sys-firewall": "sys-net",
    "sys-spare": "sys-usb",
    "sys-vpn": "sys-firewall",
    "work": "sys-firewall",
    "personal": "sys-firewall",
    "media": "sys-vpn",
    "untrusted": "sys-spare",
}
NUMBERS = {name: number for number, name in enumerate(QUBES, 4)}
CARDS = {
    "sys-net": {"ens6": ("192.168.1.10/24", "2001:db8:1::a/64"), "wls7": ("192.168.77.10/24", "2001:db8:77::a/64")},
    "sys-usb": {"ens6": ("192.168.1.11/24", "2001:db8:1::b/64")},
}
OUTSIDE = {
    "laptop": ("192.168.1.20", "2001:db8:1::14"),
    "phone": ("192.168.1.30", "2001:db8:1::1e"),
    "guest": ("192.168.77.20", "2001:db8:77::14"),
    "stranger": ("203.0.113.80", "2001:db8:ffff::50"),
}
PORTS = tuple(range(1000, 1008))
_NONE: frozenset[str] = frozenset()


def addresses(name: str) -> dict[int, str]:
    """The addresses that a qube has in the beginning."""
    return {4: f"10.137.0.{NUMBERS[name]}", 6: f"fd09:24ef:4179::a89:{NUMBERS[name]:x}"}


class FakeHome:
    """See Driver."""

    ports = PORTS
    mischiefs = tuple(Mischief)

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)
        self._time = 1_800_000_000.0
        self._folder = Path(tempfile.mkdtemp(prefix="oracle-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
        self._vms: dict[str, FakeVM] = {}
        self._nodes: dict[str, Node] = {}
        self._ephemeral = itertools.count(30000)
        self.domains: list[FakeVM] = []
        for name, netvm in QUBES.items():
            vm = FakeVM(self._folder / name, name, self._vms[netvm] if netvm else None, addresses(name)[4])
            vm.ip6 = addresses(name)[6]  # type: ignore[assignment]
            vm.database.close()
            self._vms[name] = vm
            self.domains.append(vm)
        self._runs = itertools.count(1)
        for name in QUBES:
            self._boot(name)
        self.service = ForwardService(self, "boot-1", self._clock)
        self._wire()
        self._refresh()

    def close(self) -> None:
        """Leave nothing behind."""
        for name in list(self._nodes):
            self._halt(name)
        shutil.rmtree(self._folder)

    def home(self) -> Home:
        """See Driver."""
        return Home({name: Qube(name, netvm, addresses(name)) for name, netvm in QUBES.items()}, self.now())

    def clients(self, home: Home) -> list[Client]:
        """See Driver."""
        outside = [Client(name, {4: v4, 6: v6}, name != "stranger") for name, (v4, v6) in OUTSIDE.items()]
        inside = [Client(q.name, q.addresses, qube=q.name) for q in home.qubes.values() if q.running and q.netvm]
        return outside + inside

    def now(self) -> int:
        """See Driver."""
        return int(self._time)

    def set_forwards(self, qube: str, lines: str) -> None:
        """See Driver."""
        try:
            self.service.set(self._vms[qube], lines)
        except RefusedError as error:
            raise Refused(str(error)) from None
        self._refresh()

    def set_netvm(self, qube: str, netvm: str | None) -> None:
        """See Driver."""
        self._vms[qube].netvm = self._vms[netvm] if netvm else None
        self._wire()
        self._refresh()

    def set_address(self, qube: str, address: str) -> None:
        """See Driver."""
        self._vms[qube].ip = address
        self._wire()
        self._refresh()

    def ipv6_of(self, home: Home) -> list[str]:
        """See Driver."""
        return list(home.qubes)

    def set_ipv6(self, qube: str, address: str | None) -> None:
        """See Driver."""
        self._vms[qube].ip6 = address  # type: ignore[assignment]
        self._wire()
        self._refresh()

    def set_refusal(self, qube: str, refuses: bool, tor: bool) -> None:
        """See Driver."""
        vm = self._vms[qube]
        vm.tags = {"anon-gateway"} if refuses and tor else set()
        vm.features.pop("port-forward.deny", None)
        if refuses and not tor:
            vm.features["port-forward.deny"] = "1"
        self._refresh()

    def start(self, qube: str) -> None:
        """See Driver."""
        self._boot(qube)
        self._wire()
        self._refresh()

    def kill(self, qube: str) -> None:
        """See Driver."""
        self._halt(qube)
        self._wire()
        self.service.stopped(self._vms[qube])
        self._refresh()

    def disturb(self, qube: str, mischief: Mischief) -> None:
        """See Driver."""
        node = self._nodes[qube]
        ours = mischief in (Mischief.FLUSH_TABLE, Mischief.DELETE_TABLE)
        if mischief is Mischief.FLUSH_CHAINS:
            chains = [f"{ip} qubes custom-{hook}" for ip in ("ip", "ip6") for hook in ("input", "forward")]
            node.nft.run("".join(f"flush chain {chain}\n" for chain in chains))
        elif ours:
            verb = "flush" if mischief is Mischief.FLUSH_TABLE else "delete"
            node.nft.run("".join(f"{verb} table {ip} qubes-port-forward\n" for ip in ("ip", "ip6")))
        else:
            node.nft.run("flush ruleset")
            if mischief is Mischief.RELOAD_BASE:
                node.load_base()
                node.wires = None
                self._wire()
        if mischief is not Mischief.FLUSH_CHAINS:
            node.firewall.forget()
        node.wake()

    def restart(self, fault: Fault, qube: str) -> None:
        """See Driver."""
        if fault is Fault.AGENT:
            self._nodes[qube].start_agent()
        elif fault is Fault.QUBESD:
            self.service = ForwardService(self, "boot-1", self._clock)
            self._refresh()
        else:
            # Both daemons are started anew with the values of the other side; what is lost are watches.
            node = self._nodes[qube]
            node.database.stop()
            node.database.start()
            node.wake()

    def wait(self, seconds: int) -> None:
        """See Driver."""
        self._time += seconds

    def settle(self, home: Home) -> Iterator[None]:
        """See Driver."""
        del home
        yield
        self.service.expire()
        self._refresh()
        nodes = list(self._nodes.values())
        self._random.shuffle(nodes)
        for node in nodes:
            if node.work(self._time):
                yield

    def doors(self, qube: str) -> Doors:
        """See Driver."""
        nft = self._nodes[qube].nft
        doors: Doors = {}
        for family, ip in ((4, "ip"), (6, "ip6")):
            table = nft.ruleset.get((ip, "qubes-port-forward"))
            rows: dict[str, list[Row]] = {}
            for name, found in table.sets.items() if table is not None else ():
                for key, element in found.live(nft.now).items():
                    data = (element.data.chain,) if isinstance(element.data, Verdict) else element.data or ()
                    rows.setdefault(name, []).append((key, data))  # type: ignore[arg-type]
            doors |= doors_of(family, rows)
        return doors

    def questions(self, home: Home) -> list[Question]:
        """See Driver."""
        found = []
        for client in self.clients(home):
            netvm = home.qubes[client.qube].netvm if client.qube else None
            if netvm is not None:
                entrances = [netvm]
            else:
                entrances = [name for name, cards in CARDS.items() if client.name != "guest" or "wls7" in cards]
            # Who does not know an address of the net qube in a family cannot knock by it.
            families = home.qubes[entrances[0]].addresses if client.qube else client.addresses
            ways = itertools.product(client.addresses.keys() & families.keys(), ("tcp", "udp"), PORTS)
            found += [Question(client.name, entrance, way) for way in ways for entrance in entrances]
        return found

    def ask(self, home: Home, questions: Iterable[Question]) -> dict[Question, tuple[str, int] | None]:
        """See Driver."""
        clients = {client.name: client for client in self.clients(home)}
        return {question: self._knock(clients[question.client], question) for question in questions}

    def _clock(self) -> float:
        return self._time

    def _refresh(self) -> None:
        if self.service.refresh() is None:
            raise AssertionError("the refresh failed")

    def _boot(self, name: str) -> None:
        vm = self._vms[name]
        node = self._nodes[name] = Node(name, self._clock)
        vm.running, vm.xid = True, next(self._runs)
        vm.database = node.database.connect()

    def _halt(self, name: str) -> None:
        self._vms[name].running = False
        self._vms[name].database.close()
        self._nodes.pop(name).close()

    def _wire(self) -> None:
        """Interfaces, routes and the qubes behind each net qube, as Qubes sets them."""
        for name, node in self._nodes.items():
            vm = self._vms[name]
            own = [a for a in (vm.ip, vm.ip6) if a]
            mine = tuple(ipaddress.ip_interface(address) for address in own)
            cards = [Interface(n, 0, "", tuple(map(ipaddress.ip_interface, a))) for n, a in CARDS.get(name, {}).items()]
            up = [Interface("eth0", 1, "", mine)] if vm.netvm is not None and vm.netvm.running else []
            behind = [other for other in self.domains if other.running and other.netvm is vm]
            vifs = {f"vif{NUMBERS[other.name]}.0": [a for a in (other.ip, other.ip6) if a] for other in behind}
            routes = [(a.network, card.name) for card in cards for a in card.addresses]
            routes += [(ipaddress.ip_network(address), vif) for vif, found in vifs.items() for address in found]
            routes += [(f.everything, i.name) for i in (up or cards)[:1] for f in Family]
            interfaces = [*cards, *up, *(Interface(vif, 2, "", mine) for vif in vifs)]
            if node.wires == (wires := (interfaces, routes)):
                continue
            node.wires = wires
            node.wake()
            node.host = FakeHost(node.nft, interfaces, routes)
            node.host.connections = node.connections
            for family in Family:
                if ("ip" if family == 4 else "ip6", "qubes") in node.nft.ruleset:
                    node.nft.run(_served(family, vifs))

    def _knock(self, client: Client, question: Question) -> tuple[str, int] | None:
        family, word, port = question.way
        entrance = self._vms[question.entrance]
        at = question.entrance
        if client.qube:
            vif, dial = f"vif{NUMBERS[client.qube]}.0", entrance.ip if family == 4 else entrance.ip6
        else:
            vif = "wls7" if client.name == "guest" else "ens6"
            dial = CARDS[at][vif][0 if family == 4 else 1].partition("/")[0]
        if at not in self._nodes or vif not in self._nodes[at].host.interfaces or not dial:
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
        back = self._outward(name, packet.answer(SYN_ACK if proto is Proto.TCP else _NONE), at, vif)
        if back is None or back.ends != first.answer(_NONE).ends or packet.source != source:
            return None
        again = self._inward(at, vif, first._replace(flags=ACK if proto is Proto.TCP else _NONE))
        return (name, packet.target_port) if again is not None else None

    def _inward(self, at: str, interface: str, packet: Packet) -> tuple[str, Packet] | None:
        """From an entrance to the program at the end of the way, and what arrives there."""
        for _ in QUBES:
            outcome = self._nodes[at].host.receive(packet, interface)
            if outcome.fate is Fate.LOCAL:
                return at, outcome.packet
            if outcome.fate is not Fate.FORWARDED or not outcome.interface.startswith("vif"):
                return None
            number = int(outcome.interface[3:].partition(".")[0])
            at = next(name for name, own in NUMBERS.items() if own == number)
            packet, interface = outcome.packet, "eth0"
            if at not in self._nodes or "eth0" not in self._nodes[at].host.interfaces:
                return None
        return None

    def _outward(self, name: str, packet: Packet, entrance: str, interface: str) -> Packet | None:
        """From a program back to the client; None when it does not leave the entrance by that interface."""
        outcome = self._nodes[name].host.send(packet)
        while outcome.fate is Fate.FORWARDED and outcome.interface == "eth0":
            netvm = self._vms[name].netvm
            if netvm is None or netvm.name not in self._nodes:
                return None
            outcome = self._nodes[netvm.name].host.receive(outcome.packet, f"vif{NUMBERS[name]}.0")
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
