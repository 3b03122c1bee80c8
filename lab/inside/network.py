# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The network of a machine seen from inside: kernel defaults, the base firewall, cards, and the uplink to a net qube.

What Qubes' boot scripts and NetworkManager do in a real qube (core-agent-linux, network/). Run inside the machine.
"""

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.base.topology import V4, V6, Nic
from lab.inside.commands import ip, ip_if_there, nft, sysctl
from lab.inside.vif import NETVM_MAC

NFT = Path(__file__).parent / "nft"
BASE_TABLES = ("qubes-antispoof.nft", "qubes-ipv4.nft", "qubes-ipv6.nft")


@dataclass(frozen=True)
class Card:
    """A network card with its prefix lengths and the router it sends to."""

    nic: Nic
    bits: int
    bits6: int
    gateway: V4 | None
    gateway6: V6 | None


def set_defaults() -> None:
    """Bring up lo and set what must not be taken over from the host's own settings."""
    # A new namespace starts with the host's IPv4 settings (ip-sysctl, devconf_inherit_init_net). rp_filter is that of
    # the distribution (systemd's 50-default.conf). Duplicate address detection would make each start a second longer.
    sysctl(
        ipv4__ip_forward=0,
        ipv4__conf__all__rp_filter=0,
        ipv4__conf__default__rp_filter=2,
        ipv4__conf__all__proxy_arp=0,
        ipv4__conf__default__proxy_arp=0,
        ipv4__ping_group_range="0 0",
        ipv6__conf__all__disable_ipv6=0,
        ipv6__conf__default__disable_ipv6=0,
        ipv6__conf__all__forwarding=0,
        ipv6__conf__default__accept_dad=0,
        ipv6__conf__default__accept_ra=0,
    )
    ip("link set lo up")


def load_base_firewall() -> None:
    """Load the base tables of a qube, all in one transaction."""
    nft("".join((NFT / name).read_text(encoding="utf-8") for name in BASE_TABLES))


def set_forwarding(keys: Mapping[str, str]) -> None:
    """Forward packets if QubesDB says that this is a net qube, and IPv6 if it has a gateway address for it."""
    sysctl(
        ipv4__ip_forward=int(bool(keys.get("/qubes-netvm-network"))),
        ipv6__conf__all__forwarding=int(bool(keys.get("/qubes-netvm-gateway6"))),
    )


def become_router() -> None:
    """Forward everything, as the home router does."""
    nft((NFT / "home-router.nft").read_text(encoding="utf-8"))
    sysctl(ipv4__ip_forward=1, ipv6__conf__all__forwarding=1)


def set_up_cards(cards: Sequence[Card]) -> None:
    """Give each plugged card its addresses and routes (NetworkManager's work); cards stay in interface group 0.

    The card that was plugged in first has the best default route.
    """
    for card in cards:
        nic = card.nic
        metric = 100 + socket.if_nametoindex(nic.name)
        # Two cards may be on one network: each answers for its own addresses only.
        sysctl(**{f"ipv4__conf__{nic.name}__arp_ignore": 1, f"ipv4__conf__{nic.name}__arp_notify": 1})
        lines = [f"link set {nic.name} up", f"address replace {nic.ip}/{card.bits} dev {nic.name}"]
        if card.gateway is not None:
            lines.append(f"route replace default via {card.gateway} dev {nic.name} metric {metric}")
        if nic.ip6 is not None:
            lines.append(f"address replace {nic.ip6}/{card.bits6} dev {nic.name} nodad")
            if card.gateway6 is not None:
                lines.append(f"route replace default via {card.gateway6} dev {nic.name} metric {metric}")
        ip(*lines)


def rename_card(name: str, card: Card) -> None:
    """Change a card's name, and set it up again: routes and IPv6 addresses do not outlive "down"."""
    ip(f"link set {name} down", f"link set {name} name {card.nic.name}")
    set_up_cards((card,))


def move_card(card: Card) -> None:
    """Replace a card's addresses and routes; link-local ones stay."""
    name = card.nic.name
    ip_if_there(
        *(f"{family} route flush dev {name} scope global" for family in ("-4", "-6")),
        f"address flush dev {name} scope global",
    )
    set_up_cards((card,))


def set_up_uplink(keys: Mapping[str, str]) -> None:
    """Set up eth0 from QubesDB: /32 and /128 addresses, everything through the net qube, interface group 1."""
    if not Path("/sys/class/net/eth0").exists() or not keys.get("/qubes-ip"):
        return
    lines = [f"address replace {keys['/qubes-ip']}/32 dev eth0", "link set dev eth0 group 1 up"]
    lines += _gateway_lines(keys.get("/qubes-gateway"))
    if keys.get("/qubes-ip6"):
        lines.append(f"address replace {keys['/qubes-ip6']}/128 dev eth0 nodad")
        lines += _gateway_lines(keys.get("/qubes-gateway6"))
    ip(*lines)
    servers = [keys[key] for key in ("/qubes-primary-dns", "/qubes-secondary-dns") if keys.get(key)]
    Path("/etc/resolv.conf").write_text("".join(f"nameserver {server}\n" for server in servers), encoding="ascii")


def _gateway_lines(gateway: str | None) -> list[str]:
    if not gateway:
        return []
    return [
        f"neighbour replace {gateway} dev eth0 lladdr {NETVM_MAC} nud permanent",
        f"route replace {gateway} dev eth0 scope link",
        f"route replace default via {gateway} dev eth0 onlink",
    ]


def remove_uplink() -> None:
    """Take eth0 away, for a change of net qube; nothing happens when it is gone with its other end."""
    ip_if_there("link delete eth0")
