# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Datagrams with made up sources, and some true ones, in the laboratory's house: who can send which, and is heard."""

import contextlib
import ipaddress
import itertools
import os
import random
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from lab.client import Lab
from tests.oracle.house_net import CARDS, NETWORKS, OUTSIDE, PORTS, address
from tests.oracle.rules import Forged, Home

ROUTERS = {"router": ("lan", 1), "cafe": ("guest", 1)}
_SERVER = "server"
"""On the internet, behind both routers."""
_STRANGE = {4: ("198.51.100.7", "192.168.200.9", "10.137.0.222"), 6: ("2001:db8:99::7",)}
"""Addresses beyond all cards: they may really come by any of them."""
_VIF = bytes.fromhex("feffffffffff")
"""The link address of every net qube's side."""
_ETHERTYPES = {4: 0x0800, 6: 0x86DD}
_UNUSED = 99
"""A number in a network that nobody has."""
_PATIENCE = 0.4
_LONGEST = 3.0
"""Seconds for datagrams that must be heard; they take a millisecond."""


class Heard:
    """What the servers of the qubes have told (lab.inside.server --tell), each into a file of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._number = itertools.count(1)
        self._files: dict[Path, str] = {}

    def file(self, qube: str) -> Path:
        """A new file for a new server."""
        path = self._folder / f"{qube}-{next(self._number)}"
        self._files[path] = qube
        return path

    def find(self, words: set[str]) -> dict[str, tuple[str, int]]:
        """For each of these words that was heard: by whom, at which port."""
        found = {}
        for path, qube in self._files.items():
            for line in path.read_text().splitlines():
                told = line.split(" ")
                if told[0] == "heard" and told[-1] in words:
                    found[told[-1]] = qube, int(told[1])
        return found

    def forget(self) -> None:
        """Begin anew: what was told up to now is of no interest any more."""
        for path in self._files:
            with contextlib.suppress(OSError):
                os.truncate(path, 0)


def forgeries(home: Home, cards: dict[str, tuple[str, int]]) -> list[Forged]:
    """One for each machine, entrance, source and port. `cards` are those of sys-net: network and number in it."""
    found = [*_from_outside(home, cards), *_from_inside(home)]
    # Where nothing listens at the entrance nothing can be told; a sample of ports keeps the list short.
    made = [Forged(*who, port, *networks) for *who, networks, port in found]
    # What a neighbour may not do, nobody may from beyond the router; what else the router lets in is its affair.
    return [one for one in made if one.sender != _SERVER or home.heard(one) is None]


def _from_outside(home: Home, cards: dict[str, tuple[str, int]]) -> Iterator[tuple[object, ...]]:
    if not home.qubes["sys-net"].running:
        return
    for sender, (network, _) in {**OUTSIDE, **ROUTERS, _SERVER: ("", 0)}.items():
        card = next((c for c in cards.values() if c[0] == network), None)
        if card is None and sender != _SERVER:
            continue
        for family, to in address(*(card or CARDS["ens6"])).items():
            networks = _networks(family, network if card is not None else "lan", cards)
            for source, port in itertools.product(_sources(family, home), PORTS):
                yield sender, "sys-net", to, source, networks, port


def _networks(family: int, mine: str, cards: dict[str, tuple[str, int]]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    bits = {4: ".0/24", 6: "::/64"}[family]
    prefixes = {network: NETWORKS[network][family == 6] + bits for network, _ in cards.values()}
    return (prefixes[mine],), tuple(prefix for network, prefix in prefixes.items() if network != mine)


def _sources(family: int, home: Home) -> list[str]:
    attached = [address(network, _UNUSED)[family] for network in NETWORKS]
    people = [address(*place)[family] for place in OUTSIDE.values()]
    behind = [home.qubes[name] for name in home.behind("sys-net")]
    return [
        *attached,
        *people,
        *_STRANGE[family],
        *(q.addresses[family] for q in behind if q.running and family in q.addresses),
    ]


def _from_inside(home: Home) -> Iterator[tuple[object, ...]]:
    for qube in home.qubes.values():
        if not qube.running or qube.paused or not qube.netvm or qube.fake:
            continue
        netvm = home.qubes[qube.netvm]
        for family in qube.addresses.keys() & netvm.addresses.keys():
            siblings = [home.qubes[name] for name in home.behind(netvm.name)]
            sources = [q.addresses[family] for q in siblings if q.name != qube.name and family in q.addresses]
            sources += [address(*OUTSIDE["laptop"])[family], *_STRANGE[family]]
            # What happens when a qube knocks at its own forward is left open.
            own = {way[2] for owner, _, rule, way, _ in home.open() if owner is qube and not rule.external}
            true = [qube.addresses[family]]
            for source, port in itertools.product(true + sources, PORTS):
                if source in true and port in own:
                    continue
                yield qube.name, netvm.name, netvm.addresses[family], source, ((), ()), port


def send(lab: Lab, heard: Heard, home: Home, forged: Sequence[Forged]) -> list[tuple[str, int] | None]:
    """Send them all at the same time; who has heard each."""
    words = {f"f{number}-{random.getrandbits(48):x}": one for number, one in enumerate(forged)}
    heard.forget()
    calls = []
    for sender in dict.fromkeys(one.sender for one in forged):
        mine = [(one.to, one.source, one.port, word) for word, one in words.items() if one.sender == sender]
        inside = sender in home.qubes
        calls.append(lab.start_call(sender, _send_from_qube if inside else _send_from_host, mine))
    for call in calls:
        call.wait()
    wanted = {word for word, one in words.items() if home.heard(one) is not None}
    began = time.monotonic()
    while True:
        found = heard.find(set(words))
        waited = time.monotonic() - began
        if waited > _LONGEST or (waited > _PATIENCE and wanted <= found.keys()):
            return [found.get(word) for word in words]
        time.sleep(0.05)


def _send_from_host(datagrams: list[tuple[str, str, int, str]]) -> None:
    """In a host: hand whole packets to its kernel (raw(7), IP_HDRINCL)."""
    for to, source, port, word in datagrams:
        packet = _packet(source, to, port, word.encode())
        family = socket.AF_INET6 if ":" in to else socket.AF_INET
        # Who has no way there sends nothing.
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
            raw.sendto(packet, (to, 0))


def _send_from_qube(datagrams: list[tuple[str, str, int, str]]) -> None:
    """In a qube: put them on its interface (packet(7)). Its own kernel would masquerade, and make the source true."""
    for to, source, port, word in datagrams:
        packet = _packet(source, to, port, word.encode())
        kind = _ETHERTYPES[6 if ":" in to else 4]
        with contextlib.suppress(OSError), socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM) as link:
            link.sendto(packet, ("eth0", kind, 0, 0, _VIF))


def _packet(source: str, to: str, port: int, words: bytes) -> bytes:
    """A UDP datagram with its IP header (RFC 768, 791, 8200)."""
    src, dst = (ipaddress.ip_address(a).packed for a in (source, to))
    length = 8 + len(words)
    udp = struct.pack("!HHHH", 40000, port, length, 0) + words
    sum_ = _checksum(src + dst + struct.pack("!IHBB", length, 0, 0, socket.IPPROTO_UDP) + udp) or 0xFFFF
    udp = udp[:6] + struct.pack("!H", sum_) + udp[8:]
    if len(src) == 16:
        return struct.pack("!IHBB", 6 << 28, length, socket.IPPROTO_UDP, 64) + src + dst + udp
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 0, 0, 64, socket.IPPROTO_UDP, 0) + src + dst
    return head[:10] + struct.pack("!H", _checksum(head)) + head[12:] + udp


def _checksum(data: bytes) -> int:
    """RFC 1071."""
    total = sum(struct.unpack(f"!{len(data + bytes(len(data) % 2)) // 2}H", data + bytes(len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
