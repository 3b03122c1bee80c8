# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The little network in which the agent is tried, and what a test can do in it. Two worlds implement it.

    laptop, phone  192.168.7.2, .3 --\\
    stranger       203.0.113.9     ---- ens6 (group 0) \\
    upstream       198.51.100.8    ---- eth0 (group 1) -- hop -- vif1.0 (group 2) -- work     10.137.0.20
    tunnel         10.9.0.2        ---- tun0 (kind tun) /     \\- vif2.0 (group 2) -- sibling  10.137.0.21

laptop and phone stand in the network that is attached to ens6, the stranger is routed by it. hop and work each have
the base firewall of Qubes and a Firewall of the agent; relay entries go to hop, accept entries to work.
"""

import enum
import ipaddress
import itertools
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from portfwd.wire.acknowledgement import Result
from portfwd.wire.entry import Accept, Entry, Relay
from portfwd.wire.values import (
    Family,
    HostName,
    IPAddress,
    PortRange,
    Proto,
    RuleId,
    Side,
    Source,
    SourceWord,
    parse_source,
)

TCP, UDP, V4, V6 = Proto.TCP, Proto.UDP, Family.V4, Family.V6
PORTS = (22, 53, 80, 443, 5000, 8080, 8443, *range(9000, 9021))
"""Where programs of work listen, TCP and UDP."""

WORK = {V4: ipaddress.ip_address("10.137.0.20"), V6: ipaddress.ip_address("fd09:24ef:4179::a89:14")}
SIBLING_AT = {V4: ipaddress.ip_address("10.137.0.21"), V6: ipaddress.ip_address("fd09:24ef:4179::a89:15")}
HOP = {V4: ipaddress.ip_address("10.137.0.5"), V6: ipaddress.ip_address("fd09:24ef:4179::a89:5")}
ENS6 = {V4: ipaddress.ip_interface("192.168.7.1/24"), V6: ipaddress.ip_interface("2001:db8:7::1/64")}
TUN0 = {V4: ipaddress.ip_interface("10.9.0.1/24"), V6: ipaddress.ip_interface("fd00:9::1/64")}


@dataclass(frozen=True, eq=False, slots=True)
class Client:
    """A place from where a connection is tried: the interface of hop by which it comes, its address and hop's."""

    name: str
    interface: str
    addresses: dict[Family, IPAddress]
    dials: dict[Family, IPAddress]


def _at(name: str, interface: str, v4: str, v6: str, dials: dict[Family, IPAddress]) -> Client:
    return Client(name, interface, {V4: ipaddress.ip_address(v4), V6: ipaddress.ip_address(v6)}, dials)


_LAN = {family: address.ip for family, address in ENS6.items()}
LAPTOP = _at("laptop", "ens6", "192.168.7.2", "2001:db8:7::2", _LAN)
PHONE = _at("phone", "ens6", "192.168.7.3", "2001:db8:7::3", _LAN)
STRANGER = _at("stranger", "ens6", "203.0.113.9", "2001:db8:99::9", _LAN)
UPSTREAM = _at("upstream", "eth0", "198.51.100.8", "2001:db8:51::8", HOP)
SIBLING = Client("sibling", "vif2.0", SIBLING_AT, HOP)
TUNNEL = _at("tunnel", "tun0", "10.9.0.2", "fd00:9::2", {family: address.ip for family, address in TUN0.items()})
OUTSIDE = (LAPTOP, PHONE, STRANGER, UPSTREAM)
EVERYONE = (*OUTSIDE, SIBLING, TUNNEL)
ROUTED = {
    "ens6": ("192.168.7.0/24", "2001:db8:7::/64", "0.0.0.0/0", "::/0"),
    "eth0": ("198.51.100.8/32", "2001:db8:51::8/128"),
    "vif1.0": tuple(str(address) for address in WORK.values()),
    "vif2.0": tuple(str(address) for address in SIBLING_AT.values()),
    "tun0": ("10.9.0.0/24", "fd00:9::/64"),
}
"""The routes of hop."""
CLIENTS = {"vif1.0": tuple(WORK.values()), "vif2.0": tuple(SIBLING_AT.values())}


class Attempt(NamedTuple):
    """One connection to be tried; from any port of the client when that is 0."""

    client: Client
    port: int
    proto: Proto = TCP
    family: Family = V4
    source_port: int = 0


class Reached(NamedTuple):
    """Where a connection ended, and whom the program there sees."""

    address: IPAddress
    port: int
    client: IPAddress


class Life(enum.Enum):
    """What a side of a connection notices when it says something."""

    ALIVE = enum.auto()
    RESET = enum.auto()
    SILENT = enum.auto()


class Node(enum.StrEnum):
    """The two qubes in which the agent works."""

    HOP = "hop"
    WORK = "work"


class Applied(NamedTuple):
    """Results by entry key."""

    hop: dict[str, Result]
    work: dict[str, Result]


class World(Protocol):
    """What a test can do."""

    patience: float

    def apply(
        self,
        entries: Iterable[Entry],
        now: float | None = None,
        names: dict[HostName, tuple[IPAddress, ...]] | None = None,
    ) -> Applied:
        """Bring both qubes to these entries."""

    def probe(self, attempts: Sequence[Attempt], hoped: int) -> list[Reached | None]:
        """Try all at once; the first `hoped` are waited for longer."""

    def open(self, attempt: Attempt) -> int:
        """Open a connection that must succeed; its handle."""

    def client_speaks(self, handle: int) -> Life:
        """The client sends a line and waits for the answer."""

    def server_speaks(self, handle: int) -> Life:
        """The program in work sends a line; what its side sees of it."""

    def client_waits(self, handle: int) -> Life:
        """What a client that says nothing notices: ALIVE when it hears something, RESET when it is told of the end."""

    def now(self) -> float:
        """Epoch seconds."""

    def wait_until(self, reached: Callable[[], bool], deadline: float = 10) -> None:
        """Let time pass until a state is reached; fails after `deadline` seconds."""

    def ask(self, node: Node, service: str, payload: str = "") -> bytes:
        """What the agent of a qube answers dom0 about the entries that it was brought to last."""

    def forget_connections(self) -> None:
        """The connection tables of both qubes are empty, as after a long pause."""

    def nft(self, node: Node, text: str) -> str:
        """Somebody else runs nft in a qube."""

    def ruleset(self, node: Node) -> str:
        """The ruleset as text, without handles, counters and remaining times."""

    def marks(self, node: Node) -> list[int]:
        """The connection marks that stand in a qube."""

    def restart_agent(self) -> None:
        """Both agents are started anew and know nothing of before."""

    def forget(self) -> None:
        """Both agents are told that somebody changed the ruleset."""

    def tend(self, node: Node, now: float) -> float | None:
        """The agent of a qube looks after its guards."""

    def leave(self) -> None:
        """The agent of both qubes is removed; it has been started anew for that."""

    def refuse(self, node: Node, word: str) -> AbstractContextManager[None]:
        """As long as this lasts, nft refuses every transaction of the agent that contains a word."""


_rules = itertools.count(1)


def rule_id() -> RuleId:
    """A fresh one."""
    return RuleId(f"{next(_rules):016x}")


def relay(
    listen: int | str,
    ports: int | str | None = None,
    *,
    proto: Proto = TCP,
    family: Family = V4,
    side: Side = Side.UPLINK,
    source: str = "any",
    expire: int | None = None,
    rule: RuleId | None = None,
) -> Entry:
    """An entry of hop that leads to work."""
    to = PortRange.parse(str(listen if ports is None else ports))
    where: Source = parse_source(source)
    return Relay(
        rule or rule_id(),
        family,
        proto,
        side,
        PortRange.parse(str(listen)),
        where,
        WORK[family],
        to,
        expire=expire,
    )


def accept(
    listen: int | str,
    *,
    proto: Proto = TCP,
    family: Family = V4,
    source: str = "any",
    expire: int | None = None,
    rule: RuleId | None = None,
) -> Entry:
    """An entry of work that lets in."""
    return Accept(
        rule or rule_id(),
        family,
        proto,
        Side.UPLINK,
        PortRange.parse(str(listen)),
        parse_source(source),
        expire=expire,
    )


def through(entry: Entry) -> tuple[Entry, Entry]:
    """A relay, and the accept that dom0 writes to its target."""
    ports = entry.ports if isinstance(entry, Relay) else entry.listen
    source = SourceWord.ANYONE if entry.source is SourceWord.NEIGHBOURS else entry.source
    return entry, Accept(entry.rule, entry.family, entry.proto, Side.UPLINK, ports, source, expire=entry.expire)


def check(world: World, opens: dict[Attempt, int] | None = None, shut: Iterable[Attempt] = ()) -> None:
    """Each of `opens` reaches that port of work, which sees the client's own address; none of `shut` does."""
    wanted = opens or {}
    attempts = [*wanted, *shut]
    found = world.probe(attempts, len(wanted))
    expected: list[Reached | None] = [
        Reached(WORK[a.family], port, a.client.addresses[a.family]) for a, port in wanted.items()
    ]
    expected += [None] * (len(attempts) - len(wanted))
    wrong = [
        f"{_name(attempt)} reaches {reached}, not {right}"
        for attempt, reached, right in zip(attempts, found, expected, strict=True)
        if reached != right
    ]
    if wrong:
        raise AssertionError("; ".join(wrong))


def _name(attempt: Attempt) -> str:
    return f"{attempt.client.name} {attempt.proto.value}/{attempt.port} IPv{int(attempt.family)}"
