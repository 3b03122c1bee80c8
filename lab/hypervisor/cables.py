# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""What carries packets outside the machines: bridges for the networks, veth pairs for vifs (for cards: cards.py).

Runs in the hypervisor's own network namespace, which no machine is in.
"""

import ipaddress

from lab.base.topology import Topology
from lab.hypervisor.machine import Cable, Running
from lab.inside import init, network, vif
from lab.inside.commands import ip, nft_if_there
from lab.inside.vif import Vif
from portfwd.wire.errors import RefusedError, shown

_ADDRESSES = ("ip", "ip6", "gateway", "gateway6", "visible_ip", "visible_gateway")


def build_networks(topology: Topology) -> None:
    """Make a bridge for each network."""
    lines = ["link set lo up"]
    for name in topology.networks:
        # No snooping: the laboratory's hosts join groups without a querier, and their packets would get lost.
        lines.append(f"link add name br-{name} type bridge mcast_snooping 0 forward_delay 0")
        lines.append(f"link set br-{name} up")
    ip(*lines)


def attach(machine: Running, backend: Running, cable: Cable) -> None:
    """Connect a qube with its net qube; what the net qube does with its end follows (vifs.py).

    OSError, and then nothing of it is left.
    """
    machine.call(network.remove_uplink)
    machine.cable = cable
    wire = cable.vif
    try:
        ip(
            f"link add name {wire.name} address {vif.NETVM_MAC} netns {backend.pid} type veth "
            f"peer name eth0 address {wire.mac} netns {machine.pid}"
        )
        if machine.state == "running":
            machine.call(init.set_up_uplink_again)
    except OSError:
        detach(machine, backend)
        raise


def detach(machine: Running, backend: Running | None) -> None:
    """Take a qube's cable away; the net qube may be gone already."""
    if machine.cable is None:
        return
    if backend is not None:
        backend.call(vif.offline, machine.cable.vif)
    machine.cable = None
    if machine.namespaces:
        # Its other end may be in a net qube that is dead but not yet cleared away.
        machine.call(network.remove_uplink)


def can_offload() -> bool:
    """Whether this kernel has flow tables (nf_flow_table); tried on a copy of the table that net qubes use."""
    accepted = nft_if_there(vif.accelerator())
    if accepted:
        nft_if_there("delete table inet qubes-nat-accel")
    return accepted


def read_vif(domid: int, index: int, words: dict[str, object]) -> Vif:
    """The cable that an attach request describes. Raises RefusedError."""
    text = {key: words.get(key) or None for key in (*_ADDRESSES, "mac")}
    for key, value in text.items():
        if value is not None and not isinstance(value, str):
            raise RefusedError(f"{key} {shown(value)} must be text")
    addresses = {key: _address(key, str(v)) for key, v in text.items() if v is not None and key != "mac"}
    mac = str(text["mac"] or "00:16:3e:5e:6c:00")
    if not vif.MAC.fullmatch(mac):
        raise RefusedError(f"mac {shown(mac)} is not an Ethernet address")
    own = tuple(addresses[key] for key in ("ip", "ip6") if key in addresses)
    visible, gateway = addresses.get("visible_ip"), addresses.get("visible_gateway")
    disguise = (visible, gateway) if visible and gateway and visible != addresses.get("ip") else None
    return Vif(domid, mac, own, addresses.get("gateway"), addresses.get("gateway6"), disguise, index)


def _address(key: str, word: str) -> str:
    try:
        return str(ipaddress.ip_address(word))
    except ValueError:
        raise RefusedError(f"{key} {shown(word)} is not an address") from None
