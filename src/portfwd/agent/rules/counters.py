# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Counters of the elements of our maps and sets, read from nft's listing. PURE text, except for read().

An element in a listing: `tcp . 443 counter packets 3 bytes 165 timeout 1h expires 59m59s128ms comment "..." : goto x`;
versions of nft differ in the order of its parts.
"""

import bisect
import re
from collections.abc import Iterable
from typing import NamedTuple

from portfwd.agent.rules.skeleton import HITS_SECONDS, TABLE, nft_family
from portfwd.kernel.nft import Nft, NftError
from portfwd.wire.entry import Entry
from portfwd.wire.limits import PORT_MAX
from portfwd.wire.values import Family, PortRange, Proto

_ELEMENTS = re.compile(r"elements = \{(.*?)\}", re.DOTALL)
_PACKETS, _BYTES = re.compile(r" packets (\d+)"), re.compile(r" bytes (\d+)")
_EXPIRES = re.compile(r" expires (\S+)")
_SPAN = re.compile(r"(\d+)(ms|[dhms])")
_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
_PROTOS = {"tcp": Proto.TCP, "6": Proto.TCP, "udp": Proto.UDP, "17": Proto.UDP}


class ElementCount(NamedTuple):
    """One element: the ports it stands for, what it has counted, and the seconds until it ends (0: never)."""

    proto: Proto
    ports: PortRange
    packets: int
    bytes: int
    expires: float

    @property
    def last(self) -> int:
        """Of an element of a hits set: seconds since the newest connection."""
        return max(0, int(HITS_SECONDS - self.expires))


def read(nft: Nft, family: Family, name: str) -> list[ElementCount]:
    """All counters of a set or map of our table, by port. Raises NftError."""
    kind = "set" if name.endswith("-hits") else "map"
    try:
        listed = nft.run(f"list {kind} {nft_family(family)} {TABLE} {name}")
    except NftError as error:
        if error.missing:
            return []
        raise
    return parse(listed)


def parse(listed: str) -> list[ElementCount]:
    """The elements of a listing whose key is a protocol and a port or range, in either order; by port."""
    body = _ELEMENTS.search(listed)
    items = body[1].split(",") if body else []
    return sorted((c for c in (_count(item.strip()) for item in items) if c), key=lambda c: c.ports.first)


def _count(item: str) -> ElementCount | None:
    one, _, rest = item.partition(" . ")
    other, _, rest = rest.partition(" ")
    proto, ports = (one, other) if one in _PROTOS and other not in _PROTOS else (other, one)
    first, _, last = ports.partition("-")
    if proto not in _PROTOS or not first.isdecimal() or not (last or first).isdecimal():
        return None
    if not 1 <= int(first) <= int(last or first) <= PORT_MAX:
        return None
    packets, size, expires = _PACKETS.search(" " + rest), _BYTES.search(" " + rest), _EXPIRES.search(" " + rest)
    return ElementCount(
        _PROTOS[proto],
        PortRange(int(first), int(last or first)),
        int(packets[1]) if packets else 0,
        int(size[1]) if size else 0,
        sum(int(n) * _UNITS[unit] for n, unit in _SPAN.findall(expires[1])) if expires else 0,
    )


class Counts:
    """Elements of one family and side, to be asked by entry."""

    def __init__(self, counts: Iterable[ElementCount]) -> None:
        self._of: dict[Proto, list[ElementCount]] = {proto: [] for proto in Proto}
        for count in sorted(counts, key=lambda c: c.ports.first):
            self._of[count.proto].append(count)
        self._firsts = {proto: [count.ports.first for count in found] for proto, found in self._of.items()}

    def within_any(self, entries: Iterable[Entry]) -> set[ElementCount]:
        """The elements that begin at a port on which one of these entries listens."""
        return {count for entry in entries for count in self.within(entry)}

    def within(self, entry: Entry) -> list[ElementCount]:
        """The elements that begin at a port on which this entry listens."""
        firsts = self._firsts[entry.proto]
        low, high = bisect.bisect_left(firsts, entry.listen.first), bisect.bisect_right(firsts, entry.listen.last)
        return self._of[entry.proto][low:high]
