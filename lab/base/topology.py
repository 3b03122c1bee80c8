# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""A topology: which networks, routers, hosts and qubes a laboratory has, read from a small TOML file.

Takes the text of the file, gives a Topology whose names, addresses and references are right, or raises RefusedError
that names the table, the word and the reason. This module does no I/O except read() and load().
"""

import difflib
import ipaddress
import json
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from portfwd.wire.errors import RefusedError, shown

V4 = ipaddress.IPv4Address
V6 = ipaddress.IPv6Address
Table = Mapping[str, object]
T = TypeVar("T")

LABELS = ("red", "orange", "yellow", "green", "gray", "blue", "purple", "black")
KLASSES = ("AppVM", "StandaloneVM", "TemplateVM", "DispVM")
HERE = Path(__file__).parent / "topologies"

_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9_-]{0,30}")
# Linux: IFNAMSIZ is 16 with the final zero (netdevice(7)); a bridge is called br- and the network's name.
_NETWORK = re.compile(r"[a-z][a-z0-9-]{0,11}")
_INTERFACE = re.compile(r"[a-z][a-z0-9]{0,14}")


@dataclass(frozen=True)
class Network:
    """An Ethernet segment outside the qubes; everything on it has an address of each of its families."""

    name: str
    ip: ipaddress.IPv4Network
    ip6: ipaddress.IPv6Network | None


@dataclass(frozen=True)
class Nic:
    """A network card: on which network, with which addresses (ip6 None where the network has none)."""

    name: str
    network: str
    ip: V4
    ip6: V6 | None


@dataclass(frozen=True)
class Host:
    """A machine on a network that is not a qube."""

    name: str
    nic: Nic


@dataclass(frozen=True)
class Router:
    """A home router: masquerades IPv4 from lan to wan, routes IPv6, lets in from wan only answers."""

    name: str
    wan: Nic
    lan: Nic


@dataclass(frozen=True)
class Qube:
    """A qube as qubesd shall create it; None means the default of Qubes."""

    name: str
    klass: str = "AppVM"
    label: str = "red"
    netvm: str | None = None
    provides_network: bool = False
    ip: V4 | None = None
    ip6: V6 | None = None
    features: Mapping[str, str] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    agent: bool = True
    autostart: bool = True
    template: str | None = None
    nics: tuple[Nic, ...] = ()


@dataclass(frozen=True)
class Topology:
    """Everything that a laboratory has."""

    networks: Mapping[str, Network]
    routers: tuple[Router, ...]
    hosts: tuple[Host, ...]
    qubes: tuple[Qube, ...]
    default_netvm: str | None

    def gateway(self, nic: Nic) -> tuple[V4 | None, V6 | None]:
        """The router that the owner of this card sends to: one whose LAN this is, else one whose WAN this is."""
        sides = [r.lan for r in self.routers] + [r.wan for r in self.routers if r.wan.ip != nic.ip]
        return next(((s.ip, s.ip6) for s in sides if s.network == nic.network and s.ip != nic.ip), (None, None))

    def qubesd_json(self) -> str:
        """The part of qubesd: the qubes and the default net qube."""
        qubes = [
            {
                "name": q.name,
                "klass": q.klass,
                "label": q.label,
                "netvm": q.netvm,
                "provides_network": q.provides_network,
                "ip": None if q.ip is None else str(q.ip),
                "ip6": None if q.ip6 is None else str(q.ip6),
                "features": dict(q.features),
                "tags": list(q.tags),
                "agent": q.agent,
                "autostart": q.autostart,
                "nics": bool(q.nics),
                "template": q.template,
            }
            for q in self.qubes
        ]
        return json.dumps({"qubes": qubes, "default_netvm": self.default_netvm}, indent=1)


class _Reader:
    """One table of the file: hands out its words once, checked, and knows where it stands for the error text."""

    def __init__(self, where: str, table: object) -> None:
        if not isinstance(table, dict):
            raise RefusedError(f"{where} must be a table")
        self.where = where
        self._table: dict[str, Any] = table
        self._known: list[str] = []

    def get(self, key: str, kind: type[T], default: T) -> T:
        self._known.append(key)
        value = self._table.get(key, default)
        if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
            raise RefusedError(f"{self.where}: {key} has the wrong type of value {shown(value)}")
        return value

    def need(self, key: str) -> str:
        if key not in self._table:
            raise RefusedError(f"{self.where}: {key} is missing")
        return self.get(key, str, "")

    def optional(self, key: str) -> str | None:
        return self.get(key, str, "") or None

    def strings(self, key: str) -> tuple[str, ...]:
        values = self.get(key, list, [])
        if not all(isinstance(value, str) for value in values):
            raise RefusedError(f"{self.where}: {key} must be a list of words")
        return tuple(values)

    def tables(self, key: str) -> dict[str, "_Reader"]:
        return {name: _Reader(f"{key}.{_plain(name)}", table) for name, table in self.get(key, dict, {}).items()}

    def part(self, key: str) -> "_Reader":
        self._known.append(key)
        return _Reader(f"{self.where}.{key}", self._table.get(key))

    def parts(self, key: str) -> dict[str, "_Reader"]:
        return {name: _Reader(f"{self.where}.{key}.{_plain(name)}", t) for name, t in self.get(key, dict, {}).items()}

    def words(self, key: str) -> dict[str, str]:
        words = self.get(key, dict, {})
        if not all(isinstance(value, str) for value in words.values()):
            raise RefusedError(f"{self.where}: the values of {key} must be text in quotes")
        return words

    def choice(self, key: str, default: str, choices: tuple[str, ...]) -> str:
        word = self.get(key, str, default)
        if word not in choices:
            raise RefusedError(f"{self.where}: {key} {shown(word)} is not known{_did_you_mean(word, choices)}")
        return word

    def address(self, key: str, kind: Callable[[str], T], what: str) -> T | None:
        word = self.optional(key)
        if word is None:
            return None
        try:
            return kind(word)
        except ValueError:
            raise RefusedError(f"{self.where}: {key} {shown(word)} is not {what}") from None

    def end(self) -> None:
        for key in self._table:
            if key not in self._known:
                raise RefusedError(f"{self.where}: key {shown(key)} is not known{_did_you_mean(key, self._known)}")


def _plain(word: str) -> str:
    """A table's name as it may stand in an error text."""
    return shown(word).strip("'")


def _did_you_mean(word: str, known: tuple[str, ...] | list[str]) -> str:
    close = difflib.get_close_matches(word, known, 1)
    return f", did you mean '{close[0]}'" if close else f", known are {' '.join(known)}"


def parse(text: str) -> Topology:
    """Read a topology. Raises RefusedError."""
    try:
        top = _Reader("the topology", tomllib.loads(text))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise RefusedError(f"this is not TOML: {shown(error)}") from None
    networks = {name: _network(name, table) for name, table in top.tables("networks").items()}
    routers = tuple(_router(name, table, networks) for name, table in top.tables("routers").items())
    hosts = tuple(_host(name, table, networks) for name, table in top.tables("hosts").items())
    qubes = tuple(_qube(name, table, networks) for name, table in top.tables("qubes").items())
    default_netvm = top.optional("default_netvm")
    top.end()
    topology = Topology(networks, routers, hosts, qubes, default_netvm)
    _check_names(topology)
    _check_addresses(topology)
    _check_netvms(topology)
    return topology


def read(name: str) -> str:
    """The text of a topology file: a path, or the name of one that ships with the laboratory. Raises RefusedError."""
    path = Path(name) if "/" in name or name.endswith(".toml") else HERE / f"{name}.toml"
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise RefusedError(f"topology {shown(path)} is not UTF-8 text") from None
    except OSError as error:
        names = ", ".join(sorted(p.stem for p in HERE.glob("*.toml")))
        raise RefusedError(
            f"topology {shown(path)}: {error.strerror}; these ship with the laboratory: {names}"
        ) from None


def load(name: str) -> Topology:
    """Read and parse a topology file. Raises RefusedError."""
    return parse(read(name))


def _network(name: str, table: _Reader) -> Network:
    if not _NETWORK.fullmatch(name):
        raise RefusedError(f"network name {shown(name)} must be 1 to 12 of a-z, 0-9 and -, starting with a letter")
    ip = table.address("ip", ipaddress.IPv4Network, "an IPv4 network such as 192.168.1.0/24")
    ip6 = table.address("ip6", ipaddress.IPv6Network, "an IPv6 network such as 2001:db8:1::/64")
    if ip is None:
        raise RefusedError(f"{table.where}: ip is missing")
    table.end()
    return Network(name, ip, ip6)


def _nic(name: str, table: _Reader, networks: Mapping[str, Network]) -> Nic:
    """The card's address words; the caller ends the table."""
    word = table.need("network")
    if word not in networks:
        raise RefusedError(f"{table.where}: network {shown(word)} does not exist{_did_you_mean(word, list(networks))}")
    network = networks[word]
    ip = table.address("ip", V4, "an IPv4 address")
    ip6 = table.address("ip6", V6, "an IPv6 address")
    if ip is None or ip not in network.ip:
        raise RefusedError(f"{table.where}: ip must be an address of the network {network.ip}")
    if ip6 is None and network.ip6 is not None:
        # One number for both families, so that a reader of addresses recognises the machine.
        number = int(ip) - int(network.ip.network_address)
        if number >= network.ip6.num_addresses:
            raise RefusedError(f"{table.where}: the network has no IPv6 address with the number of {ip}, give ip6")
        ip6 = network.ip6[number]
    if ip6 is not None and (network.ip6 is None or ip6 not in network.ip6):
        raise RefusedError(f"{table.where}: ip6 {ip6} is not an address of the network {network.name}")
    return Nic(name, word, ip, ip6)


def read_nic(name: str, words: Table, networks: Mapping[str, Network]) -> Nic:
    """The card that these words (network, ip, perhaps ip6) describe. Raises RefusedError."""
    return _card(name, _Reader(f"nics.{_plain(name)}", dict(words)), networks)


def _card(name: str, table: _Reader, networks: Mapping[str, Network]) -> Nic:
    if not _INTERFACE.fullmatch(name) or name == "lo" or name.startswith(("vif", "eth")):
        raise RefusedError(
            f"{table.where}: {shown(name)} cannot be the name of a network card (lo, eth, vif are taken)"
        )
    nic = _nic(name, table, networks)
    table.end()
    return nic


def _host(name: str, table: _Reader, networks: Mapping[str, Network]) -> Host:
    nic = _nic("eth0", table, networks)
    table.end()
    return Host(name, nic)


def _router(name: str, table: _Reader, networks: Mapping[str, Network]) -> Router:
    sides = {}
    for side in ("wan", "lan"):
        part = table.part(side)
        sides[side] = _nic(side, part, networks)
        part.end()
    table.end()
    return Router(name, sides["wan"], sides["lan"])


def _qube(name: str, table: _Reader, networks: Mapping[str, Network]) -> Qube:
    nics = [_card(nic, part, networks) for nic, part in table.parts("nics").items()]
    qube = Qube(
        name=name,
        klass=table.choice("klass", "AppVM", KLASSES),
        label=table.choice("label", "red", LABELS),
        netvm=table.optional("netvm"),
        provides_network=table.get("provides_network", bool, False),
        ip=table.address("ip", V4, "an IPv4 address"),
        ip6=table.address("ip6", V6, "an IPv6 address"),
        features=table.words("features"),
        tags=table.strings("tags"),
        agent=table.get("agent", bool, True),
        autostart=table.get("autostart", bool, True),
        template=table.optional("template"),
        nics=tuple(nics),
    )
    table.end()
    return qube


def _check_names(topology: Topology) -> None:
    seen = {"dom0"}
    names = [r.name for r in topology.routers] + [h.name for h in topology.hosts] + [q.name for q in topology.qubes]
    for name in names:
        if not _NAME.fullmatch(name):
            raise RefusedError(f"name {shown(name)} must be 1 to 31 letters, digits, - and _, starting with a letter")
        if name in seen:
            raise RefusedError(f"name {shown(name)} is there twice (dom0 is taken)")
        seen.add(name)


def _check_addresses(topology: Topology) -> None:
    seen: dict[V4 | V6, str] = {}
    cards = [(r.name, n) for r in topology.routers for n in (r.wan, r.lan)]
    cards += [(h.name, h.nic) for h in topology.hosts] + [(q.name, n) for q in topology.qubes for n in q.nics]
    owned: list[tuple[str, V4 | V6 | None]] = [(owner, a) for owner, nic in cards for a in (nic.ip, nic.ip6)]
    owned += [(q.name, a) for q in topology.qubes for a in (q.ip, q.ip6)]
    for owner, address in owned:
        if address is not None and address in seen:
            raise RefusedError(f"{address} belongs to {shown(seen[address])} and cannot be that of {shown(owner)}")
        if address is not None:
            seen[address] = owner


def _check_netvms(topology: Topology) -> None:
    qubes = {qube.name: qube for qube in topology.qubes}
    wanted = [(f"qubes.{q.name}: netvm", q.netvm) for q in topology.qubes] + [("default_netvm", topology.default_netvm)]
    for where, netvm in wanted:
        if netvm is None:
            continue
        if netvm not in qubes:
            raise RefusedError(f"{where} {shown(netvm)} does not exist{_did_you_mean(netvm, list(qubes))}")
        if not qubes[netvm].provides_network:
            raise RefusedError(f"{where} {shown(netvm)} does not provide network")
    for start in topology.qubes:
        walked, at = [start.name], start.netvm
        while at is not None:
            if at in walked:
                raise RefusedError(f"the net qubes form a loop: {' - '.join([*walked, at])}")
            walked.append(at)
            at = qubes[at].netvm
