# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""A net qube's end of a cable: what happens in it when the qube behind comes and goes.

The work of vif-route-qubes (core-agent-linux, network/; qubes documentation, networking). Run inside the net qube.
"""

import contextlib
import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from lab.inside.commands import PATIENCE, ip, ip_if_there, nft, nft_if_there, purge_connections, run, sysctl

# The largest domain id of Xen; a later qube (a larger id) gets the better route.
MAX_DOMID = 32752
NETVM_MAC = "fe:ff:ff:ff:ff:ff"
MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}")


@dataclass(frozen=True)
class Vif:
    """The cable of one qube: its domain id, its addresses and MAC, and the net qube's address on it.

    `index` is 0 unless the toolstack believes that an earlier cable of this run is still there.
    `disguise` is what the qube shall take its own IPv4 address and that of its gateway for (net.fake-ip), or None.
    """

    domid: int
    mac: str
    addresses: tuple[str, ...]
    gateway: str | None
    gateway6: str | None
    disguise: tuple[str, str] | None = None
    index: int = 0

    @property
    def name(self) -> str:
        return f"vif{self.domid}.{self.index}"


def online(vif: Vif, offload: bool) -> None:
    """Accept the qube's addresses on its vif, and route them to it. OSError if the system's programs refuse."""
    name = vif.name
    if vif.disguise is not None:
        _put_translator(vif, *vif.disguise)
    sysctl(**{f"ipv4__conf__{name}__proxy_arp": 1})
    purge_connections(vif.addresses)
    # Before the interface is up, so that no spoofed packet can be first.
    nft((accelerator() if offload else "") + _elements("add", vif))
    lines = [f"neighbour replace {address} dev {name} lladdr {vif.mac} nud permanent" for address in vif.addresses]
    lines.append(f"link set dev {name} group 2 up")
    lines += [f"route add {address} dev {name} metric {MAX_DOMID - vif.domid}" for address in vif.addresses]
    if vif.gateway:
        lines.append(f"address replace {vif.gateway}/32 dev {name}")
    if vif.gateway6:
        lines.append(f"address replace {vif.gateway6}/128 dev {name} nodad")
    ip(*lines)
    if vif.gateway6:
        sysctl(**{f"ipv6__conf__{name}__proxy_ndp": 1})
    _hooks("online", vif)


def offline(vif: Vif) -> None:
    """Undo online(); what is gone already does not matter. The interface itself is deleted too."""
    elements = _elements("delete", vif)
    if not nft_if_there(elements):
        for line in elements.splitlines():
            nft_if_there(line)
    purge_connections(vif.addresses)
    ip_if_there(f"link delete {vif.name}", *([f"netns delete {vif.name}-nat"] if vif.disguise else []))
    _hooks("offline", vif)


def _put_translator(vif: Vif, visible: str, visible_gateway: str) -> None:
    """Put a namespace between the qube and its vif that translates its address, statelessly (vif-qubes-nat.sh).

    The net qube then sees the real address on an interface with the name of the vif. IPv6 does not pass.
    """
    name, space, inner = vif.name, f"{vif.name}-nat", f"{vif.name}-p"
    real = next(address for address in vif.addresses if ":" not in address)
    ip(
        f"netns add {space}",
        f"link set {name} netns {space}",
        f"link add name {name} address {NETVM_MAC} type veth peer name {inner} address {vif.mac} netns {space}",
    )
    # Not `ip -n`: that mounts a sysfs of the other namespace, which the kernel forbids where the first one is covered.
    inside = ("nsenter", f"--net=/run/netns/{space}")
    lines = (
        f"neighbour add {visible} dev {name} lladdr {vif.mac} nud permanent",
        f"address add {visible_gateway}/32 dev {name}",
        f"link set {inner} up",
        f"link set {name} up",
    )
    run(*inside, "ip", "-batch", "-", text="\n".join(lines) + "\n")
    run(*inside, "nft", "-f", "-", text=_translation(name, inner, visible, real, vif.mac))


def _translation(outer: str, inner: str, visible: str, real: str, mac: str) -> str:
    return f"""
table netdev translation {{
	chain from-qube {{
		type filter hook ingress device "{outer}" priority filter; policy drop;
		ip saddr {visible} ip saddr set {real} fwd to "{inner}"
		arp htype 1 arp ptype ip arp hlen 6 arp plen 4 arp saddr ether {mac} arp saddr ip {visible} accept
		counter
	}}
	chain to-qube {{
		type filter hook ingress device "{inner}" priority filter; policy drop;
		ip daddr {real} ip daddr set {visible} fwd to "{outer}"
		ether type arp accept
		counter
	}}
}}
"""


def accelerator() -> str:
    """The flow offload table, made anew for the interfaces there are (as at every vif's arrival)."""
    devices = ", ".join(f'"{entry.name}"' for entry in sorted(Path("/sys/class/net").iterdir()))
    return f"""
add table inet qubes-nat-accel
delete table inet qubes-nat-accel
table inet qubes-nat-accel {{
	flowtable qubes-accel {{ hook ingress priority filter; devices = {{ {devices} }}; }}
	chain qubes-accel {{
		type filter hook forward priority filter + 5; policy accept;
		meta l4proto {{ tcp, udp }} iifgroup 2 oifgroup 1 flow add @qubes-accel
		counter
	}}
}}
"""


def _elements(verb: str, vif: Vif) -> str:
    lines = []
    for address in vif.addresses:
        family = "ip6" if ":" in address else "ip"
        lines.append(f'{verb} element {family} qubes allowed {{ "{vif.name}" . {address} }}\n')
        lines.append(f"{verb} element {family} qubes downstream {{ {address} }}\n")
    return "".join(lines)


def _hooks(event: str, vif: Vif) -> None:
    folder = Path("/rw/config/network-hooks.d")
    if not folder.is_dir():
        return
    for hook in sorted(folder.iterdir()):
        if os.access(hook, os.X_OK):
            for address in vif.addresses:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    subprocess.run([hook, event, vif.name, "vif", address], check=False, timeout=PATIENCE)
