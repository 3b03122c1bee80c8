# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Inspects a way at this hop without a packet: rules, elements, routes, listeners. Changes nothing.

It reads the kernel and not the agent's state, so its result is right when the agent is dead, too.
"""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from portfwd.agent.network.uplinks import Link, read_links
from portfwd.agent.rules.accepts import listening
from portfwd.agent.rules.kinds import kind_of
from portfwd.agent.rules.skeleton import BASE_TABLE, COMMENT, TABLE, nft_family
from portfwd.kernel.links import InterfaceAddress, read_addresses
from portfwd.kernel.netlink import NETLINK_ROUTE, Netlink
from portfwd.kernel.nft import Nft, NftError
from portfwd.kernel.routes import forwards, next_hop
from portfwd.kernel.sockets import Socket
from portfwd.wire.answers.probe import RouteWord, Sight
from portfwd.wire.entry import Accept, Entry, Relay
from portfwd.wire.values import Family, IPAddress

_AGENT = b"portfwd.agent"


@dataclass(frozen=True, slots=True)
class Egress:
    """The route of a packet to an address. `link` is None where no interface that is up takes it."""

    word: RouteWord
    link: Link | None = None


class Inspection:
    """Reads this network namespace for one probe."""

    def __init__(self, nft: Nft, sockets: Iterable[Socket]) -> None:
        self._nft = nft
        self._sockets = list(sockets)
        self._netlink = Netlink(NETLINK_ROUTE)
        self.links = {link.index: link for link in read_links(self._netlink)}

    def close(self) -> None:
        """Close the socket."""
        self._netlink.close()

    def sight(self, entry: Entry, port: int, client: IPAddress | None) -> Sight:
        """The state of one entry and one of its ports at this hop."""
        rules = self._rules(entry.family, kind_of(entry).chain)
        ours = [place for place, rule in enumerate(rules or ()) if f'comment "{COMMENT}"' in rule]
        return Sight(
            client=client,
            base=rules is not None,
            rule=bool(ours),
            before=ours[0] if ours else len(rules or ()),
            door=self._door(entry, port),
            route=self.egress_to(entry.to).word if isinstance(entry, Relay) else None,
            forwarding=forwards(entry.family),
            listening=listening(entry, self._sockets).value if isinstance(entry, Accept) else None,
        )

    def egress_to(self, address: IPAddress) -> Egress:
        """The interface by which the kernel would send to an address."""
        try:
            found = next_hop(self._netlink, address)
        except OSError:
            return Egress(RouteWord.NONE)
        if found is not None and found.local:
            return Egress(RouteWord.LOCAL)
        link = self.links.get(found.link) if found is not None else None
        if link is None:
            return Egress(RouteWord.NONE)
        return Egress(RouteWord.VIF if link.downstream else RouteWord.UPLINK if link.uplink else RouteWord.TUNNEL, link)

    def addresses(self, family: Family) -> Iterator[tuple[Link, InterfaceAddress]]:
        """The addresses of each interface that is up, link-local ones left out."""
        for found in read_addresses(self._netlink):
            if found.link in self.links and found.own.version == family and not found.own.is_link_local:
                yield self.links[found.link], found.own

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
    """Whether an agent runs in this qube."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if _AGENT in path.read_bytes().split(b"\0"):
                return True
    return False
