# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The rules, stated once more and as plainly as possible, without looking at the product: what is open, nothing else.

Everything is spelled out port by port. It repeats docs/formats.md and docs/decisions.
"""

import copy
import dataclasses
import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

Way = tuple[int, str, int]
"""Family, protocol, port."""
Doors = dict[tuple[str, int, str, int], tuple[frozenset[str], tuple[str, int] | None]]
"""(up | down | in, family, protocol, port) -> who may come in (any, near, prefixes), where it leads (None: here)."""


@dataclass(frozen=True)
class Rule:
    """A forward. `proto` '' is both; `source` is neighbours, any or a prefix; `expire` is in epoch seconds."""

    external: bool
    first: int
    last: int
    to_first: int
    to_last: int
    proto: str = ""
    source: str = "neighbours"
    enabled: bool = True
    expire: int | str | None = None

    @property
    def does(self) -> "Rule":
        """The rule without what can change about it."""
        return dataclasses.replace(self, enabled=True, expire=None)

    @property
    def line(self) -> str:
        """As the Admin API takes it."""
        words = f"forwardtype={'external' if self.external else 'internal'}" + (
            f" proto={self.proto}" * bool(self.proto)
        )
        words += f" srcports={self.first}-{self.last} dstports={self.to_first}-{self.to_last}"
        words += f" srchost={self.source}" * (self.source != "neighbours") + " enabled=no" * (not self.enabled)
        return f"action=forward {words}" + (f" expire={self.expire}" if self.expire is not None else "") + "\n"

    def ways(self) -> Iterator[tuple[Way, int]]:
        """Each family, protocol and port at the entrance, with the port of the qube to which it leads."""
        for family in (4, 6):
            if "/" in self.source and ipaddress.ip_network(self.source).version != family:
                continue
            for proto in (self.proto,) if self.proto else ("tcp", "udp"):
                for port in range(self.first, self.last + 1):
                    to = self.to_first if self.to_first == self.to_last else self.to_first + port - self.first
                    yield (family, proto, port), to


@dataclass
class Qube:
    """A qube as the user sees it. `rules` holds (when it was added, rule); `base`: Qubes' own firewall is loaded.

    `agent`: it is installed. `silent`: the home as it was when the agent fell silent (it died, or the qube was paused):
    since then the kernel can only let rules end. `fake`: Qubes gives it another IPv4 address, and then no IPv6.
    `unplugged`: it runs, and so does its net qube, but qubesd has taken its interface away and gives it no new one.
    """

    name: str
    netvm: str | None
    own: dict[int, str]
    running: bool = True
    agent: bool = True
    refuses: bool = False
    base: bool = True
    rules: list[tuple[int, Rule]] = field(default_factory=list)
    provides: bool = False
    by_default: bool = False
    disposable: bool = False
    paused: bool = False
    ipv6: bool = True
    fake: bool = False
    tunnel: bool = False
    transit: bool = False
    silent: "Home | None" = None
    unplugged: bool = False

    @property
    def addresses(self) -> dict[int, str]:
        """By family."""
        return {f: address for f, address in self.own.items() if f == 4 or (self.ipv6 and not self.fake)}


class Client(NamedTuple):
    """Where somebody stands: behind a net qube as one of its qubes, or outside, near or not to a net qube's uplink."""

    name: str
    addresses: dict[int, str]
    near: bool = False
    qube: str = ""
    netvm: str = ""


class Forged(NamedTuple):
    """A datagram whose source its sender has made up, sent to an address of a net qube.

    `near` are the networks of the network card by which it comes, `far` those of the net qube's other cards; both are
    empty for what comes from a qube.
    """

    sender: str
    entrance: str
    to: str
    source: str
    port: int
    near: tuple[str, ...] = ()
    far: tuple[str, ...] = ()


@dataclass
class Home:
    """All qubes. `now` is in epoch seconds; `held`: which ports whose rules had when all was at rest."""

    qubes: dict[str, Qube]
    now: int = 0
    held: frozenset[tuple[str, str, bool, Way]] = frozenset()

    def above(self, name: str) -> list[Qube]:
        """The net qubes above a qube, its own first."""
        netvm = self.qubes[name].netvm
        return [] if netvm is None else [self.qubes[netvm], *self.above(netvm)]

    def way(self, name: str, entrance: str) -> list[str]:
        """A qube and the hops from its own net qube to an entrance above it."""
        above = [hop.name for hop in self.above(name)]
        return [name, *above[: above.index(entrance) + 1]] if entrance in above else []

    def behind(self, name: str) -> list[str]:
        """The qubes whose net qube this is."""
        return [qube.name for qube in self.qubes.values() if qube.netvm == name]

    def outermost(self, name: str) -> bool:
        """Whether a qube is the end of the line itself: a forward leads from it, and never to it."""
        return self.qubes[name].provides and self.qubes[name].netvm is None

    def over(self, rule: Rule) -> bool:
        """Whether a rule's time has come."""
        return isinstance(rule.expire, int) and rule.expire <= self.now

    def entrance(self, name: str, rule: Rule) -> str:
        """Where clients come in: the outermost net qube, or the qube's own; a qube without one has only itself."""
        above = self.above(name)
        return name if not above else above[-1].name if rule.external else above[0].name

    def holders(self) -> Iterator[tuple[Qube, Rule]]:
        """The rules that hold their ports: of two that want the same port of a qube, the one whose qube had it.

        Where neither had it, the one added first. A port is wanted at the entrance and at every hop behind it. A qube's
        own ports can be led to by several rules, but not be handed on by it, too.
        """
        passed: set[tuple[str, bool, Way]] = set()
        opened: set[tuple[str, bool, Way]] = set()
        for _, name, rule in sorted(self._live(), key=lambda found: (self._newcomer(*found[1:]), found[0])):
            if self.outermost(name):
                continue
            passes = self._passes(name, rule)
            opens = {(name, True, (*way[:2], to)) for way, to in rule.ways() if self.above(name)}
            if not passes & (passed | opened) and not opens & passed:
                passed |= passes
                opened |= opens
                yield self.qubes[name], rule

    def rest(self) -> None:
        """Everything has arrived: who has a port now keeps it."""
        self.held = frozenset((q.name, *place) for q, rule in self.holders() for place in self._passes(q.name, rule))

    def _passes(self, name: str, rule: Rule) -> set[tuple[str, bool, Way]]:
        above = [hop.name for hop in self.above(name)] if rule.external else [self.entrance(name, rule)]
        return {(hop, rule.external, way) for hop in above or [name] for way, _ in rule.ways()}

    def _newcomer(self, name: str, rule: Rule) -> int:
        """0 where the qube had all ports of the rule, 2 where it had none."""
        had = [(name, *place) in self.held for place in self._passes(name, rule)]
        return 0 if all(had) else 1 if any(had) else 2

    def _live(self) -> Iterator[tuple[int, str, Rule]]:
        for qube in self.qubes.values():
            for order, rule in qube.rules:
                if rule.enabled and not self.over(rule):
                    yield order, qube.name, rule

    def accepts(self, fresh: list[tuple[str, Rule]]) -> bool:
        """Whether rules that are new here (as if the last ones added) all get their ports."""
        holders = [(qube.name, rule) for qube, rule in self.holders()]
        return all(one in holders for one in fresh)

    def open(self) -> Iterator[tuple[Qube, list[Qube], Rule, Way, int]]:
        """Each way that is open: the qube, the hops from its own net qube outwards, the rule, the way, its port."""
        for qube, rule in self.holders():
            above = self.above(qube.name)
            hops = above if rule.external else above[:1]
            if not hops or not all(one.running and one.agent for one in (qube, *hops)) or any(h.refuses for h in hops):
                continue
            if rule.external and any(hop.tunnel and not hop.transit for hop in hops):
                continue
            for way, to in rule.ways():
                if all(way[0] in one.addresses for one in (qube, *hops[:-1])):
                    yield qube, hops, rule, way, to

    def doors(self) -> dict[str, Doors]:
        """What the kernel of each running qube must hold."""
        doors: dict[str, Doors] = {qube.name: {} for qube in self.qubes.values() if qube.running}
        for qube, hops, rule, (family, proto, port), to in self.open():
            below = [qube, *hops]
            for place, hop in enumerate(hops):
                leads = below[place].addresses[family], port if place else to
                source = rule.source if place == len(hops) - 1 else _inside(rule.source)
                side = "up" if rule.external else "down"
                doors[hop.name][side, family, proto, port] = frozenset({_plain(source)}), leads
            key = ("in", family, proto, to)
            others = doors[qube.name].get(key, (frozenset(),))[0]
            doors[qube.name][key] = _together(others | {_plain(_inside(rule.source))}), None
        for name in doors:
            silent = self.qubes[name].silent
            if silent is not None:
                doors[name] = dataclasses.replace(silent, now=self.now).doors()[name]
        return {name: found if self.qubes[name].base else {} for name, found in doors.items()}

    def stands(self, name: str, found: Doors, wanted: Doors) -> bool:
        """Whether a kernel holds what it must. One without an agent may shut more than must end: doors are shared."""
        silent = self.qubes[name].silent
        rules = [rule for q in silent.qubes.values() for _, rule in q.rules] if silent is not None else []
        if not any(self.over(rule) for rule in rules):
            return found == wanted
        return {place: door for place, door in found.items() if "no door" not in door[0]}.items() <= wanted.items()

    def without_agent(self) -> "Home":
        """As it is now, for a qube whose agent falls silent: no rule can take a port over from another any more."""
        then = copy.deepcopy(self)
        holders = [(qube.name, rule) for qube, rule in then.holders()]
        for qube in then.qubes.values():
            qube.silent = None
            qube.rules = [placed for placed in qube.rules if (qube.name, placed[1]) in holders]
        return then

    def reached(self, clients: list[Client]) -> dict[tuple[str, str, Way], tuple[str, int]]:
        """(client, entrance, way) -> (qube, port), for all that reach anything."""
        found = {}
        unplugged = {qube.name for qube in self.qubes.values() if qube.unplugged}
        for qube, hops, rule, way, to in self.open():
            entrance = hops[-1].name
            for client in clients:
                # What happens when a qube knocks at its own forward is left open.
                if (
                    client.qube != qube.name
                    and all(one.base and not one.paused for one in (qube, *hops))
                    and unplugged.isdisjoint({client.qube, qube.name, *(hop.name for hop in hops)})
                    and self._may(client, entrance, rule, way[0])
                ):
                    found[client.name, entrance, way] = qube.name, to
        return found

    def heard(self, forged: Forged) -> tuple[str, int] | None:
        """Which qube hears a forged datagram, at which of its ports: a source is believed only where it can be true.

        Behind a vif is nobody but its qube, so nobody hears another source from there, nor the source of a qube behind
        the net qube from outside. What is attached to one card does not come by another.
        """
        sender = self.qubes.get(forged.sender)
        source = ipaddress.ip_address(forged.source)
        if sender is not None:
            true = sender.addresses.get(source.version) == forged.source
            client = Client(sender.name, sender.addresses, qube=sender.name, netvm=forged.entrance)
            place = (client.name, forged.entrance, (source.version, "udp", forged.port))
            return self.reached([client]).get(place) if true else None
        mine = [a for q in self.behind(forged.entrance) if self.qubes[q].running for a in self.qubes[q].own.values()]

        def among(networks: tuple[str, ...]) -> bool:
            return any(source in ipaddress.ip_network(network) for network in networks)

        if not forged.near or forged.source in mine or (among(forged.far) and not among(forged.near)):
            return None
        for qube, hops, rule, way, to in self.open():
            if not rule.external or hops[-1].name != forged.entrance or way != (source.version, "udp", forged.port):
                continue
            if not all(one.base and not one.paused for one in (qube, *hops)):
                return None
            if rule.source == "neighbours":
                allowed = among(forged.near)
            else:
                allowed = rule.source == "any" or source in ipaddress.ip_network(rule.source)
            return (qube.name, to) if allowed else None
        return None

    def _may(self, client: Client, entrance: str, rule: Rule, family: int) -> bool:
        if family not in client.addresses:
            return False
        if rule.external is bool(client.qube):
            return False
        if client.qube and client.netvm != entrance:
            return False
        if rule.source == "neighbours":
            return client.near or bool(client.qube)
        address = ipaddress.ip_address(client.addresses[family])
        return rule.source == "any" or address in ipaddress.ip_network(rule.source)


def _inside(source: str) -> str:
    """Who may come in further in: only the entrance knows its neighbours."""
    return "any" if source == "neighbours" else source


def _plain(source: str) -> str:
    return "near" if source == "neighbours" else "any" if source in ("0.0.0.0/0", "::/0") else source


def _together(sources: frozenset[str]) -> frozenset[str]:
    """The same addresses in the fewest prefixes."""
    if "any" in sources:
        return frozenset({"any"})
    v4 = ipaddress.collapse_addresses(ipaddress.IPv4Network(s) for s in sources if ":" not in s)
    v6 = ipaddress.collapse_addresses(ipaddress.IPv6Network(s) for s in sources if ":" in s)
    return frozenset(map(str, [*v4, *v6]))
