# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The values that cross machine boundaries: protocols, ports, names, sources. This module does no I/O.

Each type is made at the border by parse() (or its constructor) and is right from then on. Everything that is not
accepted raises RefusedError.
"""

import enum
import ipaddress
import re
from dataclasses import dataclass
from typing import Self

from portfwd.wire import limits
from portfwd.wire.errors import RefusedError, shown

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

_QUBE = re.compile(r"[a-zA-Z][a-zA-Z0-9_.-]*")
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?")
_RULE_ID = re.compile(r"[0-9a-f]{16}")


class Proto(enum.StrEnum):
    """A transport protocol that has ports."""

    TCP = "tcp"
    UDP = "udp"

    @property
    def number(self) -> int:
        """The protocol's number (IANA protocol numbers)."""
        return 6 if self is Proto.TCP else 17


class Family(enum.IntEnum):
    """An IP version."""

    V4 = 4
    V6 = 6

    @property
    def bits(self) -> int:
        """Bits in an address."""
        return 32 if self is Family.V4 else 128

    @property
    def everything(self) -> IPNetwork:
        """The prefix that holds every address."""
        return ipaddress.IPv4Network("0.0.0.0/0") if self is Family.V4 else ipaddress.IPv6Network("::/0")


class Side(enum.StrEnum):
    """Where a packet enters a net qube: from outside, or from the qubes and tunnels that end in it.

    `inner` is from outside, but by the uplink to its own net qube alone: not by a network card that it has beside it.
    """

    UPLINK = "uplink"
    INNER = "inner"
    DOWNSTREAM = "downstream"


class SourceWord(enum.StrEnum):
    """The two classes of clients that are not addresses."""

    NEIGHBOURS = "neighbours"
    ANYONE = "any"


def parse_port(text: str) -> int:
    """A port, 1 to 65535, decimal digits only (RFC 6335 section 6; 0 is reserved)."""
    if not text.isascii() or not text.isdigit():
        raise RefusedError(f"{shown(text)} is not a port number")
    number = int(text) if len(text) <= 8 else limits.PORT_MAX + 1
    if not 1 <= number <= limits.PORT_MAX:
        raise RefusedError(f"port {shown(text)} is out of range: a port is 1 to {limits.PORT_MAX}")
    return number


@dataclass(frozen=True, slots=True, order=True)
class PortRange:
    """Ports first to last, both included."""

    first: int
    last: int

    def __post_init__(self) -> None:
        if not 1 <= self.first <= self.last <= limits.PORT_MAX:
            raise RefusedError(f"{shown(f'{self.first}-{self.last}')} is not a port range")

    @classmethod
    def parse(cls, text: str) -> Self:
        """N or N-M with N <= M."""
        first, dash, last = text.partition("-")
        low = parse_port(first)
        high = parse_port(last) if dash else low
        if high < low:
            raise RefusedError(f"port range {shown(text)} ends before it begins")
        return cls(low, high)

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"

    def __len__(self) -> int:
        return self.last - self.first + 1

    def __contains__(self, port: int) -> bool:
        return self.first <= port <= self.last

    @property
    def short(self) -> str:
        """The short spelling: 443 or 1-2."""
        return str(self.first) if self.first == self.last else str(self)

    def overlaps(self, other: "PortRange") -> bool:
        """Whether a port is in both."""
        return self.first <= other.last and other.first <= self.last


class QubeName(str):
    """The name of a qube as qubesd accepts it: a letter, then letters, digits, _ . -; at most 31 characters."""

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        if len(text) > limits.QUBE_NAME_MAX or not _QUBE.fullmatch(text):
            raise RefusedError(f"{shown(text)} is not a qube name")
        return super().__new__(cls, text)


class RuleId(str):
    """The stable id of a forward rule: 16 lower-case hexadecimal digits."""

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        if not _RULE_ID.fullmatch(text):
            raise RefusedError(f"{shown(text)} is not a rule id")
        return super().__new__(cls, text)


class HostName(str):
    """A host name, lower case: labels of letters, digits, _ and inner -, at most 63 each and 253 in all (RFC 1123)."""

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        labels = text.split(".")
        if len(text) > limits.HOST_NAME_MAX or not all(len(x) < 64 and _LABEL.fullmatch(x) for x in labels):
            raise RefusedError(f"{shown(text)} is not a host name")
        if labels[-1].isdigit():
            raise RefusedError(f"{shown(text)} is neither an address nor a host name")
        return super().__new__(cls, text)


Source = SourceWord | ipaddress.IPv4Network | ipaddress.IPv6Network | HostName
"""Who may connect: a class of clients, a prefix, or a name that each hop resolves."""


def parse_address(text: str) -> IPAddress:
    """An IPv4 or IPv6 address without scope."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise RefusedError(f"{shown(text)} is not an address") from None
    if isinstance(address, ipaddress.IPv6Address) and address.scope_id is not None:
        raise RefusedError(f"{shown(text)} has a scope, which other machines do not share")
    return address


def parse_prefix(text: str) -> IPNetwork:
    """An address or ADDRESS/BITS; host bits are masked off. Netmasks in dotted form are refused."""
    host, slash, bits = text.partition("/")
    address = parse_address(host)
    if slash and not (bits.isascii() and bits.isdigit() and len(bits) <= 3 and int(bits) <= address.max_prefixlen):
        raise RefusedError(f"{shown(text)} has a wrong prefix length: it is 0 to {address.max_prefixlen}")
    return ipaddress.ip_network((address, int(bits) if slash else address.max_prefixlen), strict=False)


def family_of(thing: IPAddress | IPNetwork) -> Family:
    """The family of an address or prefix."""
    return Family(thing.version)


def source_family(source: Source) -> Family | None:
    """The only family that a source can mean, or None when it can mean both."""
    return None if isinstance(source, (SourceWord, HostName)) else family_of(source)


def format_source(source: Source) -> str:
    """The wire form of a source: neighbours, any, a prefix, or name:HOST."""
    if isinstance(source, HostName):
        return f"name:{source}"
    return source.value if isinstance(source, SourceWord) else str(source)


def parse_source(text: str) -> Source:
    """The inverse of format_source."""
    if text in (SourceWord.NEIGHBOURS, SourceWord.ANYONE):
        return SourceWord(text)
    return HostName(text[5:]) if text.startswith("name:") else parse_prefix(text)
