# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The interfaces of this network namespace and their addresses. Formats: rtnetlink(7), linux/if_link.h, if_addr.h.

The readers raise OSError when the kernel cannot be asked.
"""

import ipaddress
import socket
import struct
from dataclasses import dataclass
from typing import NamedTuple

from portfwd.kernel.netlink import Netlink, attributes
from portfwd.wire.values import IPNetwork

_GETLINK, _GETADDR = 18, 22
_IFLA_IFNAME, _IFLA_LINK, _IFLA_MASTER, _IFLA_LINKINFO, _IFLA_GROUP, _IFLA_LINK_NETNSID = 3, 5, 10, 18, 27, 37
_INFO_KIND = 1
_IFF_UP, _IFF_LOOPBACK = 0x1, 0x8
_IFA_ADDRESS, _IFA_LOCAL = 1, 2

InterfaceAddress = ipaddress.IPv4Interface | ipaddress.IPv6Interface


@dataclass(frozen=True, slots=True)
class Device:
    """An interface as the kernel reports it. `below`: the index of its lower interface, -1 for another namespace."""

    index: int
    name: str
    flags: int
    group: int
    kind: str
    below: int
    master: int

    @property
    def carries(self) -> bool:
        """Whether it is up and not loopback."""
        return bool(self.flags & _IFF_UP) and not self.flags & _IFF_LOOPBACK


class Address(NamedTuple):
    """An address of an interface: our own, and its network (on a point-to-point link: the peer's)."""

    link: int
    own: InterfaceAddress
    network: IPNetwork


def read_devices(netlink: Netlink) -> list[Device]:
    """Every interface, also those that are down."""
    answers = netlink.dump(_GETLINK, struct.pack("=BBHiII", socket.AF_UNSPEC, 0, 0, 0, 0, 0))
    return [_device(message.body) for message in answers]


def read_addresses(netlink: Netlink) -> list[Address]:
    """The addresses of every interface, in both families."""
    found = []
    for message in netlink.dump(_GETADDR, struct.pack("=BBBBi", socket.AF_UNSPEC, 0, 0, 0, 0)):
        family, bits, _, _, index = struct.unpack_from("=BBBBi", message.body)
        fields = attributes(message.body[8:])
        peer = fields.get(_IFA_ADDRESS)
        own = fields.get(_IFA_LOCAL) or peer
        if family in (socket.AF_INET, socket.AF_INET6) and own:
            network = ipaddress.ip_interface((peer or own, bits)).network
            found.append(Address(index, ipaddress.ip_interface((own, bits)), network))
    return found


def _device(body: bytes) -> Device:
    _, _, _, index, flags, _ = struct.unpack_from("=BBHiII", body)
    fields = attributes(body[16:])
    kind = _text(attributes(fields.get(_IFLA_LINKINFO, b"")).get(_INFO_KIND, b""))
    below = -1 if _IFLA_LINK_NETNSID in fields else _number(fields.get(_IFLA_LINK))
    group, master = _number(fields.get(_IFLA_GROUP)), _number(fields.get(_IFLA_MASTER))
    return Device(index, _text(fields.get(_IFLA_IFNAME, b"")), flags, group, kind, below, master)


def _text(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode(errors="replace")


def _number(raw: bytes | None) -> int:
    return 0 if raw is None else int.from_bytes(raw, "little")
