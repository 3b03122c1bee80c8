# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""What a hop sees of a way without any packet: rules, elements, routes, listeners. Changes nothing.

It looks at the kernel itself and not at what the agent believes, so it also tells the truth when the agent is gone.
"""

import contextlib
import ipaddress
import socket
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from portfwd.agent.network.uplinks import Link, read_links
from portfwd.agent.rules.kinds import kind_of
from portfwd.agent.rules.skeleton import BASE_TABLE, COMMENT, TABLE, nft_family
from portfwd.kernel.netlink import NETLINK_ROUTE, Netlink, attribute, attributes
from portfwd.kernel.nft import Nft, NftError
from portfwd.kernel.sockets import Socket, listening
from portfwd.wire.answers.probe import RouteWord, Sight
from portfwd.wire.entry import Accept, Entry, Relay
from portfwd.wire.values import Family, IPAddress

_GETADDR, _GETROUTE = 22, 26
_RTA_DST, _RTA_OIF, _IFA_ADDRESS, _IFA_LOCAL = 1, 4, 1, 2
_TYPE_LOCAL = 2
_AF = {Family.V4: socket.AF_INET, Family.V6: socket.AF_INET6}
_FORWARDING = {
    Family.V4: Path("/proc/sys/net/ipv4/ip_forward"),
    Family.V6: Path("/proc/sys/net/ipv6/conf/all/forwarding"),
}
_AGENT = b"portfwd.agent"


@dataclass(frozen=True, slots=True)
class Way:
    """Where a packet to an address would leave. `link` is None where that is no interface that is up."""

    word: RouteWord
    link: Link | None = None


class Eyes:
    """One look at this network namespace."""

    def __init__(self, nft: Nft, sockets: Iterable[Socket]) -> None:
        self._nft = nft
        self._sockets = list(sockets)
        self._netlink = Netlink(NETLINK_ROUTE)
        self.links = {link.index: link for link in read_links(self._netlink)}

    def close(self) -> None:
        """Close the socket."""
        self._netlink.close()

    def sight(self, entry: Entry, port: int, client: IPAddress | None) -> Sight:
        """How this hop stands to one entry and one of its ports."""
        rules = self._rules(entry.family, kind_of(entry).chain)
        ours = [place for place, rule in enumerate(rules or ()) if f'comment "{COMMENT}"' in rule]
        return Sight(
            client=client,
            base=rules is not None,
            rule=bool(ours),
            before=ours[0] if ours else len(rules or ()),
            door=self._door(entry, port),
            route=self.way_to(entry.to).word if isinstance(entry, Relay) else None,
            forwarding=_forwards(entry.family),
            listening=listening(entry, self._sockets).value if isinstance(entry, Accept) else None,
        )

    def way_to(self, address: IPAddress) -> Way:
        """By which interface the kernel would send to an address."""
        family = _AF[Family(address.version)]
        header = struct.pack("=BBBBBBBBI", family, address.max_prefixlen, 0, 0, 0, 0, 0, 0, 0)
        try:
            messages = self._netlink.request(_GETROUTE, header + attribute(_RTA_DST, address.packed))
        except OSError:
            return Way(RouteWord.NONE)
        for message in messages:
            fields = attributes(message.body[12:])
            if message.body[7] == _TYPE_LOCAL:
                return Way(RouteWord.LOCAL)
            link = self.links.get(int.from_bytes(fields.get(_RTA_OIF, b""), "little"))
            if link is not None:
                word = RouteWord.VIF if link.downstream else RouteWord.UPLINK if link.uplink else RouteWord.TUNNEL
                return Way(word, link)
        return Way(RouteWord.NONE)

    def addresses(self, family: Family) -> Iterator[tuple[Link, ipaddress.IPv4Interface | ipaddress.IPv6Interface]]:
        """The addresses of each interface that is up, link-local ones left out."""
        for message in self._netlink.dump(_GETADDR, struct.pack("=BBBBi", _AF[family], 0, 0, 0, 0)):
            _, bits, _, _, index = struct.unpack_from("=BBBBi", message.body)
            fields = attributes(message.body[8:])
            raw = fields.get(_IFA_LOCAL) or fields.get(_IFA_ADDRESS)
            if raw and index in self.links:
                address = ipaddress.ip_interface((raw, bits))
                if not address.is_link_local:
                    yield self.links[index], address

    def _rules(self, family: Family, chain: str) -> list[str] | None:
        """The rules of a custom chain, or None when there is no such chain."""
        try:
            listed = self._nft.run(f"list chain {nft_family(family)} {BASE_TABLE} {chain}")
        except NftError:
            return None
        lines = [line.strip() for line in listed.splitlines()]
        return [line for line in lines if "# handle" in line and not line.startswith(("table ", "chain "))]

    def _door(self, entry: Entry, port: int) -> bool:
        table = f"{nft_family(entry.family)} {TABLE}"
        side = kind_of(entry).side(entry)
        keys = (f"{side}-port {{ {entry.proto.value} . {port} }}", f"{side}-range {{ {port} . {entry.proto.value} }}")
        for key in keys:
            with contextlib.suppress(NftError):
                if "goto" in self._nft.run(f"get element {table} {key}"):
                    return True
        return False


def agent_runs() -> bool:
    """Whether some process of this qube is an agent."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if _AGENT in path.read_bytes().split(b"\0"):
                return True
    return False


def _forwards(family: Family) -> bool:
    try:
        return _FORWARDING[family].read_text().strip() != "0"
    except OSError:
        return False
