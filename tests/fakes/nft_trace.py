# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""What happens to a packet: a host that runs packets through a FakeNft's ruleset, its routes and a connection table.

Order as in Linux: base chains of a hook by priority, conntrack at -200 of prerouting and output, then nat chains for
the first packet of a connection only. A statement that the tracer cannot interpret never gets here: it is refused when
the rule is added.
"""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from portfwd.wire.values import IPAddress, IPNetwork
from tests.fakes.nft import FakeNft
from tests.fakes.nft_rules import FLAGS, Dnat, Lookup, Mark, Masquerade, Match, Reject, SetStatement, Statement, Verdict
from tests.fakes.nft_state import Chain, Table
from tests.fakes.nft_text import Value
from tests.fakes.packets import Connection, Connections, Fate, Outcome, Packet

_CONNTRACK = -200


class Interface(NamedTuple):
    """A network interface; kind as rtnetlink gives it (tun, wireguard...), or ''."""

    name: str
    group: int = 0
    kind: str = ""
    addresses: tuple[ipaddress.IPv4Interface | ipaddress.IPv6Interface, ...] = ()


NOWHERE = Interface("")


@dataclass(slots=True)
class _Walk:
    """A packet on its way through the hooks."""

    packet: Packet
    entry: Interface
    exit: Interface = NOWHERE
    connection: Connection | None = None
    backward: bool = False
    tracked: bool = False


class FakeHost:
    """One network namespace: interfaces, routes (prefix, interface name), nftables and connections."""

    def __init__(self, nft: FakeNft, interfaces: Sequence[Interface], routes: Sequence[tuple[IPNetwork, str]]) -> None:
        self.nft = nft
        self.connections = Connections()
        self.interfaces = {interface.name: interface for interface in interfaces}
        self._routes = sorted(routes, key=lambda route: -route[0].prefixlen)

    def receive(self, packet: Packet, interface: str) -> Outcome:
        """A packet comes in by an interface."""
        walk = _Walk(packet, self.interfaces[interface])
        ended = self._track_and("prerouting", walk)
        if ended is not None:
            return ended
        if self._is_local(walk.packet.target):
            return self._hook("input", walk) or self._done(walk, Fate.LOCAL)
        walk.exit = self._route(walk.packet.target)
        return self._hook("forward", walk) or self._leave(walk)

    def send(self, packet: Packet) -> Outcome:
        """A program of this host sends a packet."""
        walk = _Walk(packet, NOWHERE, self._route(packet.target))
        return self._track_and("output", walk) or self._leave(walk)

    def _track_and(self, hook: str, walk: _Walk) -> Outcome | None:
        ended = self._hook(hook, walk, high=_CONNTRACK)
        if ended is not None:
            return ended
        walk.connection, walk.backward = self.connections.find(walk.packet)
        walk.tracked = True
        ended = self._hook(hook, walk, low=_CONNTRACK)
        if ended is None and walk.connection is not None and hook == "prerouting":
            ends = walk.connection.original if walk.backward else walk.connection.reply
            walk.packet = walk.packet._replace(target=ends[1], target_port=ends[2])
        return ended

    def _leave(self, walk: _Walk) -> Outcome:
        ended = self._hook("postrouting", walk)
        if ended is not None:
            return ended
        if walk.connection is not None:
            _, _, _, source, port = walk.connection.reply
            if walk.backward:
                _, _, _, source, port = walk.connection.original
            walk.packet = walk.packet._replace(source=source, source_port=port)
        return self._done(walk, Fate.FORWARDED)

    def _done(self, walk: _Walk, fate: Fate) -> Outcome:
        if walk.connection is not None:
            self.connections.confirm(walk.connection, walk.packet, walk.backward)
        return Outcome(fate, walk.packet, walk.exit.name)

    def _is_local(self, address: IPAddress) -> bool:
        return any(address == own.ip for interface in self.interfaces.values() for own in interface.addresses)

    def _route(self, address: IPAddress) -> Interface:
        for prefix, name in self._routes:
            if address in prefix:
                return self.interfaces[name]
        raise LookupError(f"no route to {address}")

    def _hook(self, hook: str, walk: _Walk, low: int = -1000, high: int = 1000) -> Outcome | None:
        """Run the base chains of a hook; an outcome when the packet ends here."""
        family = "ip" if walk.packet.family == 4 else "ip6"
        found = [
            (chain.hook.priority, -chain.handle, name, chain, table)
            for (table_family, _), table in self.nft.ruleset.items()
            for name, chain in table.chains.items()
            if table_family == family and chain.hook is not None and chain.hook.hook == hook
            if low <= chain.hook.priority < high
        ]
        for _, _, name, chain, table in sorted(found, key=lambda entry: entry[:2]):
            if chain.hook is None or (chain.hook.kind == "nat" and not self._may_translate(walk, hook)):
                continue
            fate, where = self._chain(walk, table, name, chain)
            if fate is None and chain.hook.policy == "drop":
                fate, where = Fate.DROPPED, name
            if fate not in (None, Fate.LOCAL):
                return Outcome(fate, walk.packet, chain=where)
        return None

    def _may_translate(self, walk: _Walk, hook: str) -> bool:
        connection = walk.connection
        if connection is None or self.connections.holds(connection):
            return False
        return not (connection.dnat if hook in ("prerouting", "output") else connection.snat)

    def _chain(self, walk: _Walk, table: Table, name: str, chain: Chain) -> tuple[Fate | None, str]:
        """Run one chain: a fate (LOCAL stands for accepted) and the chain that gave it, or None at its end."""
        for rule in chain.rules:
            for statement in rule.statements:
                verdict = self._statement(walk, table, statement)
                if verdict is None:
                    break
                if verdict.kind == "continue":
                    continue
                if verdict.kind in ("jump", "goto"):
                    fate, where = self._chain(walk, table, verdict.chain, table.chain(verdict.chain))
                    if fate is not None or verdict.kind == "goto":
                        return fate, where
                    break
                if verdict.kind == "return":
                    return None, name
                return _FATES[verdict.kind], name
        return None, name

    def _statement(self, walk: _Walk, table: Table, statement: Statement) -> Verdict | None:
        """None: the rule does not match; 'continue': go on with its next statement."""
        match statement:
            case Match():
                value = self._value(walk, statement.selector)
                return _ON if value is not None and _matches(statement, value) else None
            case Lookup():
                found = self._look(walk, table, statement.selectors, statement.set)
                if found is None:
                    return None
                return found if statement.vmap and isinstance(found, Verdict) else _ON
            case SetStatement():
                return self._change_set(walk, table, statement)
            case Verdict():
                return statement
            case Mark():
                if walk.connection is None:
                    return None
                walk.connection.mark = walk.connection.mark & statement.keep | statement.add
                return _ON
            case Reject():
                return Verdict("reset" if statement.reset else "reject")
            case Dnat():
                return self._dnat(walk, table, statement)
            case Masquerade():
                return self._masquerade(walk)

    def _change_set(self, walk: _Walk, table: Table, statement: SetStatement) -> Verdict | None:
        values = [self._value(walk, selector) for selector in statement.selectors]
        known = tuple(value for value in values if value is not None)
        if len(known) < len(values):
            return None
        found = table.named(statement.set, "element")
        texts = [
            str(ipaddress.ip_address(int(v)) if "addr" in kind else v)
            for v, kind in zip(known, found.keys, strict=True)
        ]
        if statement.verb == "update":
            return _ON if found.update(known, " . ".join(texts), self.nft.now) else None
        found.elements.pop(tuple((value, value) for value in known), None)
        return _ON

    def _look(self, walk: _Walk, table: Table, selectors: tuple[str, ...], name: str) -> object | None:
        values = [self._value(walk, selector) for selector in selectors]
        known = tuple(value for value in values if value is not None)
        element = table.named(name, "element").find(known, self.nft.now) if len(known) == len(values) else None
        return None if element is None else element.data or _ON

    def _dnat(self, walk: _Walk, table: Table, statement: Dnat) -> Verdict | None:
        found = self._look(walk, table, statement.selectors, statement.map) if statement.map else statement.fixed
        if not isinstance(found, tuple) or walk.connection is None:
            return None
        address = ipaddress.ip_address(found[0]) if walk.packet.family == 4 else ipaddress.IPv6Address(found[0])
        port = found[1] if len(found) > 1 else walk.packet.target_port
        walk.connection.translate_to(address, port)
        return Verdict("accept")

    def _masquerade(self, walk: _Walk) -> Verdict | None:
        mine = [own.ip for own in walk.exit.addresses if own.version == walk.packet.family and not own.is_link_local]
        if walk.connection is None or not mine:
            return None
        port = walk.packet.source_port
        proto, server, server_port, _, _ = walk.connection.reply
        while self.connections.taken((proto, server, server_port, mine[0], port)):
            port = port + 1 if port < 65535 else 1024
        walk.connection.translate_from(mine[0], port)
        return Verdict("accept")

    def _value(self, walk: _Walk, selector: str) -> Value | None:
        """What a selector gives for this packet; None when it has no such thing, so that the rule does not match."""
        packet, connection = walk.packet, walk.connection
        family = "ip" if packet.family == 4 else "ip6"
        match selector.split(" "):
            case ["iifname" | "iif"]:
                return walk.entry.name or None
            case ["oifname" | "oif"]:
                return walk.exit.name or None
            case ["iifgroup"]:
                return walk.entry.group if walk.entry.name else None
            case ["oifgroup"]:
                return walk.exit.group if walk.exit.name else None
            case ["meta", "iifkind"]:
                return walk.entry.kind or None
            case ["meta", "l4proto"]:
                return packet.proto.number
            case ["ip" | "ip6" as version, "saddr"]:
                return int(packet.source) if version == family else None
            case ["ip" | "ip6" as version, "daddr"]:
                return int(packet.target) if version == family else None
            case ["th" | "tcp" | "udp", "dport"]:
                return packet.target_port
            case ["th", "sport"]:
                return packet.source_port
            case ["tcp", "flags"]:
                return sum(FLAGS[flag] for flag in packet.flags)
            case ["fib", "daddr", "type"]:
                return "local" if self._is_local(packet.target) else "unicast"
            case ["meta", "mark"]:
                return 0
            case ["ct", "mark"]:
                return None if connection is None else connection.mark
            case ["ct", "original", "proto-dst"]:
                return None if connection is None else connection.original[4]
            case ["ct", "status"]:
                return None if connection is None else "dnat" if connection.dnat else "none"
            case ["ct", "state"]:
                if not walk.tracked:
                    return None
                if connection is None:
                    return "invalid"
                return "established" if walk.backward or connection.answered else "new"
            case ["icmpv6", "type"]:
                return None
        raise LookupError(f"the tracer does not know {selector!r}")


_ON = Verdict("continue")
_FATES = {"accept": Fate.LOCAL, "drop": Fate.DROPPED, "reset": Fate.RESET, "reject": Fate.REJECTED}


def _matches(statement: Match, value: Value) -> bool:
    if statement.prefix:
        return str(value).startswith(statement.prefix) is not statement.negated
    if statement.mask is not None and isinstance(value, int):
        value = value & statement.mask
    found = any(
        low <= value <= high
        if isinstance(low, int) and isinstance(high, int) and isinstance(value, int)
        else low == value
        for low, high in statement.spans
    )
    return found is not statement.negated
