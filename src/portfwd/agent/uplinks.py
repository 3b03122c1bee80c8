# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""This qube's interfaces and the networks attached to its uplinks, read from the kernel. Formats: rtnetlink(7).

An uplink is an interface that is up, not loopback, not in group 2 (the qubes behind us) and not a tunnel. A network is
the prefix of one of its addresses; link-local ones cannot be forwarded and do not count.
"""

import ipaddress
import re
import socket
import struct
from dataclasses import dataclass

from portfwd.agent.elements import Network
from portfwd.agent.netlink import NETLINK_ROUTE, Netlink, attributes
from portfwd.agent.skeleton import TUNNEL_KINDS

_GETLINK, _GETADDR = 18, 22
_IFLA_IFNAME, _IFLA_LINKINFO, _IFLA_GROUP, _INFO_KIND = 3, 18, 27, 1
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_IFF_UP, _IFF_LOOPBACK = 0x1, 0x8
_XEN_GROUP, _DOWNSTREAM_GROUP = 1, 2

# The kernel allows quotes in names; in nft text they would end the name early. Such an interface has no neighbours.
_NAME = re.compile(r"[A-Za-z0-9_.@-]{1,15}")

GROUPS = (1, 5, 7, 8, 9, 11, 19)
"""What changes the answers here and in routes.py: RTNLGRP_LINK, and IFADDR, ROUTE, RULE of IPv4 and IPv6."""


@dataclass(frozen=True, slots=True)
class Link:
    """An interface that is up. `xen` is the uplink to a net qube; `tunnel` is what ends in this qube.

    `downstream` leads to a qube behind us.
    """

    index: int
    name: str
    uplink: bool
    tunnel: bool
    xen: bool = False
    downstream: bool = False


def read_links(netlink: Netlink) -> list[Link]:
    """Every interface that is up and not loopback."""
    found = []
    for message in netlink.dump(_GETLINK, struct.pack("=BBHiII", socket.AF_UNSPEC, 0, 0, 0, 0, 0)):
        _, _, _, index, flags, _ = struct.unpack_from("=BBHiII", message.body)
        if not flags & _IFF_UP or flags & _IFF_LOOPBACK:
            continue
        fields = attributes(message.body[16:])
        group = int.from_bytes(fields.get(_IFLA_GROUP, b"\0"), "little")
        kind = attributes(fields.get(_IFLA_LINKINFO, b"")).get(_INFO_KIND, b"").rstrip(b"\0").decode(errors="replace")
        name = fields.get(_IFLA_IFNAME, b"").rstrip(b"\0").decode(errors="replace")
        tunnel = kind in TUNNEL_KINDS and group != _DOWNSTREAM_GROUP
        uplink = not tunnel and group != _DOWNSTREAM_GROUP and bool(_NAME.fullmatch(name))
        found.append(Link(index, name, uplink, tunnel, group == _XEN_GROUP, group == _DOWNSTREAM_GROUP))
    return found


def uplink_addresses() -> list[tuple[str, ipaddress.IPv4Interface | ipaddress.IPv6Interface]]:
    """(interface name, address with its prefix length) of every uplink."""
    netlink = Netlink(NETLINK_ROUTE)
    try:
        names = {link.index: link.name for link in read_links(netlink) if link.uplink}
        found = []
        for message in netlink.dump(_GETADDR, struct.pack("=BBBBi", socket.AF_UNSPEC, 0, 0, 0, 0)):
            _, bits, _, _, index = struct.unpack_from("=BBBBi", message.body)
            fields = attributes(message.body[8:])
            raw = fields.get(_IFA_LOCAL) or fields.get(_IFA_ADDRESS)
            if index in names and raw:
                found.append((names[index], ipaddress.ip_interface((raw, bits))))
        return found
    finally:
        netlink.close()


def neighbours() -> tuple[Network, ...]:
    """The networks from which a neighbour may come."""
    return tuple(
        Network(name, address.network)
        for name, address in uplink_addresses()
        if not address.is_link_local and address.network.prefixlen < address.max_prefixlen
    )
