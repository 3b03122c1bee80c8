# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The network that is measured: outside - hop1 (sys-net) - hop2 (sys-firewall) - target, each in its own namespace.

One process holds them all and steps into the one it needs. A packet that it sends travels the whole chain inside the
sending system call, so nothing waits for the scheduler and other load on the machine disturbs little.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from lab.base import namespaces
from lab.inside.commands import ip, sysctl
from lab.inside.vif import NETVM_MAC

OUTSIDE, HOP1, HOP2, TARGET = NODES = ("outside", "hop1", "hop2", "target")
HOPS = (HOP1, HOP2)

OUTSIDE_AT, HOP1_AT, HOP2_AT, TARGET_AT = "192.168.1.20", "192.168.1.10", "10.137.0.6", "10.137.0.7"
_HOP1_INSIDE = "10.137.0.5"
_MAC = "00:16:3e:5e:6c:00"

CLIENTS_FROM, CLIENTS_TO = 1024, 65535
"""The client's own ports."""


class Network:
    """The four namespaces. They vanish with the process."""

    def __init__(self) -> None:
        if os.geteuid() != 0:
            _become_root()
        # An empty one: the host's is left for good, and a user namespace of our own could not return to it.
        namespaces.unshare(namespaces.CLONE_NEWNET)
        self._home = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._fds = {name: self._new() for name in NODES}
        self._build()

    @contextlib.contextmanager
    def inside(self, name: str) -> Iterator[None]:
        """Be in that namespace: sockets made here belong to it for good. Not to be nested."""
        namespaces.setns(self._fds[name])
        try:
            yield
        finally:
            namespaces.setns(self._home)

    def _new(self) -> int:
        namespaces.unshare(namespaces.CLONE_NEWNET)
        try:
            return os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            namespaces.setns(self._home)

    def _veth(self, name: str, node: str, peer: str, peer_node: str, macs: tuple[str, str]) -> None:
        # The peer goes to a namespace that only this process has open.
        there = f"/proc/{os.getpid()}/fd/{self._fds[peer_node]}"
        with self.inside(node):
            ip(f"link add {name} address {macs[0]} type veth peer name {peer} address {macs[1]} netns {there}")

    def _build(self) -> None:
        for name in NODES:
            with self.inside(name):
                forward = int(name in HOPS)
                sysctl(ipv4__ip_forward=forward, ipv4__conf__all__rp_filter=0, ipv4__conf__default__rp_filter=2)
                sysctl(ipv4__ip_local_port_range=f"{CLIENTS_FROM} {CLIENTS_TO}")
                ip("link set lo up")
        self._veth("ens6", HOP1, "eth0", OUTSIDE, ("52:54:00:00:00:01", "52:54:00:00:00:02"))
        self._veth("vif1.0", HOP1, "eth0", HOP2, (NETVM_MAC, _MAC))
        self._veth("vif2.0", HOP2, "eth0", TARGET, (NETVM_MAC, _MAC))
        with self.inside(OUTSIDE):
            ip(f"address add {OUTSIDE_AT}/24 dev eth0", "link set eth0 up", f"route add 10.137.0.0/16 via {HOP1_AT}")
        with self.inside(HOP1):
            ip(f"address add {HOP1_AT}/24 dev ens6", "link set ens6 up")
            _vif("vif1.0", HOP2_AT, _HOP1_INSIDE)
            ip(f"route add {TARGET_AT} via {HOP2_AT} dev vif1.0 onlink")
        with self.inside(HOP2):
            _uplink(HOP2_AT, _HOP1_INSIDE)
            _vif("vif2.0", TARGET_AT, HOP2_AT)
        with self.inside(TARGET):
            _uplink(TARGET_AT, HOP2_AT)


def _vif(name: str, client: str, gateway: str) -> None:
    ip(
        f"neighbour replace {client} dev {name} lladdr {_MAC} nud permanent",
        f"link set dev {name} group 2 up",
        f"route add {client} dev {name}",
        f"address replace {gateway}/32 dev {name}",
    )


def _uplink(address: str, gateway: str) -> None:
    ip(
        f"address add {address}/32 dev eth0",
        "link set dev eth0 group 1 up",
        f"neighbour replace {gateway} dev eth0 lladdr {NETVM_MAC} nud permanent",
        f"route add {gateway} dev eth0 scope link",
        f"route add default via {gateway} dev eth0 onlink",
    )


def _become_root() -> None:
    """Root of a user namespace of our own (user_namespaces(7))."""
    uid, gid = os.getuid(), os.getgid()
    namespaces.unshare(namespaces.CLONE_NEWUSER)
    Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
    Path("/proc/self/uid_map").write_text(f"0 {uid} 1", encoding="ascii")
    Path("/proc/self/gid_map").write_text(f"0 {gid} 1", encoding="ascii")
