# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""A host of the guest network takes the address of a host of the LAN, for which alone a forward is open."""

import socket
from collections.abc import Iterator

import pytest

from lab import probes
from tests.chain.world import (
    LAPTOP,
    LAPTOP6,
    SYS_NET,
    SYS_NET6,
    SYS_NET_GUEST,
    SYS_NET_GUEST6,
    VISITOR,
    VISITOR6,
    Ask,
    World,
    says,
)


def ask_from(source: str, host: str, port: int) -> str:
    """Ask a port from one of several addresses."""
    try:
        with socket.create_connection((host, port), 2.0, (source, 0)) as client:
            client.sendall(b"hello\n")
            return client.makefile().readline().strip()
    except OSError as error:
        return probes.why(error)


@pytest.fixture
def spoofer(world: World) -> Iterator[World]:
    """The guest has the laptop's addresses, too, and is the gateway of its network: replies would find it."""
    shown = world.lab.run("visitor", ["ip", "-o", "route", "get", SYS_NET_GUEST], capture_output=True, text=True).stdout
    device = shown.split(" dev ")[1].split()[0]
    steps = [
        ("visitor", f"address {{}} {LAPTOP}/32 dev {device}"),
        ("visitor", f"address {{}} {LAPTOP6}/128 dev {device}"),
        ("sys-net", f"route {{}} default via {VISITOR} dev wls7 metric 50"),
        ("sys-net", f"-6 route {{}} default via {VISITOR6} dev wls7 metric 50"),
    ]
    for machine, words in steps:
        world.lab.run(machine, ["ip", *words.format("add").split()], check=True)
    yield world
    for machine, words in steps:
        world.lab.run(machine, ["ip", *words.format("del").split()], check=True)


@pytest.mark.parametrize("source", ["address", "any"])
def test_f1_a_guest_with_the_address_of_a_lan_host_is_not_served(spoofer: World, source: str) -> None:
    """Mistake: the address is checked, and the card by which it comes in is not."""
    for port, own in ((445, LAPTOP), (446, LAPTOP6)):
        chosen = own if source == "address" else "any"
        spoofer.add("work", f"forwardtype=external proto=tcp srcports={port} dstports=8443 srchost={chosen}")
    spoofer.expect(
        {
            Ask("laptop", SYS_NET, 445): says("work", 8443, LAPTOP),
            Ask("laptop", SYS_NET6, 446): says("work", 8443, LAPTOP6),
        }
    )
    spoofer.settle()
    for own, host, port in ((LAPTOP, SYS_NET_GUEST, 445), (LAPTOP6, SYS_NET_GUEST6, 446)):
        assert spoofer.lab.call("visitor", ask_from, own, host, port) == "timeout"
