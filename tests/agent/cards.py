# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""A second network card for hop: ens7, with a router behind which the client `beyond` is."""

import ipaddress

from portfwd.wire.values import Family
from tests.agent.kernel_world import KernelWorld
from tests.agent.machine import run
from tests.agent.world import Client

V4, V6 = Family.V4, Family.V6
ENS7 = {V4: "10.0.5.2/24", V6: "2001:db8:5::2/64"}
ROUTER = {V4: "10.0.5.1", V6: "2001:db8:5::1"}


def client(name: str, v4: str, v6: str, dials: dict[Family, str]) -> Client:
    addresses = {V4: ipaddress.ip_address(v4), V6: ipaddress.ip_address(v6)}
    return Client(name, "ens7", addresses, {f: ipaddress.ip_interface(d).ip for f, d in dials.items()})


BEYOND = client("beyond", "203.0.113.77", "2001:db8:77::7", ENS7)
NEXT = client("beyond", ROUTER[V4], ROUTER[V6], ENS7)


def ip(world: KernelWorld, machine: str, *lines: str) -> None:
    world.machine(machine).call(run, ["ip", "-batch", "-"], "\n".join(lines))


def add_card(world: KernelWorld, name: str = "ens7") -> None:
    ip(world, "hop", f"link add {name} type veth peer name lan1 netns {world.pids['beyond']}", f"link set {name} up")
    ip(world, "beyond", "link set lan1 up")
    for family in Family:
        nodad = " nodad" if family is V6 else ""
        own = ENS7[family]
        bits = own.rpartition("/")[2]
        ip(world, "hop", f"address add {own} dev {name}{nodad}")
        lines = [f"address add {ROUTER[family]}/{bits} dev lan1{nodad}"]
        ip(world, "beyond", *lines, f"address add {BEYOND.addresses[family]}/{family.bits} dev lan1{nodad}")
        ip(world, "hop", f"route add default via {ROUTER[family]} dev {name} metric 3000")
