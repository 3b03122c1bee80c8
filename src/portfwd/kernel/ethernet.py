# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Ethernet frames of a probe. PURE: addresses and ports -> bytes.

Formats: RFC 791 (IPv4), RFC 8200 (IPv6), RFC 9293 (TCP), RFC 768 (UDP).
"""

import struct

from portfwd.wire.values import IPAddress, Proto

SYN, RST = 0x02, 0x04
_SENDER = bytes.fromhex("020000000001")
"""A locally administered MAC address. No answer to it leaves the hop."""
_TTL = 64
_WINDOW = 64240
_MSS = bytes([2, 4, 1000 >> 8, 1000 & 0xFF])
_ETHERTYPES = {4: 0x0800, 6: 0x86DD}


def tcp(source: IPAddress, sport: int, target: IPAddress, port: int, sequence: int, flags: int) -> bytes:
    """A TCP segment without data, its checksum included."""
    options = _MSS if flags == SYN else b""
    offset = (5 + len(options) // 4) << 4
    header = struct.pack("!HHIIBBHHH", sport, port, sequence & 0xFFFFFFFF, 0, offset, flags, _WINDOW, 0, 0) + options
    total = _checksum(_pseudo(source, target, Proto.TCP, len(header)) + header)
    return header[:16] + struct.pack("!H", total) + header[18:]


def udp(source: IPAddress, sport: int, target: IPAddress, port: int) -> bytes:
    """An empty datagram."""
    header = struct.pack("!HHHH", sport, port, 8, 0)
    total = _checksum(_pseudo(source, target, Proto.UDP, len(header)) + header)
    return header[:6] + struct.pack("!H", total or 0xFFFF)


def frame(mac: bytes, source: IPAddress, target: IPAddress, proto: Proto, body: bytes) -> bytes:
    """The Ethernet frame that carries `body` to the interface with this MAC address."""
    if source.version == 4:
        header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0, _TTL, proto.number, 0)
        whole = header + source.packed + target.packed
        packet = header[:10] + struct.pack("!H", _checksum(whole)) + source.packed + target.packed
    else:
        packet = struct.pack("!IHBB", 6 << 28, len(body), proto.number, _TTL) + source.packed + target.packed
    return mac + _SENDER + struct.pack("!H", _ETHERTYPES[source.version]) + packet + body


def _pseudo(source: IPAddress, target: IPAddress, proto: Proto, length: int) -> bytes:
    if source.version == 4:
        return source.packed + target.packed + struct.pack("!BBH", 0, proto.number, length)
    return source.packed + target.packed + struct.pack("!IHBB", length, 0, 0, proto.number)


def _checksum(data: bytes) -> int:
    """RFC 1071."""
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
