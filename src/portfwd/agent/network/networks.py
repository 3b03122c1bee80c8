# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Networks attached to interfaces: who is a neighbour, and by which interface an address can come.

networks_of() is pure; read_networks() asks the kernel. What counts as a network of hosts is an
allowlist, since whoever runs the network chooses its prefix: DHCP may say /0, which is everyone.
"""

import ipaddress
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from portfwd.agent.network.uplinks import Link, read_links
from portfwd.agent.rules.elements import Network
from portfwd.kernel.links import Address, InterfaceAddress, read_addresses
from portfwd.kernel.netlink import NETLINK_ROUTE, Netlink
from portfwd.kernel.routes import MAIN, Route, read_routes
from portfwd.wire.acknowledgement import IGNORED_MAX, Ignored, InterfaceName, What, Why
from portfwd.wire.values import IPNetwork

_UNCLEAN = re.compile(r"[^A-Za-z0-9_.@-]")
_UNWRITABLE = re.compile(r'[^!-~]|["*\\]')
"""What the kernel allows in a name, and nft text does not, or takes for a wildcard."""
_PRIVATE = tuple(ipaddress.IPv4Network(p) for p in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10"))
"""RFC 1918, and RFC 6598 between a customer and a provider: a private network may use a whole block."""
_PUBLIC_BITS = 16
"""The widest public IPv4 network on one link: a campus (class B)."""
_NO_HOSTS4 = tuple(ipaddress.IPv4Network(p) for p in ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3"))
_HOSTS6 = tuple(ipaddress.IPv6Network(p) for p in ("2000::/3", "fc00::/7"))
"""Global unicast and unique local addresses: neither loopback, link-local, multicast nor IPv4 in disguise."""
_LINK_BITS6 = 64
"""RFC 4291 section 2.5.1: the interface identifier has 64 bits, so no link has a shorter prefix."""
_UPLINKS_MAX = 32
_ROUTES_MAX = 64
"""Networks taken from the routes of one interface, at most: router advertisements may make any number."""


@dataclass(frozen=True, slots=True)
class Networks:
    """The networks around this qube (see Surroundings). `addresses` are those of the uplinks."""

    near: tuple[Network, ...] = ()
    home: tuple[Network, ...] = ()
    shut: frozenset[str] = frozenset()
    ignored: tuple[Ignored, ...] = ()
    addresses: tuple[InterfaceAddress, ...] = ()

    @property
    def uplinks_text(self) -> str:
        """The addresses of the uplinks, in the form of the status key `uplinks`."""
        return " ".join(str(address) for address in self.addresses[:_UPLINKS_MAX])

    @property
    def ignored_text(self) -> str:
        """The ignored interfaces and networks, in the form of the status key `ignored`."""
        return " ".join(str(ignored) for ignored in self.ignored[:IGNORED_MAX])


def read_networks() -> Networks:
    """Ask the kernel. Raises OSError."""
    netlink = Netlink(NETLINK_ROUTE)
    try:
        links = read_links(netlink)
        return networks_of(links, read_addresses(netlink), tuple(read_routes(netlink)))
    finally:
        netlink.close()


def is_attachable(prefix: IPNetwork) -> bool:
    """Whether a network of this prefix can be one of neighbours: of hosts, and not too wide."""
    if isinstance(prefix, ipaddress.IPv6Network):
        return prefix.prefixlen >= _LINK_BITS6 and any(prefix.subnet_of(hosts) for hosts in _HOSTS6)
    if any(prefix.overlaps(other) for other in _NO_HOSTS4):
        return False
    return prefix.prefixlen >= _PUBLIC_BITS or any(prefix.subnet_of(private) for private in _PRIVATE)


def networks_of(links: Iterable[Link], addresses: Collection[Address], routes: Iterable[Route]) -> Networks:
    """The networks around this qube, from interfaces that are up, their addresses and the routes. PURE."""
    by_index = {link.index: link for link in links}
    up = [a for a in addresses if a.link in by_index and not by_index[a.link].downstream]
    outward = [a for a in up if by_index[a.link].uplink]
    near, ignored = [], []
    for address in outward:
        if address.network.prefixlen == address.network.max_prefixlen or address.network.is_link_local:
            continue
        network = Network(by_index[address.link].name, address.network)
        if is_attachable(address.network):
            near.append(network)
        else:
            ignored.append(_ignored(network.interface, Why.NETWORK, str(network.prefix)))
    for link in by_index.values():
        if link.why is not None and any(a.link == link.index and not a.own.is_link_local for a in up):
            ignored.append(_ignored(link.name, link.why, _UNCLEAN.sub("_", link.what)[:15] or "none"))
    return Networks(
        near=tuple(near),
        home=_home(by_index.values(), up, routes),
        shut=frozenset(link.name for link in by_index.values() if link.why is Why.BELOW),
        ignored=tuple(sorted(set(ignored))),
        addresses=tuple(address.own for address in outward),
    )


def _ignored(name: str, why: Why, what: str) -> Ignored:
    return Ignored(InterfaceName(_UNCLEAN.sub("_", name)[:15] or "_"), why, What(what))


def _home(links: Collection[Link], addresses: Iterable[Address], routes: Iterable[Route]) -> tuple[Network, ...]:
    """The interfaces by which addresses of attached networks come in.

    Addresses of interfaces decide first. Where they leave it open, routes of uplinks to hosts on the link decide:
    with DHCPv6 a network stands in a route alone.
    """
    names = {link.index: _UNWRITABLE.sub("_", link.name) for link in links}
    stated = {Network(names[a.link], a.network) for a in addresses if is_attachable(a.network)}
    routed: dict[str, set[Network]] = {}
    uplinks = {link.index for link in links if link.uplink}
    for route in routes:
        if route.table == MAIN and route.gateway is None and route.link in uplinks and is_attachable(route.prefix):
            routed.setdefault(names[route.link], set()).add(Network(names[route.link], route.prefix))
    few = {network for found in routed.values() for network in sorted(found, key=_order)[:_ROUTES_MAX]}
    taken = {network.prefix for network in stated}
    rest = {Network(n.interface, piece) for n in few for piece in without(n.prefix, taken)}
    return tuple(sorted(_shares(stated) | _shares(rest), key=_order))


def _order(network: Network) -> tuple[str, int, int, int]:
    return network.interface, network.prefix.version, int(network.prefix.network_address), network.prefix.prefixlen


def _shares(networks: Collection[Network]) -> set[Network]:
    """Each network without the longer prefixes inside it that are attached elsewhere: the longest match decides."""
    at: dict[IPNetwork, set[str]] = {}
    for network in networks:
        at.setdefault(network.prefix, set()).add(network.interface)
    found = set()
    for network in networks:
        inside = {prefix for prefix, names in at.items() if network.interface not in names}
        inside = {p for p in inside if p.prefixlen > network.prefix.prefixlen}
        found |= {Network(network.interface, piece) for piece in without(network.prefix, inside)}
    return found


def without(prefix: IPNetwork, others: Iterable[IPNetwork]) -> list[IPNetwork]:
    """A prefix without these others, as prefixes that do not overlap."""
    pieces = [prefix]
    for other in others:
        if other.version != prefix.version:
            continue
        left: list[IPNetwork] = []
        for piece in pieces:
            if not piece.overlaps(other):
                left.append(piece)
            elif other.prefixlen > piece.prefixlen:
                left += piece.address_exclude(other)  # type: ignore[arg-type]
        pieces = left
    return pieces
