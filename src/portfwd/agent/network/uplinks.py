# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Which of this qube's interfaces are uplinks, which tunnels, and which lead to qubes behind it.

An uplink is an interface that is up, not loopback, not in group 2 (the qubes behind us), and of a kind that is known
for a network card or for something on top of network cards (UPLINK_KINDS). What is neither that nor a known tunnel is
shut, since nobody knows who stands behind it.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from portfwd.agent.rules.skeleton import TUNNEL_KINDS, UPLINK_KINDS
from portfwd.kernel.links import Device, read_devices
from portfwd.kernel.netlink import Netlink
from portfwd.wire.acknowledgement import Why

_XEN_GROUP, _DOWNSTREAM_GROUP = 1, 2
_ON_ONE = frozenset({"vlan", "macvlan", "ipvlan", "macsec"})
"""Kinds whose lower interface is named by IFLA_LINK."""
_ON_PORTS = frozenset({"bridge", "bond", "team"})
"""Kinds whose lower interfaces name them as IFLA_MASTER."""
_DEPTH_MAX = 8
"""Levels of interfaces on interfaces: as many as the kernel allows (MAX_NEST_DEV)."""

# The kernel allows quotes in names; in nft text they would end the name early.
_NAME = re.compile(r"[A-Za-z0-9_.@-]{1,15}")


@dataclass(frozen=True, slots=True)
class Link:
    """An interface that is up. `xen`: the uplink to a net qube; `tunnel`: a tunnel that ends in this qube.

    `downstream`: a vif to a qube behind us. For an interface that is shut `why` is the reason, and `what` its kind,
    or the interface below it.
    """

    index: int
    name: str
    uplink: bool
    tunnel: bool
    xen: bool = False
    downstream: bool = False
    why: Why | None = None
    what: str = ""

    @property
    def outward(self) -> bool:
        """Whether it leads away from the qubes behind us, open for clients or shut."""
        return self.uplink or self.tunnel or self.why is not None


def read_links(netlink: Netlink) -> list[Link]:
    """Every interface that is up and not loopback. Raises OSError."""
    return links_of(read_devices(netlink))


def links_of(devices: Iterable[Device]) -> list[Link]:
    """The role of each interface that is up and not loopback. PURE."""
    by_index = {device.index: device for device in devices}
    return [_link(device, by_index) for device in by_index.values() if device.carries]


def _link(device: Device, devices: Mapping[int, Device]) -> Link:
    downstream = device.group == _DOWNSTREAM_GROUP
    tunnel = device.kind in TUNNEL_KINDS and not downstream
    why, what = (None, "") if downstream or tunnel else _judge(device, devices)
    uplink = why is None and not downstream and not tunnel
    xen = device.group == _XEN_GROUP
    return Link(device.index, device.name, uplink, tunnel, xen, downstream, why, what)


def _judge(device: Device, devices: Mapping[int, Device], depth: int = 0) -> tuple[Why | None, str]:
    """Why an interface is no uplink; None when it is one."""
    if device.kind and device.kind not in UPLINK_KINDS:
        return Why.KIND, device.kind
    if not _NAME.fullmatch(device.name):
        return Why.NAME, device.kind
    below: list[Device | None] = []
    if device.kind in _ON_ONE:
        below = [devices.get(device.below)]
    elif device.kind in _ON_PORTS:
        below = [other for other in devices.values() if other.master == device.index]
    for one in below:
        if one is None or depth >= _DEPTH_MAX:
            return Why.BELOW, device.kind
        if one.group == _DOWNSTREAM_GROUP or _judge(one, devices, depth + 1)[0] is not None:
            return Why.BELOW, one.name
    return None, ""
