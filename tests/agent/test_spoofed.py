# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""A source address is refused where it cannot come from: the network of one interface, at another interface.

In the network of world.py `spoofer` stands behind eth0 and takes the address of the laptop, which is attached to ens6.
"""

import pytest

from portfwd.wire.values import Family, HostName, Proto, Side
from tests.agent.kernel_world import KernelWorld
from tests.agent.world import (
    ENS6,
    HOP,
    LAPTOP,
    PHONE,
    STRANGER,
    TUN0,
    TUNNEL,
    UPSTREAM,
    Attempt,
    Client,
    World,
    check,
    relay,
    through,
)

V4, V6 = Family.V4, Family.V6
SPOOFER = Client("outside", "eth0", LAPTOP.addresses, HOP)
EVERY = [(proto, family) for proto in Proto for family in Family]
NAME = HostName("laptop.example.org")


def sources(family: Family) -> dict[str, str]:
    """Each kind of source that means the laptop, and the anyone that includes it."""
    return {
        "any": "any",
        "address": str(LAPTOP.addresses[family]),
        "prefix": str(ENS6[family].network),
        "name": f"name:{NAME}",
        "neighbours": "neighbours",
    }


@pytest.mark.parametrize("kind", ["any", "address", "prefix", "name", "neighbours"])
@pytest.mark.parametrize(("proto", "family"), EVERY)
def test_f1_an_address_of_one_uplinks_network_is_refused_at_another(
    world: World, proto: Proto, family: Family, kind: str
) -> None:
    names = {NAME: tuple(LAPTOP.addresses.values())}
    for listen in ("443", "9000-9010"):
        world.apply(through(relay(listen, proto=proto, family=family, source=sources(family)[kind])), names=names)
        port = int(listen.partition("-")[0])
        attempt = Attempt(LAPTOP, port, proto, family)
        check(world, {attempt: port}, [attempt._replace(client=SPOOFER)])


@pytest.mark.parametrize(("proto", "family"), EVERY)
def test_f1_addresses_beyond_routers_may_come_by_any_uplink(world: World, proto: Proto, family: Family) -> None:
    world.apply(through(relay(443, proto=proto, family=family)))
    by_the_other = Client("outside", "eth0", STRANGER.addresses, HOP)
    opens = [Attempt(client, 443, proto, family) for client in (STRANGER, UPSTREAM, by_the_other)]
    check(world, dict.fromkeys(opens, 443))


@pytest.mark.parametrize(("proto", "family"), EVERY)
def test_f1_an_address_of_a_tunnels_network_is_refused_at_an_uplink(world: World, proto: Proto, family: Family) -> None:
    """And one of an uplink's network inside the tunnel, where an internal forward is open."""
    if isinstance(world, KernelWorld) and not world.has_tunnel:
        pytest.skip("no right to make a tun device")
    entries = [relay(443, proto=proto, family=family), relay(443, proto=proto, family=family, side=Side.DOWNSTREAM)]
    world.apply([entry for found in entries for entry in through(found)])
    from_tunnel = Client("outside", "ens6", TUNNEL.addresses, LAPTOP.dials)
    into_tunnel = Client("tunnel", "tun0", PHONE.addresses, {f: a.ip for f, a in TUN0.items()})
    if isinstance(world, KernelWorld):
        world.add_address("outside", "lan0", TUNNEL.addresses[family])
        world.add_address("tunnel", "tun0", PHONE.addresses[family])
    try:
        check(
            world,
            {Attempt(LAPTOP, 443, proto, family): 443, Attempt(TUNNEL, 443, proto, family): 443},
            [Attempt(c, 443, proto, family) for c in (from_tunnel, into_tunnel)],
        )
    finally:
        if isinstance(world, KernelWorld):
            world.remove_address("outside", "lan0", TUNNEL.addresses[family])
            world.remove_address("tunnel", "tun0", PHONE.addresses[family])


@pytest.mark.parametrize(("proto", "family"), EVERY)
def test_f1_an_inner_hop_leaves_the_question_to_the_entrance(world: World, proto: Proto, family: Family) -> None:
    """What comes by the uplink to its net qube was asked there; a card of its own may be in the same network."""
    world.apply(through(relay(443, proto=proto, family=family, side=Side.INNER)))
    check(world, {Attempt(SPOOFER, 443, proto, family): 443}, [Attempt(LAPTOP, 443, proto, family)])
