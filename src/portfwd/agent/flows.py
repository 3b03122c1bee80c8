# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The connections that conntrack knows and that came through our table: find them, and forget those no rule allows.

Formats: linux/netfilter/nfnetlink_conntrack.h. The mark filter of a dump is applied by the kernel, so other traffic
costs nothing.
"""

import contextlib
import functools
import ipaddress
import socket
import struct
from typing import NamedTuple, Protocol

from portfwd.agent.netlink import NETLINK_NETFILTER, Netlink, attribute, attributes
from portfwd.wire.values import Family, IPAddress, Proto

_CT_GET, _CT_DELETE = 0x101, 0x102
_TUPLE_ORIG, _TUPLE_REPLY, _MARK, _ID, _MARK_MASK = 1, 2, 8, 12, 21
_NESTED = 0x8000
_PROTOS = {6: Proto.TCP, 17: Proto.UDP}


class Flow(NamedTuple):
    """One connection. `server` and `server_port` are those that answer, behind our DNAT."""

    family: Family
    proto: Proto
    client: IPAddress
    port: int
    server: IPAddress
    server_port: int
    mark: int
    handle: bytes = b""


class FlowTable(Protocol):
    """Anything that tracks connections: the kernel, or the fake of the tests."""

    def marked(self, bit: int) -> list[Flow]:
        """The connections with that bit in their mark."""

    def forget(self, flow: Flow) -> None:
        """Delete one connection's entry; one that is gone already is no error."""


class Conntrack:
    """The connection table of this network namespace."""

    def __init__(self) -> None:
        self._netlink = Netlink(NETLINK_NETFILTER)

    def marked(self, bit: int) -> list[Flow]:
        """The connections with that bit in their mark."""
        mask = attribute(_MARK, struct.pack(">I", bit)) + attribute(_MARK_MASK, struct.pack(">I", bit))
        body = struct.pack("=BBH", socket.AF_UNSPEC, 0, 0) + mask
        found = (_flow(message.body) for message in self._netlink.dump(_CT_GET, body))
        return [flow for flow in found if flow is not None and flow.mark & bit]

    def forget(self, flow: Flow) -> None:
        """Delete one connection's entry; one that is gone already is no error."""
        with contextlib.suppress(FileNotFoundError):
            self._netlink.request(_CT_DELETE, flow.handle)


def _flow(body: bytes) -> Flow | None:
    """Read one entry; None for what is not TCP or UDP."""
    found = attributes(body[4:])
    if not {_TUPLE_ORIG, _TUPLE_REPLY, _MARK, _ID} <= found.keys():
        return None
    original, reply = _tuple(found[_TUPLE_ORIG]), _tuple(found[_TUPLE_REPLY])
    if original is None or reply is None:
        return None
    proto, client, _, _, port = original
    _, server, _, server_port, _ = reply
    handle = body[:4] + attribute(_TUPLE_ORIG | _NESTED, found[_TUPLE_ORIG]) + attribute(_ID, found[_ID])
    mark = struct.unpack(">I", found[_MARK])[0]
    return Flow(Family(client.version), proto, client, port, server, server_port, mark, handle)


def _tuple(data: bytes) -> tuple[Proto, IPAddress, IPAddress, int, int] | None:
    found = attributes(data)
    addresses, proto = attributes(found.get(1, b"")), attributes(found.get(2, b""))
    number = proto.get(1, b"\0")[0]
    if number not in _PROTOS or not {2, 3} <= proto.keys():
        return None
    source, target = (addresses.get(1), addresses.get(2)) if 1 in addresses else (addresses.get(3), addresses.get(4))
    if source is None or target is None:
        return None
    ports = (int.from_bytes(proto[2], "big"), int.from_bytes(proto[3], "big"))
    return _PROTOS[number], _address(source), _address(target), *ports


@functools.lru_cache(maxsize=4096)
def _address(packed: bytes) -> IPAddress:
    """Of thousands of connections, most share a few addresses."""
    return ipaddress.ip_address(packed)
