# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The network of world.py in the kernel: five network namespaces, real nft, real sockets."""

import contextlib
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

from portfwd.agent.answers.answer import Answers
from portfwd.agent.network.networks import read_networks
from portfwd.agent.rules.elements import Surroundings
from portfwd.agent.rules.firewall import Firewall
from portfwd.agent.rules.skeleton import MARK_OURS
from portfwd.base.clock import read_clocks
from portfwd.kernel.conntrack import Conntrack
from portfwd.kernel.netlink import NETLINK_NETFILTER, Netlink
from portfwd.kernel.nft import LibNft
from portfwd.wire.acknowledgement import Result
from portfwd.wire.entry import Accept, Entry, Relay
from portfwd.wire.values import Family, HostName, IPAddress, Proto
from tests.agent import sockets
from tests.agent.fake_world import PickyNft
from tests.agent.machine import Machine, Remote, pid, run, write
from tests.agent.world import (
    CLIENTS,
    ENS6,
    HOP,
    OUTSIDE,
    PORTS,
    SIBLING_AT,
    TUN0,
    TUNNEL,
    UPSTREAM,
    WORK,
    Applied,
    Attempt,
    Life,
    Node,
    Reached,
)
from tests.fakes.base import base_tables

_MAC_UP, _MAC_DOWN = "fe:ff:ff:ff:ff:ff", "00:16:3e:5e:6c:00"
_CT_DELETE = 0x102
TCP_PATIENCE = 3.0


def start_agent(machine: Machine) -> None:
    """Command: a fresh agent's firewall, which knows nothing of before."""
    machine.kept["nft"] = machine.kept.get("nft") or PickyNft(LibNft())
    machine.kept["agent"] = Firewall(machine.kept["nft"], Conntrack())


def bring(
    machine: Machine, entries: list[Entry], now: float, names: dict[HostName, tuple[IPAddress, ...]]
) -> dict[str, Result]:
    """Command: Firewall.bring with the surroundings as they are."""
    agent: Firewall = machine.kept["agent"]
    machine.kept["entries"], found = entries, read_networks()
    results = agent.bring(entries, Surroundings(now, found.near, names, home=found.home, shut=found.shut))
    agent.revoke_all(now)
    return results


def ask(machine: Machine, service: str, payload: bytes) -> bytes:
    """Command: Answers.answer about the entries of the last bring()."""
    answers = Answers(machine.kept["nft"], Conntrack(), machine.kept["agent"])
    return answers.answer(service, payload, machine.kept.get("entries", []), read_clocks()).encode()


def forget_connections(_machine: Machine) -> None:
    """Command: empty the connection table."""
    Netlink(NETLINK_NETFILTER).request(_CT_DELETE, b"\0\0\0\0")


def forget(machine: Machine) -> None:
    """Command: Firewall.forget."""
    machine.kept["agent"].forget()


def tend(machine: Machine, now: float) -> float | None:
    """Command: Firewall.tend."""
    agent: Firewall = machine.kept["agent"]
    return agent.tend(now)


def leave(machine: Machine) -> None:
    """Command: Firewall.leave."""
    machine.kept["agent"].leave(time.monotonic())


def refuse(machine: Machine, word: str) -> None:
    """Command: let nft refuse what contains a word, '' for nothing."""
    machine.kept["nft"].refused = word


def nft(machine: Machine, text: str) -> str:
    """Command: another nft than the agent's."""
    other: LibNft = machine.kept.get("other nft") or LibNft()
    machine.kept["other nft"] = other
    return other.run(text)


def marks(_machine: Machine) -> list[int]:
    """Command: the connection marks with our bit."""
    return sorted(flow.mark for flow in Conntrack().marked(MARK_OURS))


def reset(machine: Machine, base: str) -> None:
    """Command: the ruleset and connections of a qube that has just started."""
    forget_connections(machine)
    nft(machine, "flush ruleset\n" + base)
    start_agent(machine)


class KernelWorld:
    """See World. One network for many tests: reset() between them."""

    patience = 0.05
    server = "work"
    """Where the programs are that the clients reach."""

    def __init__(self, *more: str) -> None:
        names = ("outside", "hop", "work", "sibling", "tunnel", *more)
        pairs = [socket.socketpair() for _ in names]
        theirs = [pair[1].fileno() for pair in pairs]
        argv = [sys.executable, "-m", "tests.agent.machine", *map(str, theirs)]
        self._process = subprocess.Popen(argv, pass_fds=theirs, cwd=Path(__file__).parents[2])
        for _, end in pairs:
            end.close()
        self._machines = {
            name: Remote(name, Connection(pair[0].detach())) for name, pair in zip(names, pairs, strict=True)
        }
        self._opened: dict[int, tuple[Remote, int, Proto, IPAddress, int, int]] = {}
        self.pids = {name: machine.call(pid) for name, machine in self._machines.items()}
        self.has_tunnel = self._build()
        self._machines["work"].call(sockets.serve, PORTS)

    def close(self) -> None:
        """Take the network down."""
        for machine in self._machines.values():
            machine.close()
        self._process.wait(10)

    def machine(self, name: str) -> Remote:
        """A namespace, for what only the kernel has."""
        return self._machines[name]

    def add_address(self, name: str, device: str, address: IPAddress) -> None:
        """Give a namespace one more address, without a network."""
        self.machine(name).call(run, ["ip", "address", "add", str(address), "dev", device, *_nodad(address).split()])

    def remove_address(self, name: str, device: str, address: IPAddress) -> None:
        """Take it away again."""
        self.machine(name).call(run, ["ip", "address", "del", str(address), "dev", device])

    def _build(self) -> bool:
        for machine in self._machines.values():
            machine.call(run, ["ip", "link", "set", "lo", "up"])
        forwarding = {"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1"}
        quiet = {f"ipv4/conf/{name}/rp_filter": "0" for name in ("all", "default")}
        for path, value in (forwarding | quiet).items():
            self._machines["hop"].call(write, f"/proc/sys/net/{path}", value)
        has_tunnel = True
        try:
            self._machines["tunnel"].call(sockets.open_tunnel, self.pids["hop"])
        except AssertionError as error:
            if "PermissionError" not in str(error) and "FileNotFoundError" not in str(error):
                raise
            has_tunnel = False
        for name, lines in _links(self.pids, has_tunnel).items():
            self._machines[name].call(run, ["ip", "-batch", "-"], "\n".join(lines))
        return has_tunnel

    def reset(self) -> None:
        """As after a fresh start: base tables only, no connections, no agent's memory."""
        for machine in self._machines.values():
            machine.call(sockets.hang_up)
        served = {"hop": CLIENTS, "work": None}
        for name, clients in served.items():
            self._machines[name].begin(reset, "".join(base_tables(family, clients) for family in Family))
        for name in served:
            self._machines[name].finish()
        self._opened.clear()

    def apply(
        self,
        entries: Iterable[Entry],
        now: float | None = None,
        names: dict[HostName, tuple[IPAddress, ...]] | None = None,
    ) -> Applied:
        """Bring both qubes to these entries."""
        wanted = list(entries)
        when = time.time() if now is None else now
        hop, work = self._machines["hop"], self._machines["work"]
        hop.begin(bring, [e for e in wanted if isinstance(e, Relay)], when, names or {})
        work.begin(bring, [e for e in wanted if isinstance(e, Accept)], when, names or {})
        return Applied(hop.finish(), work.finish())

    def probe(self, attempts: Sequence[Attempt], hoped: int) -> list[Reached | None]:
        """Try all at once; the first `hoped` are waited for longer."""
        per_machine: dict[str, list[int]] = {}
        for place, attempt in enumerate(attempts):
            per_machine.setdefault(_home(attempt), []).append(place)
        for name, places in per_machine.items():
            dials = [_dial(attempts[place], place < hoped) for place in places]
            self._machines[name].begin(sockets.probe, dials, self.patience)
        results: dict[int, Reached | None] = {}
        for name, places in per_machine.items():
            results |= dict(zip(places, self._machines[name].finish(), strict=True))
        return [_named(results[place], attempt) for place, attempt in enumerate(attempts)]

    def open(self, attempt: Attempt) -> int:
        """Open a connection that must succeed; its handle."""
        machine = self._machines[_home(attempt)]
        opened = machine.call(sockets.open_one, _dial(attempt, True))
        assert opened is not None, attempt
        handle, peer, peer_port, port = opened
        self._opened[len(self._opened)] = machine, handle, attempt.proto, peer, peer_port, port
        return len(self._opened) - 1

    def opened(self, handle: int) -> int:
        """The name of an open connection in its client's machine."""
        return self._opened[handle][1]

    def source_port(self, handle: int) -> int:
        """The client's port of an open connection."""
        return self._opened[handle][4]

    def client_speaks(self, handle: int) -> Life:
        """The client sends a line and waits for the answer."""
        return self.clients_speak([handle])[0]

    def clients_speak(self, handles: Sequence[int]) -> list[Life]:
        """The clients of one machine send a line each, at the same time."""
        opened = [self._opened[handle] for handle in handles]
        # A TCP side notices sooner or later, over UDP there is nothing to notice.
        patience = {Proto.TCP: TCP_PATIENCE, Proto.UDP: self.patience}
        return opened[0][0].call(sockets.clients_speak, [(place, patience[proto]) for _, place, proto, *_ in opened])

    def server_speaks(self, handle: int) -> Life:
        """The program in work sends a line; what its side sees of it."""
        return self.servers_speak([handle])[0]

    def servers_speak(self, handles: Sequence[int]) -> list[Life]:
        """The programs in work send a line to a client each, at the same time."""
        opened = [self._opened[handle] for handle in handles]
        seen = self._machines[self.server].call(sockets.servers_speak, [one[2:] for one in opened], TCP_PATIENCE)
        for place, (machine, handle, proto, *_) in enumerate(opened):
            if proto is Proto.UDP and machine.call(sockets.hears, handle, self.patience):
                seen[place] = Life.ALIVE
        return seen

    def client_waits(self, handle: int) -> Life:
        """What a client that says nothing notices."""
        machine, place, *_ = self._opened[handle]
        return machine.call(sockets.client_waits, place, 1.0)

    def now(self) -> float:
        """Epoch seconds."""
        return time.time()

    def wait_until(self, reached: Callable[[], bool], deadline: float = 10) -> None:
        """Let time pass until a state is reached; fails after `deadline` seconds."""
        end = time.monotonic() + deadline
        while not reached():
            assert time.monotonic() < end, "the state was not reached in time"
            time.sleep(0.02)

    def ask(self, node: Node, service: str, payload: str = "") -> bytes:
        """What the agent of a qube answers dom0 about the entries that it was brought to last."""
        return self._machines[node].call(ask, service, payload.encode())

    def forget_connections(self) -> None:
        """The connection tables of both qubes are empty, as after a long pause."""
        for node in Node:
            self._machines[node].call(forget_connections)

    def nft(self, node: Node, text: str) -> str:
        """Somebody else runs nft in a qube."""
        return self._machines[node].call(nft, text)

    def ruleset(self, node: Node) -> str:
        """The ruleset as text, without handles, counters and remaining times."""
        text = self.nft(node, "list ruleset")
        text = re.sub(r" # handle \d+| expires \w+|packets \d+ bytes \d+", "", text)
        text = re.sub(r"(set \w+-hits \{[^}]*?)\telements = \{[^}]*\}\n", r"\1", text)
        # The kernel lists elements in no order.
        return re.sub(r"elements = \{([^}]*)\}", lambda found: f"elements {sorted(found[1].split())}", text)

    def marks(self, node: Node) -> list[int]:
        """The connection marks that stand in a qube."""
        return self._machines[node].call(marks)

    def restart_agent(self) -> None:
        """Both agents are started anew and know nothing of before."""
        for node in Node:
            self._machines[node].call(start_agent)

    def forget(self) -> None:
        """Both agents are told that somebody changed the ruleset."""
        for node in Node:
            self._machines[node].call(forget)

    def tend(self, node: Node, now: float) -> float | None:
        """The agent of a qube looks after its guards."""
        return self._machines[node].call(tend, now)

    def leave(self) -> None:
        """The agent of both qubes is removed; it has been started anew for that."""
        self.restart_agent()
        for node in Node:
            self._machines[node].call(leave)

    @contextlib.contextmanager
    def refuse(self, node: Node, word: str) -> Iterator[None]:
        """As long as this lasts, nft refuses every transaction of the agent that contains a word."""
        self._machines[node].call(refuse, word)
        yield
        self._machines[node].call(refuse, "")


def _home(attempt: Attempt) -> str:
    return "outside" if attempt.client in OUTSIDE else attempt.client.name


def _dial(attempt: Attempt, hoped: bool) -> sockets.Dial:
    client, family = attempt.client, attempt.family
    here, there = client.addresses[family], client.dials[family]
    return sockets.Dial(attempt.proto, here, there, attempt.port, hoped, attempt.source_port)


def _named(reached: Reached | None, attempt: Attempt) -> Reached | None:
    # A UDP program that listens everywhere is not told its own address; work has only one.
    if reached is not None and attempt.proto is Proto.UDP:
        return reached._replace(address=WORK[attempt.family])
    return reached


def _links(pids: dict[str, int], has_tunnel: bool) -> dict[str, list[str]]:
    """The commands of `ip -batch` for each namespace, hop first: it makes the pairs."""
    hop = [
        f"link add ens6 type veth peer name lan0 netns {pids['outside']}",
        f"link add eth0 type veth peer name up0 netns {pids['outside']}",
        f"link add vif1.0 address {_MAC_UP} type veth peer name eth0 address {_MAC_DOWN} netns {pids['work']}",
        f"link add vif2.0 address {_MAC_UP} type veth peer name eth0 address {_MAC_DOWN} netns {pids['sibling']}",
        "link set eth0 group 1",
        "link set vif1.0 group 2",
        "link set vif2.0 group 2",
    ]
    hop += [f"link set {name} up" for name in ("ens6", "eth0", "vif1.0", "vif2.0")]
    hop += [f"address add {address} dev ens6{_nodad(address)}" for address in ENS6.values()]
    outside = ["link set lan0 up", "link set up0 up"]
    inside: dict[str, list[str]] = {"work": [], "sibling": []}
    for family in Family:
        own, bits = HOP[family], family.bits
        hop += [f"address add {own}/{bits} dev {name}{_nodad(own)}" for name in ("eth0", "vif1.0", "vif2.0")]
        for name, vif, address in (("work", "vif1.0", WORK[family]), ("sibling", "vif2.0", SIBLING_AT[family])):
            hop += [
                f"neigh replace {address} dev {vif} lladdr {_MAC_DOWN} nud permanent",
                f"route add {address} dev {vif}",
            ]
            inside[name] += [
                "link set eth0 group 1",
                "link set eth0 up",
                f"address add {address}/{bits} dev eth0{_nodad(address)}",
                f"neigh replace {own} dev eth0 lladdr {_MAC_UP} nud permanent",
                f"route add {own} dev eth0",
                f"route add default via {own} dev eth0 src {address}",
            ]
        attached = ENS6[family].network.prefixlen
        for client in OUTSIDE:
            address = client.addresses[family]
            length = attached if address in ENS6[family].network else bits
            device = "up0" if client is UPSTREAM else "lan0"
            outside.append(f"address add {address}/{length} dev {device}{_nodad(address)}")
        beyond = UPSTREAM.addresses[family]
        outside.append(f"route add {own} dev up0")
        hop += [f"route add {beyond} dev eth0", f"route add default via {OUTSIDE[0].addresses[family]} dev ens6"]
        if has_tunnel:
            hop.append(f"address add {TUN0[family]} dev tun0{_nodad(own)}")
    result = {"hop": hop, "outside": outside, **inside}
    if has_tunnel:
        hop.append("link set tun0 up")
        lengths = {family: TUN0[family].network.prefixlen for family in Family}
        result["tunnel"] = [
            f"address add {address}/{lengths[family]} dev tun0{_nodad(address)}"
            for family, address in TUNNEL.addresses.items()
        ] + ["link set tun0 up"]
    return result


def _nodad(address: object) -> str:
    return " nodad" if ":" in str(address) else ""
