# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The network of world.py on FakeNft and the packet tracer: no kernel, and time passes when told."""

import contextlib
import ipaddress
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from portfwd.agent.answers.answer import Answers
from portfwd.agent.rules.elements import Network, Surroundings
from portfwd.agent.rules.firewall import Firewall
from portfwd.base.clock import Moment
from portfwd.kernel.conntrack import Flow
from portfwd.kernel.nft import Nft, NftError
from portfwd.kernel.sockets import Socket
from portfwd.wire.entry import Accept, Entry, Relay
from portfwd.wire.values import Family, HostName, IPAddress, Proto
from tests.agent.world import (
    CLIENTS,
    ENS6,
    HOP,
    PORTS,
    ROUTED,
    TUN0,
    WORK,
    Applied,
    Attempt,
    Life,
    Node,
    Reached,
)
from tests.fakes.base import base_tables
from tests.fakes.flows import FakeFlows
from tests.fakes.nft import FakeNft
from tests.fakes.nft_trace import FakeHost, Interface
from tests.fakes.packets import ACK, RST, SYN, SYN_ACK, Fate, Packet

_EMPTY: frozenset[str] = frozenset()


class PickyNft:
    """Any nft, which refuses what contains `refused` while that is set."""

    def __init__(self, nft: Nft) -> None:
        self._nft = nft
        self.refused = ""

    def run(self, text: str) -> str:
        """As the nft inside."""
        if self.refused and self.refused in text:
            raise NftError("Error: Could not process rule: Cannot allocate memory")
        return self._nft.run(text)


@dataclass(slots=True)
class _Open:
    """An open connection: how the client's and the program's packets look where they are sent."""

    interface: str
    request: Packet
    answer: Packet
    client_lives: bool = True
    server_lives: bool = True
    heard: bool = False
    told: bool = False


class FakeWorld:
    """See World."""

    patience = 0.0

    def __init__(self) -> None:
        self._time = 1_800_000_000.0
        self._ports = itertools.count(40000)
        eth0_hop = tuple(ipaddress.ip_interface(address) for address in HOP.values())
        eth0_work = tuple(ipaddress.ip_interface(address) for address in WORK.values())
        interfaces = [
            Interface("ens6", 0, "veth", tuple(ENS6.values())),
            Interface("eth0", 1, "veth", eth0_hop),
            Interface("vif1.0", 2, "veth", eth0_hop),
            Interface("vif2.0", 2, "veth", eth0_hop),
            Interface("tun0", 0, "tun", tuple(TUN0.values())),
        ]
        routes = [(ipaddress.ip_network(prefix), name) for name, found in ROUTED.items() for prefix in found]
        everywhere = [(family.everything, "eth0") for family in Family]
        self._hosts = {
            Node.HOP: FakeHost(FakeNft(self.now), interfaces, routes),
            Node.WORK: FakeHost(FakeNft(self.now), [Interface("eth0", 1, "veth", eth0_work)], everywhere),
        }
        self._picky = {node: PickyNft(host.nft) for node, host in self._hosts.items()}
        self._open: list[_Open] = []
        self._wanted: dict[Node, list[Entry]] = {node: [] for node in Node}
        self._near = tuple(Network("ens6", address.network) for address in ENS6.values())
        self._home = self._near + tuple(Network("tun0", address.network) for address in TUN0.values())
        for family in Family:
            self.nft(Node.HOP, base_tables(family, CLIENTS))
            self.nft(Node.WORK, base_tables(family))
        self.restart_agent()

    def apply(
        self,
        entries: Iterable[Entry],
        now: float | None = None,
        names: dict[HostName, tuple[IPAddress, ...]] | None = None,
    ) -> Applied:
        """Bring both qubes to these entries."""
        wanted = list(entries)
        self._wanted = {
            Node.HOP: [e for e in wanted if isinstance(e, Relay)],
            Node.WORK: [e for e in wanted if isinstance(e, Accept)],
        }
        around = Surroundings(self._time if now is None else now, self._near, names or {}, home=self._home)
        hop = self.agents[Node.HOP].bring(self._wanted[Node.HOP], around)
        away = Surroundings(around.now, (), around.names)
        return Applied(hop, self.agents[Node.WORK].bring(self._wanted[Node.WORK], away))

    def ask(self, node: Node, service: str, payload: str = "") -> bytes:
        """What the agent of a qube answers dom0 about the entries that it was brought to last."""
        served = {Socket(family, proto, port, False) for family in Family for proto in Proto for port in PORTS}
        answers = Answers(
            self._picky[node],
            self._flows[node],
            self.agents[node],
            sockets=lambda: frozenset(served if node is Node.WORK else ()),
            # The guard does the work of the kernel's resets.
            destroy_socket=lambda _flow: False,
        )
        moment = Moment(self._time, self._time, self._time)
        return answers.answer(service, payload.encode(), self._wanted[node], moment).encode()

    def forget_connections(self) -> None:
        """The connection tables of both qubes are empty, as after a long pause."""
        for host in self._hosts.values():
            for connection in list(host.connections):
                host.connections.forget(connection)

    def probe(self, attempts: Sequence[Attempt], hoped: int) -> list[Reached | None]:  # noqa: ARG002 - no waiting here
        """Try all."""
        return [found[1] if (found := self._connect(attempt)) else None for attempt in attempts]

    def open(self, attempt: Attempt) -> int:
        """Open a connection that must succeed; its handle."""
        found = self._connect(attempt)
        assert found is not None, attempt
        self._open.append(found[0])
        return len(self._open) - 1

    def client_speaks(self, handle: int) -> Life:
        """The client sends a line and waits for the answer."""
        way = self._open[handle]
        if not way.client_lives:
            return Life.RESET
        fate, arrived = self._inward(way.interface, way.request)
        if fate is Fate.RESET:
            way.client_lives = False
            return Life.RESET
        if arrived is None or arrived.target_port not in PORTS:
            return Life.SILENT
        known = way.server_lives and _agrees(way.answer, arrived)
        if arrived.proto is Proto.TCP and not known:
            # The program's stack knows no such connection.
            self._outward(arrived.answer(RST))
            way.client_lives = False
            return Life.RESET
        _, back = self._outward(arrived.answer(_data(arrived.proto)))
        return Life.ALIVE if back is not None and _agrees(back, way.request) else Life.SILENT

    def server_speaks(self, handle: int) -> Life:
        """The program in work sends a line; what its side sees of it."""
        way = self._open[handle]
        if not way.server_lives:
            return Life.RESET
        fate, back = self._outward(way.answer)
        if fate is Fate.RESET:
            way.server_lives = False
            return Life.RESET
        if back is None:
            return Life.SILENT
        if _agrees(back, way.request) and way.client_lives:
            way.heard = True
            self._client_acknowledges(way)
            return Life.ALIVE
        if back.proto is Proto.TCP:
            # The client knows no such connection: its stack answers with a reset.
            _, arrived = self._inward(way.interface, back.answer(RST))
            way.server_lives = arrived is None
            return Life.RESET if arrived is not None else Life.SILENT
        return Life.SILENT

    def client_waits(self, handle: int) -> Life:
        """What a client that says nothing notices."""
        way = self._open[handle]
        if not way.client_lives or way.told:
            return Life.RESET
        heard, way.heard = way.heard, False
        return Life.ALIVE if heard else Life.SILENT

    def _client_acknowledges(self, way: _Open) -> None:
        """The client's stack answers what it hears, right or not; its program notices a reset alone."""
        if way.request.proto is Proto.TCP and way.client_lives:
            way.client_lives = self._inward(way.interface, way.request)[0] is not Fate.RESET

    def _tell(self, flows: list[Flow]) -> None:
        """As farewell.tell: a strange segment or an ICMP error to each client."""
        for way in self._open:
            for flow in flows:
                if (flow.proto, flow.client, flow.client_port, flow.dialled, flow.port) == way.request.ends:
                    way.told = way.told or flow.proto is Proto.UDP
                    self._client_acknowledges(way)

    def now(self) -> float:
        """Epoch seconds."""
        return self._time

    def wait_until(self, reached: Callable[[], bool], deadline: float = 10) -> None:
        """Let time pass until a state is reached; fails after `deadline` seconds."""
        end = self._time + deadline
        while not reached():
            assert self._time < end, "the state was not reached in time"
            self._time += 0.25

    def nft(self, node: Node, text: str) -> str:
        """Somebody else runs nft in a qube."""
        return self._hosts[node].nft.run(text)

    def ruleset(self, node: Node) -> str:
        """The ruleset as text, without handles."""
        return re.sub(r" # handle \d+", "", self.nft(node, "list ruleset"))

    def marks(self, node: Node) -> list[int]:
        """The connection marks that stand in a qube."""
        return sorted(connection.mark for connection in self._hosts[node].connections)

    def restart_agent(self) -> None:
        """Both agents are started anew and know nothing of before."""
        self._flows = {n: FakeFlows(host) for n, host in self._hosts.items()}
        self.agents = {n: Firewall(self._picky[n], self._flows[n], self._tell) for n in Node}

    def forget(self) -> None:
        """Both agents are told that somebody changed the ruleset."""
        for agent in self.agents.values():
            agent.forget()

    def tend(self, node: Node, now: float) -> float | None:
        """The agent of a qube looks after its guards."""
        return self.agents[node].tend(now)

    def leave(self) -> None:
        """The agent of both qubes is removed; it has been started anew for that."""
        self.restart_agent()
        for agent in self.agents.values():
            agent.leave(self.now())

    @contextlib.contextmanager
    def refuse(self, node: Node, word: str) -> Iterator[None]:
        """As long as this lasts, nft refuses every transaction of the agent that contains a word."""
        self._picky[node].refused = word
        yield
        self._picky[node].refused = ""

    def _connect(self, attempt: Attempt) -> tuple[_Open, Reached] | None:
        client, family, proto = attempt.client, attempt.family, attempt.proto
        first = Packet(
            proto,
            client.addresses[family],
            attempt.source_port or next(self._ports),
            client.dials[family],
            attempt.port,
            SYN if proto is Proto.TCP else _EMPTY,
        )
        _, arrived = self._inward(client.interface, first)
        if arrived is None or arrived.target_port not in PORTS:
            return None
        _, back = self._outward(arrived.answer(SYN_ACK if proto is Proto.TCP else _EMPTY))
        if back is None or not _agrees(back, first):
            return None
        request, answer = first._replace(flags=_data(proto)), arrived.answer(_data(proto))
        _, again = self._inward(client.interface, request)
        reached = Reached(arrived.target, arrived.target_port, arrived.source)
        return (_Open(client.interface, request, answer), reached) if again is not None else None

    def _inward(self, interface: str, packet: Packet) -> tuple[Fate, Packet | None]:
        """From a client to a program in work; the packet as it arrives there."""
        outcome = self._hosts[Node.HOP].receive(packet, interface)
        if outcome.fate is Fate.FORWARDED and outcome.interface == "vif1.0":
            outcome = self._hosts[Node.WORK].receive(outcome.packet, "eth0")
            if outcome.fate is Fate.RESET:
                self._hosts[Node.HOP].receive(outcome.packet.answer(RST), "vif1.0")
            return outcome.fate, outcome.packet if outcome.fate is Fate.LOCAL else None
        return outcome.fate, None

    def _outward(self, packet: Packet) -> tuple[Fate, Packet | None]:
        """From a program in work to a client; the packet as it arrives there."""
        outcome = self._hosts[Node.WORK].send(packet)
        if outcome.fate is Fate.FORWARDED:
            outcome = self._hosts[Node.HOP].receive(outcome.packet, "vif1.0")
            if outcome.fate is Fate.RESET:
                self._hosts[Node.WORK].receive(outcome.packet.answer(RST), "eth0")
        return outcome.fate, outcome.packet if outcome.fate is Fate.FORWARDED else None


def _data(proto: Proto) -> frozenset[str]:
    return ACK if proto is Proto.TCP else _EMPTY


def _agrees(back: Packet, request: Packet) -> bool:
    return back.ends == request.answer(_EMPTY).ends
