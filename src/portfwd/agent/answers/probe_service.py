# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The qrexec service qubes.PortForwardProbe, which marks or counts the packets of a probe (wire/answers/probe.py).

Runs as root in a qube for as long as one probe takes, called by dom0 alone. Its counters stand in a table of its own,
which the kernel removes when the process ends in whatever way (table flag `owner`, Linux 5.12). At the entrance nothing
that is for the probe's client leaves, so neither an answer nor an ARP request reaches the network.
"""

import contextlib
import ipaddress
import os
import re
import secrets
import select
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from portfwd.agent.answers.probe_table import TABLE, probe_table
from portfwd.agent.answers.sight import Inspection, agent_runs
from portfwd.agent.network.networks import is_attachable
from portfwd.agent.rules.skeleton import MARK_PROBE
from portfwd.kernel import ethernet, inject
from portfwd.kernel.conntrack import Conntrack
from portfwd.kernel.nft import LibNft, Nft, NftError
from portfwd.kernel.sockets import read_sockets
from portfwd.wire.answers.probe import END, SEND, TELL, Answer, Count, Request, Role, Sent, Way, head_of
from portfwd.wire.errors import RefusedError
from portfwd.wire.values import Family, HostName, IPAddress, IPNetwork, Proto, Side, SourceWord

PATIENCE = 5.0
"""Seconds to wait for dom0's next line: somewhat longer than dom0 waits for the slowest hop."""
_ANSWER_SECONDS = 0.3
_LOOK_SECONDS = 0.01
_LINE_MAX = 4096
_COUNTER = re.compile(r"counter (\S+) \{[^}]*packets (\d+)")
_NAMED = ((Answer.RESET, "reset"), (Answer.SYN_ACK, "synack"), (Answer.UNREACHABLE, "unreachable"))


class _Target:
    """Where the probe of one way enters the entrance."""

    def __init__(self, interface: str, address: IPAddress) -> None:
        self.interface, self.address = interface, address
        self.index = socket.if_nametoindex(interface)
        self.mac = bytes.fromhex(Path("/sys/class/net", interface, "address").read_text().strip().replace(":", ""))


def main() -> int:
    """Read the request, count, report; the exit status, 1 when that fails."""
    lines = _read_lines()
    try:
        role, number = Request.parse_head(next(lines))
        asked = [Way.parse(next(lines)) for _ in range(number)]
        inspection = Inspection(LibNft(), read_sockets())
    except (RefusedError, StopIteration, OSError) as error:
        print(f"no probe: {error}", file=sys.stderr)  # noqa: T201 - qrexec writes it to the qube's journal
        return 1
    with contextlib.closing(inspection):
        places = [_choose(inspection, way) if role is Role.ENTRANCE else (way, None) for way in asked]
        ways = [way for way, _ in places]
        _say(head_of(len(ways), agent=agent_runs()))
        for way in ways:
            _say(f"{way.entry.key} {inspection.sight(way.entry, way.port, way.client)}")
    nft = LibNft()
    try:
        nft.run("".join(probe_table(family, ways, drops=role is Role.ENTRANCE) for family in _families(ways)))
    except NftError as error:
        print(f"no probe: {error}", file=sys.stderr)  # noqa: T201
        _say("armed=no")
        return 1
    _say("armed=yes")
    for line in lines:
        if line == SEND and role is Role.ENTRANCE:
            _say(f"sent={_send(nft, places).value}")
        elif line == TELL:
            break
    for way, count in zip(ways, _counts(nft, ways), strict=True):
        _say(f"{way.entry.key} {count}")
    _forget(ways)
    _say(END)
    return 0


def _read_lines() -> Iterator[str]:
    """Lines from dom0, until its input ends or it is silent for too long."""
    received = b""
    while select.select([0], [], [], PATIENCE)[0] and (more := os.read(0, _LINE_MAX)):
        received += more
        *whole, received = received.split(b"\n")
        if len(received) > _LINE_MAX:
            return
        yield from (line.decode("ascii", "replace") for line in whole)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _families(ways: Sequence[Way]) -> list[Family]:
    return sorted({way.entry.family for way in ways if way.client is not None})


def _choose(inspection: Inspection, way: Way) -> tuple[Way, _Target | None]:
    """Find a client whom the rule lets in, and where it would come in."""
    own = list(inspection.addresses(way.entry.family))
    outside = [(link, address) for link, address in own if link.uplink]
    client = way.client or _client_for(way, [address for _, address in outside])
    if client is None:
        return way, None
    # By the interface of the address's own network: by any other it would be refused.
    near = [(a.network.prefixlen, -place, link) for place, (link, a) in enumerate(outside) if client in a.network]
    near = [found for found in near if found[0] > 0]
    link = max(near)[2] if near else inspection.egress_to(client).link
    if link is None or link.uplink is (way.entry.side is Side.DOWNSTREAM):
        return replace(way, client=client), None
    address = next((address.ip for at, address in own if at.index == link.index), None)
    if address is None:
        return replace(way, client=client), None
    return replace(way, client=client), _Target(link.name, address)


def _client_for(way: Way, uplinks: Sequence[ipaddress.IPv4Interface | ipaddress.IPv6Interface]) -> IPAddress | None:
    source = way.entry.source
    if isinstance(source, HostName):
        try:
            found = socket.getaddrinfo(
                source, None, socket.AF_INET if way.entry.family is Family.V4 else socket.AF_INET6
            )
        except OSError:
            return None
        return ipaddress.ip_address(found[0][4][0])
    networks = [a.network for a in uplinks if a.network.num_addresses > 2 and is_attachable(a.network)]
    taken = {address.ip for address in uplinks}
    if not isinstance(source, SourceWord):
        networks = [network for network in networks if network.overlaps(source)]
        networks = [max(source, network, key=lambda n: n.prefixlen) for network in networks] or [source]
    return next((client for network in networks if (client := _unused(network, taken)) is not None), None)


def _unused(network: IPNetwork, taken: set[IPAddress]) -> IPAddress | None:
    """An address near the end of a network, where few hosts are. Its owner receives nothing of the probe."""
    if network.num_addresses == 1:
        return network.network_address
    last = int(network.broadcast_address) - 1
    kind = type(network.network_address)
    candidates = (kind(number) for number in range(last, max(last - 8, int(network.network_address)), -1))
    return next((address for address in candidates if address not in taken), None)


def _send(nft: Nft, places: Sequence[tuple[Way, _Target | None]]) -> Sent:
    """Inject all probes, wait for the answers, and end half open connections."""
    ready = [(way, target) for way, target in places if target is not None]
    if not ready:
        return Sent.NO_UPLINK
    sequence = secrets.randbits(31)
    try:
        _inject(ready, sequence, ethernet.SYN)
        deadline = time.monotonic() + _ANSWER_SECONDS
        ways = [way for way, _ in ready]
        while time.monotonic() < deadline and not all(count.returned for count in _counts(nft, ways)):
            time.sleep(_LOOK_SECONDS)
        _inject([(way, at) for way, at in ready if way.entry.proto is Proto.TCP], sequence + 1, ethernet.RST)
    except OSError as error:
        print(f"no probe: {error}", file=sys.stderr)  # noqa: T201
        return Sent.NO_TC
    return Sent.YES


def _inject(ready: Sequence[tuple[Way, _Target]], sequence: int, flags: int) -> None:
    for index in dict.fromkeys(target.index for _, target in ready):
        made = [_frame(way, target, sequence, flags) for way, target in ready if target.index == index]
        inject.send_frames(index, made)


def _frame(way: Way, target: _Target, sequence: int, flags: int) -> bytes:
    if way.client is None:
        raise RefusedError("a probe has a client")
    ends = (way.client, way.sport, target.address, way.port)
    tcp = way.entry.proto is Proto.TCP
    body = ethernet.tcp(*ends, sequence, flags) if tcp else ethernet.udp(*ends)
    return ethernet.frame(target.mac, way.client, target.address, way.entry.proto, body)


def _counts(nft: Nft, ways: Sequence[Way]) -> list[Count]:
    found: dict[Family, dict[str, int]] = {}
    for family in _families(ways):
        listed = nft.run(f"list counters table {TABLE[family]}")
        found[family] = {name: int(number) for name, number in _COUNTER.findall(listed)}
    return [_count(found.get(way.entry.family, {}), way) for way in ways]


def _count(counters: dict[str, int], way: Way) -> Count:
    def of(name: str) -> int:
        return counters.get(f"{way.entry.proto.value}-{name}", 0)

    answer = next((word for word, name in _NAMED if of(name)), Answer.NONE)
    if answer is Answer.NONE and of("back"):
        answer = Answer.DATAGRAM
    names = ("arrived", "local", "delivered", "passing", "left", "back", "returned")
    return Count(answer, *(of(name) for name in names))


def _forget(ways: Sequence[Way]) -> None:
    """Delete the probe's connections from conntrack."""
    clients = {way.client for way in ways}
    with contextlib.suppress(OSError):
        conntrack = Conntrack()
        for flow in conntrack.marked(MARK_PROBE):
            if flow.client in clients:
                conntrack.forget(flow)


if __name__ == "__main__":
    sys.exit(main())
