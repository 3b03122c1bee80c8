# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Network cards: plugged into a machine, pulled out, renamed, moved to another network. Each is a veth pair.

Runs in the hypervisor's own network namespace, where the other end of each card is a port of a bridge.
"""

import hashlib

from lab.base.topology import Nic, Topology
from lab.hypervisor.machine import Running
from lab.inside import network
from lab.inside.commands import ip, ip_if_there
from portfwd.wire.errors import RefusedError, shown


def card_of(topology: Topology, nic: Nic) -> network.Card:
    """What the owner of this card has to know of its network."""
    net = topology.networks[nic.network]
    gateway, gateway6 = topology.gateway(nic)
    bits6 = net.ip6.prefixlen if net.ip6 is not None else 128
    return network.Card(nic, net.ip.prefixlen, bits6, gateway, gateway6)


def connect(machine: Running, card: network.Card) -> None:
    """Connect a card to its bridge, without address. RefusedError when there is one of that name."""
    name = card.nic.name
    if name in machine.cards:
        raise RefusedError(f"{shown(machine.name)} has a network card {shown(name)} already")
    taken = set(machine.ports.values())
    port = next(port for n in range(len(taken) + 1) if (port := f"p{machine.domid}-{n}") not in taken)
    ip(
        f"link add name {port} type veth peer name {name} address {_mac(machine.name, name)} netns {machine.pid}",
        f"link set {port} master br-{card.nic.network} up",
    )
    machine.cards[name], machine.ports[name] = card, port


def _mac(machine: str, card: str) -> str:
    """A card keeps its address over restarts, or its neighbours would go on sending to the old one for a while."""
    digest = hashlib.sha256(f"{machine} {card}".encode()).digest()
    return ":".join(f"{byte:02x}" for byte in (0x02, *digest[:5]))


def plug(machine: Running, card: network.Card) -> None:
    """A new card in a running machine."""
    connect(machine, card)
    machine.call(network.set_up_cards, (card,))


def unplug(machine: Running, name: str) -> None:
    """Pull a card out."""
    find(machine, name)
    ip(f"link delete {machine.ports.pop(name)}")
    del machine.cards[name]


def rename(machine: Running, name: str, card: network.Card) -> None:
    """Give a card another name; it is down for a moment, as the kernel wants it, and gets its routes again."""
    find(machine, name)
    if card.nic.name in machine.cards:
        raise RefusedError(f"{shown(machine.name)} has a network card {shown(card.nic.name)} already")
    machine.call(network.rename_card, name, card)
    # In its old place: the order of the cards is that of the topology.
    machine.cards = {card.nic.name if k == name else k: card if k == name else v for k, v in machine.cards.items()}
    machine.ports[card.nic.name] = machine.ports.pop(name)


def move(machine: Running, card: network.Card) -> None:
    """Give a card other addresses, also of another network: what a DHCP client or a change of the cable does."""
    name = card.nic.name
    find(machine, name)
    ip(f"link set {machine.ports[name]} master br-{card.nic.network} up")
    machine.call(network.move_card, card)
    machine.cards[name] = card


def remove_leftovers(machine: Running) -> None:
    """Remove the bridge ports of a machine that is gone (its kernel side may still be cleaning up)."""
    if machine.ports:
        ip_if_there(*(f"link delete {port}" for port in machine.ports.values()))


def find(machine: Running, name: str) -> network.Card:
    """A machine's card of that name. RefusedError if it has none."""
    card = machine.cards.get(name)
    if card is None:
        raise RefusedError(f"{shown(machine.name)} has no network card {shown(name)}")
    return card
