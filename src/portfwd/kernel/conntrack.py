# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Connections in conntrack that came through our table: lists them, and deletes those that no rule allows.

Formats: linux/netfilter/nfnetlink_conntrack.h. The filters of a dump are applied by the kernel, so other traffic costs
nothing. A kernel before 5.16 has no filter by status, one before 5.8 none by protocol: it gives more than is asked
for.
"""

import contextlib
import functools
import ipaddress
import socket
import struct
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

from portfwd.kernel.netlink import NETLINK_NETFILTER, Netlink, attribute, attributes, nested
from portfwd.wire.values import Family, IPAddress, Proto

_CT_GET, _CT_DELETE, _CT_STATS = 0x101, 0x102, 0x105
_STATS_ENTRIES = 1
_TUPLE_ORIG, _TUPLE_REPLY, _STATUS, _PROTOINFO, _MARK, _ID, _MARK_MASK, _STATUS_MASK = 1, 2, 3, 4, 8, 12, 21, 26
_TUPLE_PROTO, _PROTO_NUM = 2, 1
_PROTOINFO_TCP, _TCP_STATE = 1, 1
_TCP_ENDED = {6, 7, 8}
"""TCP_CONNTRACK_LAST_ACK, TIME_WAIT, CLOSE: both sides have ended it, or one has reset it."""
_FILTER, _ORIG_FLAGS, _PROTO_NUM_FLAG = 25, 1, 1 << 3
_SEEN_REPLY, _ASSURED, _DST_NAT = 1 << 1, 1 << 2, 1 << 5
_NESTED = 0x8000
_PROTOS = {6: Proto.TCP, 17: Proto.UDP}


class Flow(NamedTuple):
    """One connection. `server` and `server_port` are those that answer, behind our DNAT.

    `dialled` and `port` are the address and port that the client dialled.

    `ended`: it is over, and conntrack keeps it for a while only for packets that are still on the way.
    `answered`: the server has sent something; a client without an answer may have a spoofed address.
    """

    family: Family
    proto: Proto
    client: IPAddress
    port: int
    server: IPAddress
    server_port: int
    mark: int
    handle: bytes = b""
    translated: bool = True
    client_port: int = 0
    ended: bool = False
    dialled: IPAddress | None = None
    answered: bool = True


class Which(NamedTuple):
    """A selection of connections: of one protocol; assured (both sides have sent), or not assured.

    Strangers can make any number of the latter in a moment, with spoofed sources.
    """

    proto: Proto | None = None
    assured: bool | None = None


ALL = Which()


class FlowTable(Protocol):
    """Anything that tracks connections: the kernel, or the fake of the tests."""

    def marked(self, bit: int, which: Which = ALL) -> Iterable[Flow]:
        """The connections with that bit in their mark; may give more than `which` selects."""

    def unmarked(self, bit: int, which: Which = ALL) -> Iterable[Flow]:
        """The connections without that bit whose destination was translated (DNAT)."""

    def forget(self, flow: Flow) -> None:
        """Delete one connection's entry. A missing one is no error."""


class Conntrack:
    """The connection table of this network namespace."""

    def __init__(self) -> None:
        self._netlink = Netlink(NETLINK_NETFILTER)

    def marked(self, bit: int, which: Which = ALL) -> Iterable[Flow]:
        """The connections with that bit in their mark; may give more than `which` selects."""
        return (flow for flow in self._dump(_masked(bit, bit), which) if flow.mark & bit)

    def unmarked(self, bit: int, which: Which = ALL) -> Iterable[Flow]:
        """The connections without that bit whose destination was translated (DNAT)."""
        found = self._dump(_masked(0, bit), which, _DST_NAT)
        return (flow for flow in found if flow.translated and not flow.mark & bit)

    def _dump(self, filters: bytes, which: Which, status: int = 0) -> Iterator[Flow]:
        """Reads on as the flows are taken, from a socket of its own: others may be asked for and deleted meanwhile."""
        if self._is_empty():
            return
        netlink = Netlink(NETLINK_NETFILTER)
        try:
            # The kernel filters by protocol within one family only.
            for family in (socket.AF_UNSPEC,) if which.proto is None else (socket.AF_INET, socket.AF_INET6):
                body = struct.pack("=BBH", family, 0, 0) + filters + _filters(which, status)
                for message in netlink.stream(_CT_GET, body):
                    if (flow := _flow(message.body)) is not None:
                        yield flow
        finally:
            netlink.close()

    def _is_empty(self) -> bool:
        # A dump walks all buckets of the kernel's table, however few connections this namespace has.
        answers = self._netlink.request(_CT_STATS, struct.pack("=BBH", socket.AF_UNSPEC, 0, 0))
        return any(attributes(answer.body[4:]).get(_STATS_ENTRIES) == bytes(4) for answer in answers)

    def forget(self, flow: Flow) -> None:
        """Delete one connection's entry. A missing one is no error."""
        with contextlib.suppress(FileNotFoundError):
            self._netlink.request(_CT_DELETE, flow.handle)


def _masked(value: int, mask: int) -> bytes:
    return attribute(_MARK, struct.pack(">I", value)) + attribute(_MARK_MASK, struct.pack(">I", mask))


def _filters(which: Which, status: int = 0) -> bytes:
    """Filters of a dump beside the mark: all bits of `status`, and what `which` selects."""
    mask = status | (0 if which.assured is None else _ASSURED)
    wanted = status | (_ASSURED if which.assured else 0)
    found = b""
    if mask:
        found += attribute(_STATUS, struct.pack(">I", wanted)) + attribute(_STATUS_MASK, struct.pack(">I", mask))
    if which.proto is not None:
        found += nested(_TUPLE_ORIG, nested(_TUPLE_PROTO, attribute(_PROTO_NUM, bytes([which.proto.number]))))
        found += nested(_FILTER, attribute(_ORIG_FLAGS, struct.pack("=I", _PROTO_NUM_FLAG)))
    return found


def _flow(body: bytes) -> Flow | None:
    """Read one entry; None when it is neither TCP nor UDP."""
    found = attributes(body[4:])
    if not {_TUPLE_ORIG, _TUPLE_REPLY, _MARK, _ID} <= found.keys():
        return None
    original, reply = _tuple(found[_TUPLE_ORIG]), _tuple(found[_TUPLE_REPLY])
    if original is None or reply is None:
        return None
    proto, client, dialled, client_port, port = original
    _, server, _, server_port, _ = reply
    handle = body[:4] + attribute(_TUPLE_ORIG | _NESTED, found[_TUPLE_ORIG]) + attribute(_ID, found[_ID])
    mark = struct.unpack(">I", found[_MARK])[0]
    translated = (dialled, port) != (server, server_port)
    family = Family(client.version)
    ended = _has_ended(found)
    answered = bool(int.from_bytes(found.get(_STATUS, b""), "big") & _SEEN_REPLY)
    rest = (client_port, ended, dialled, answered)
    return Flow(family, proto, client, port, server, server_port, mark, handle, translated, *rest)


def _has_ended(found: dict[int, bytes]) -> bool:
    state = attributes(attributes(found.get(_PROTOINFO, b"")).get(_PROTOINFO_TCP, b"")).get(_TCP_STATE, b"\0")
    return state[0] in _TCP_ENDED


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
    """Cached: of thousands of connections, most share a few addresses."""
    return ipaddress.ip_address(packed)
