# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Injects a frame into an interface's ingress, as if it came from the network behind it.

A frame that is sent to a veth of our own is redirected (tc clsact, act_mirred) into the interface's ingress before it
leaves. Formats: rtnetlink(7), linux/pkt_sched.h, linux/pkt_cls.h, linux/tc_act/tc_mirred.h. The veth is in the group of
vifs, so that no agent takes it for an uplink; it is removed as soon as the frames are sent.
"""

import contextlib
import socket
import struct
from collections.abc import Iterator, Sequence

from portfwd.kernel.netlink import NETLINK_ROUTE, NLM_F_NEW, Netlink, attribute, nested

DEVICE, _PEER = "pfp0", "pfp1"
_NEWLINK, _DELLINK, _NEWQDISC, _NEWFILTER = 16, 17, 36, 44
_IFLA_IFNAME, _IFLA_LINKINFO, _IFLA_GROUP, _IFLA_AF_SPEC, _INET6_ADDR_GEN_MODE = 3, 18, 27, 26, 8
_INFO_KIND, _INFO_DATA, _VETH_PEER = 1, 2, 1
_ADDR_GEN_NONE = 1
_UP = 1
_GROUP = 2
_TCA_KIND, _TCA_OPTIONS = 1, 2
_CLSACT, _EGRESS, _CLSACT_HANDLE = 0xFFFFFFF1, 0xFFFFFFF3, 0xFFFF0000
_U32_SEL, _U32_ACT, _TERMINAL = 5, 7, 1
_MIRRED_PARMS, _STOLEN, _INGRESS_REDIRECT = 2, 4, 3
_ETH_P_ALL = 3


@contextlib.contextmanager
def injector(interface: int) -> Iterator[socket.socket]:
    """A socket whose frames are received on the interface with this index. Raises OSError."""
    netlink = Netlink(NETLINK_ROUTE)
    try:
        _remove(netlink)
        _make_device(netlink)
        try:
            index = socket.if_nametoindex(DEVICE)
            _redirect(netlink, index, interface)
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC) as sender:
                sender.bind((DEVICE, 0))
                yield sender
        finally:
            _remove(netlink)
    finally:
        netlink.close()


def send_frames(interface: int, frames: Sequence[bytes]) -> None:
    """Inject these frames into the interface with this index. Raises OSError."""
    with injector(interface) as sender:
        for frame in frames:
            sender.send(frame)


def remove_device() -> None:
    """Remove the veth that a killed probe has left. The kernel removes everything else of a probe by itself."""
    netlink = Netlink(NETLINK_ROUTE)
    try:
        _remove(netlink)
    finally:
        netlink.close()


def _remove(netlink: Netlink) -> None:
    with contextlib.suppress(OSError):
        netlink.request(_DELLINK, _link(socket.if_nametoindex(DEVICE)))


def _make_device(netlink: Netlink) -> None:
    group = attribute(_IFLA_GROUP, struct.pack("=I", _GROUP))
    peer = _link() + _named(_IFLA_IFNAME, _PEER) + group
    kind = _named(_INFO_KIND, "veth") + nested(_INFO_DATA, nested(_VETH_PEER, peer))
    netlink.request(_NEWLINK, _link() + _named(_IFLA_IFNAME, DEVICE) + group + nested(_IFLA_LINKINFO, kind), NLM_F_NEW)
    index = socket.if_nametoindex(DEVICE)
    silent = nested(socket.AF_INET6, attribute(_INET6_ADDR_GEN_MODE, bytes([_ADDR_GEN_NONE])))
    with contextlib.suppress(OSError):
        # A kernel without IPv6 gives it no address of itself.
        netlink.request(_NEWLINK, _link(index) + nested(_IFLA_AF_SPEC, silent))
    netlink.request(_NEWLINK, _link(index, _UP))


def _redirect(netlink: Netlink, index: int, interface: int) -> None:
    body = struct.pack("=BxxxiIII", 0, index, _CLSACT_HANDLE, _CLSACT, 0) + _named(_TCA_KIND, "clsact")
    netlink.request(_NEWQDISC, body, NLM_F_NEW)
    selector = struct.pack("=BBBxHHhhI", _TERMINAL, 0, 1, 0, 0, 0, 0, 0) + struct.pack("=IIii", 0, 0, 0, 0)
    parameters = struct.pack("=IIiiiiI", 0, 0, _STOLEN, 0, 0, _INGRESS_REDIRECT, interface)
    action = _named(1, "mirred") + nested(2, attribute(_MIRRED_PARMS, parameters))
    options = nested(_TCA_OPTIONS, attribute(_U32_SEL, selector), nested(_U32_ACT, nested(1, action)))
    info = 1 << 16 | socket.htons(_ETH_P_ALL)
    body = struct.pack("=BxxxiIII", 0, index, 0, _EGRESS, info) + _named(_TCA_KIND, "u32") + options
    netlink.request(_NEWFILTER, body, NLM_F_NEW)


def _link(index: int = 0, flags: int = 0) -> bytes:
    return struct.pack("=BxHiII", 0, 0, index, flags, flags)


def _named(kind: int, text: str) -> bytes:
    return attribute(kind, text.encode() + b"\0")
