# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Which sources can be clients of a forward; no forwarded packet comes from the others. Does no I/O.

Refuses host names that are numbers, too: inet_aton(3) and getaddrinfo(3) take them for addresses, and not for those a
reader expects. Sources: RFC 6890 (special-purpose addresses), RFC 4291, RFC 6761 (localhost).
"""

import functools
import ipaddress
import re

from portfwd.wire.errors import RefusedError, shown
from portfwd.wire.values import HostName, IPAddress, IPNetwork, Source, SourceWord

_NO_CLIENTS: tuple[tuple[IPNetwork, str], ...] = tuple(
    (ipaddress.ip_network(prefix), reason)
    for prefix, reason in (
        ("0.0.0.0/32", "no client has the unspecified address; for everyone write any"),
        ("0.0.0.0/8", "no client has an address of 0.0.0.0/8; for everyone write any"),
        ("127.0.0.0/8", "a loopback address never comes from another machine; write the client's own address"),
        ("169.254.0.0/16", "link-local addresses are not forwarded; write the client's other address"),
        ("224.0.0.0/4", "a multicast address is no sender; write the clients' own addresses or their prefix"),
        ("255.255.255.255/32", "the broadcast address is no sender; write the clients' prefix, like 192.168.1.0/24"),
        ("240.0.0.0/4", "no client has an address of 240.0.0.0/4; write the client's own address"),
        ("224.0.0.0/3", "these are multicast and reserved addresses; write the clients' own addresses or prefix"),
        ("::/128", "no client has the unspecified address; for everyone write any"),
        ("::1/128", "a loopback address never comes from another machine; write the client's own address"),
        ("fe80::/10", "link-local addresses are not forwarded; write neighbours, or the client's other address"),
        ("ff00::/8", "a multicast address is no sender; write the clients' own addresses or their prefix"),
    )
)
_IPV4_INSIDE = (ipaddress.IPv6Network("::ffff:0:0/96"), ipaddress.IPv6Network("::/96"))
"""Mapped and compatible addresses (RFC 4291 section 2.5.5), which do not occur on a network."""
_NUMBER = re.compile(r"0x[0-9a-f]*|[0-9]+")
_NUMBER_MAX = 40
"""Digits: a longer number is not read."""


@functools.lru_cache(maxsize=4096)
def source_fault(source: Source) -> str:
    """Why no client can come from a source, and what to write instead; '' when one can."""
    if isinstance(source, SourceWord):
        return ""
    if isinstance(source, HostName):
        return _name_fault(source)
    if isinstance(source, ipaddress.IPv6Network):
        for inside in _IPV4_INSIDE:
            if source.subnet_of(inside) and int(source.network_address) & 0xFFFFFFFF > 1:
                bits = source.prefixlen - inside.prefixlen
                meant = ipaddress.IPv4Network((int(source.network_address) & 0xFFFFFFFF, bits))
                return f"this is IPv4 inside IPv6; {_instead(meant)}"
    for prefix, reason in _NO_CLIENTS:
        if source.version == prefix.version and source.subnet_of(prefix):  # type: ignore[arg-type]
            return reason
    if isinstance(source, ipaddress.IPv6Network) and any(source.subnet_of(inside) for inside in _IPV4_INSIDE):
        return "this is IPv4 inside IPv6; write the IPv4 prefix"
    return ""


def is_client(address: IPAddress) -> bool:
    """Whether an address can be that of a client."""
    return not source_fault(ipaddress.ip_network(address))


def check_source(source: Source) -> None:
    """Raise RefusedError for a source from which no client can come."""
    if fault := source_fault(source):
        raise RefusedError(f"source {shown(source)}: {fault}")


def _name_fault(name: HostName) -> str:
    labels = name.split(".")
    if labels[-1] == "localhost":
        return "this name means each machine itself; write the client's own name or address"
    if not _NUMBER.fullmatch(labels[-1]):
        return ""
    meant = as_number(name)
    if meant is None:
        return "a name cannot end in a number; write an address as four decimal numbers"
    return f"programs take this number for an address; {_instead(ipaddress.IPv4Network(meant))}"


def as_number(text: str) -> ipaddress.IPv4Address | None:
    """The address that inet_aton(3) reads in a text, be it octal, hexadecimal or short; else None."""
    parts = text.lower().split(".")
    if len(parts) > 4 or not all(_NUMBER.fullmatch(part) and len(part) <= _NUMBER_MAX for part in parts):
        return None
    try:
        numbers = [_number(part) for part in parts]
    except ValueError:
        return None
    *leading, last = numbers
    if any(number > 255 for number in leading) or last >= 256 ** (4 - len(leading)):
        return None
    return ipaddress.IPv4Address(sum(n << 8 * (3 - place) for place, n in enumerate(leading)) + last)


def _number(text: str) -> int:
    if text.startswith("0x"):
        return int(text[2:] or "0", 16)
    return int(text, 8 if text.startswith("0") and len(text) > 1 else 10)


def _instead(meant: ipaddress.IPv4Network) -> str:
    """What to write instead; '' where nothing better exists."""
    text = str(meant.network_address) if meant.prefixlen == 32 else str(meant)
    fault = source_fault(meant)
    return f"it means {text}, and {fault}" if fault else f"write {text}"
