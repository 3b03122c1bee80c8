# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Several uplinks and tunnels, by real packets: who is near, and by which way replies leave.

To the network of world.py comes ens7, a second network card of hop, with a router behind which the client `beyond` is.
The default route is by ens6, so without help no answer reaches that client.
"""

import signal
from collections.abc import Iterator

import pytest

from portfwd.agent.rules.skeleton import MARK_UP, TABLE, UPLINK_BITS
from portfwd.wire import limits
from portfwd.wire.values import Family, Proto, Side
from tests.agent import sockets
from tests.agent.cards import BEYOND, ENS7, NEXT, ROUTER, add_card, client, ip
from tests.agent.kernel_world import KernelWorld
from tests.agent.machine import run
from tests.agent.process import RunningAgent
from tests.agent.world import (
    HOP,
    LAPTOP,
    OUTSIDE,
    TUNNEL,
    UPSTREAM,
    Attempt,
    Life,
    Node,
    accept,
    check,
    relay,
    through,
)

pytestmark = pytest.mark.slow

V4, V6 = Family.V4, Family.V6
MOVED = client("beyond", "10.0.6.1", "2001:db8:6::1", {V4: "10.0.6.2", V6: "2001:db8:6::2"})
EVERY = [(proto, family) for proto in Proto for family in Family]
ANYONE = [entry for proto, family in EVERY for entry in through(relay(443, proto=proto, family=family))]
RULES, TARGETS = ANYONE[::2], ANYONE[1::2]
NEAR = [relay(443, family=family, source="neighbours") for family in Family]
HALVES = {V4: ("0.0.0.0/1", "128.0.0.0/1"), V6: ("::/1", "8000::/1")}


@pytest.fixture(scope="module")
def world() -> Iterator[KernelWorld]:
    made = KernelWorld("beyond")
    yield made
    made.close()


def shown(world: KernelWorld, *words: str) -> str:
    """What `ip` says in hop, in both families."""
    parts = [world.machine("hop").call(run, ["ip", f"-{int(family)}", *words]) for family in Family]
    return "".join("\n".join(sorted(line.strip() for line in part.splitlines())) + "\n" for part in parts)


def ours(world: KernelWorld) -> str:
    """Our rules and routes."""
    routes = "".join(line for line in shown(world, "route", "show", "table", "all").splitlines(True) if "113" in line)
    return "".join(line for line in shown(world, "rule").splitlines(True) if "/0xf0000000" in line) + routes


@pytest.fixture
def card(world: KernelWorld) -> Iterator[KernelWorld]:
    """The second card, with a default route that is not the best."""
    world.reset()
    before = shown(world, "route") + shown(world, "rule")
    add_card(world)
    yield world
    for name in ("ens7", "wls7"):
        if name in shown(world, "link"):
            ip(world, "hop", f"link del {name}")
    assert shown(world, "route") + shown(world, "rule") == before, "the test left routes of its own"


@pytest.fixture
def agent(card: KernelWorld) -> Iterator[RunningAgent]:
    running = RunningAgent(card)
    running.open_target(TARGETS)
    yield running
    running.publish([])
    assert ours(card) == ""
    assert "reply-in" not in card.nft(Node.HOP, f"list table ip {TABLE}")
    running.close()


def way_out(agent: RunningAgent, word: bytes) -> None:
    agent.world.wait_until(lambda: agent.dom0.read(limits.STATUS + "way-out") == word, 20)


def is_open(agent: RunningAgent, attempt: Attempt) -> bool:
    return agent.world.probe([attempt], 0) != [None]


def test_c16_replies_leave_by_the_uplink_of_the_request(agent: RunningAgent) -> None:
    agent.publish(RULES)
    clients = (BEYOND, LAPTOP, UPSTREAM)
    check(agent.world, {Attempt(c, 443, proto, family): 443 for proto, family in EVERY for c in clients})
    handles = [agent.world.open(Attempt(BEYOND, 443, proto, family)) for proto, family in EVERY]
    for handle in handles * 2:
        assert agent.world.client_speaks(handle) is Life.ALIVE
        assert agent.world.server_speaks(handle) is Life.ALIVE


def test_the_marks_of_others_are_kept(agent: RunningAgent) -> None:
    agent.publish(RULES)
    agent.world.nft(
        Node.HOP,
        "table ip other { chain pre { type filter hook prerouting priority mangle; policy accept;\n"
        "ct state new ct mark set 0x00000f41\n"
        "meta mark set 0x00000ca6\n}\n"
        "chain post { type filter hook postrouting priority 0; policy accept;\n"
        "ct direction reply meta mark & 0x0fffffff == 0x00000ca6 counter name seen\n}\ncounter seen {}\n}",
    )
    handle = agent.world.open(Attempt(BEYOND, 443))
    assert agent.world.client_speaks(handle) is Life.ALIVE
    (mark,) = agent.world.marks(Node.HOP)
    assert mark & ~UPLINK_BITS == 0x0F41 | MARK_UP
    assert mark & UPLINK_BITS
    assert "packets 0" not in agent.world.nft(Node.HOP, "list counter ip other seen")


def test_a_script_that_restores_the_packet_mark_does_no_harm(agent: RunningAgent) -> None:
    """As wg-quick does: the number then comes to packets in both directions."""
    agent.publish(RULES)
    agent.world.nft(
        Node.HOP,
        "table ip wg-quick-wg0 { chain premangle { type filter hook prerouting priority mangle; policy accept;\n"
        "meta l4proto { tcp, udp } meta mark set ct mark\n}\n}",
    )
    for proto in Proto:
        handle = agent.world.open(Attempt(BEYOND, 443, proto))
        assert agent.world.client_speaks(handle) is Life.ALIVE
        assert agent.world.server_speaks(handle) is Life.ALIVE


def test_a_restart_of_the_agent_keeps_numbers_and_connections(agent: RunningAgent) -> None:
    agent.publish(RULES)
    handle, before = agent.world.open(Attempt(BEYOND, 443)), ours(agent.world)
    ruleset = agent.world.ruleset(Node.HOP)
    agent.end(signal.SIGKILL)
    assert agent.world.client_speaks(handle) is Life.ALIVE
    agent.start()
    agent.publish(RULES)
    assert agent.world.client_speaks(handle) is Life.ALIVE
    assert before
    assert (ours(agent.world), agent.world.ruleset(Node.HOP)) == (before, ruleset)


def test_an_uplink_that_goes_and_comes_back(agent: RunningAgent) -> None:
    agent.publish(RULES)
    assert " dev ens7" in ours(agent.world)
    handle = agent.world.open(Attempt(BEYOND, 443))
    ip(agent.world, "hop", "link set ens7 down")
    agent.world.wait_until(lambda: "ens7" not in ours(agent.world), 20)
    ip(agent.world, "hop", "link set ens7 up")
    ip(agent.world, "hop", f"route add default via {ROUTER[V4]} dev ens7 metric 3000")
    agent.world.wait_until(lambda: f"default via {ROUTER[V4]} dev ens7" in ours(agent.world), 20)
    assert agent.world.client_speaks(handle) is Life.ALIVE, "it has its old number again"
    ip(agent.world, "hop", "link del ens7")
    agent.world.wait_until(lambda: "ens7" not in agent.world.nft(Node.HOP, f"list map ip {TABLE} via"), 20)
    assert "ens7" not in ours(agent.world)


def test_rules_and_routes_of_others_are_left_alone_and_ours_put_back(agent: RunningAgent) -> None:
    lines = ["rule add fwmark 0x5 lookup 77 priority 990", "route add 192.0.2.0/24 dev ens6 table 77"]
    ip(agent.world, "hop", *lines, "route add 192.0.2.0/24 dev ens6 table 1902274049")
    agent.publish(RULES)
    check(agent.world, {Attempt(BEYOND, 443): 443})
    for rule in {line.split()[4] for line in shown(agent.world, "rule").splitlines() if "0xf0000000" in line}:
        ip(agent.world, "hop", f"rule del fwmark {rule}")
    agent.world.wait_until(lambda: is_open(agent, Attempt(BEYOND, 443)), 20)
    agent.publish([])
    assert "fwmark 0x5 lookup 77" in shown(agent.world, "rule")
    for table in ("77", "1902274049"):
        assert f"192.0.2.0/24 dev ens6 table {table}" in shown(agent.world, "route", "show", "table", "all")
        ip(agent.world, "hop", f"route del 192.0.2.0/24 dev ens6 table {table}")
    ip(agent.world, "hop", "rule del fwmark 0x5 lookup 77 priority 990")


def test_c8_u9_neighbours_follow_every_change_of_the_cards(agent: RunningAgent) -> None:
    """A card added, renamed, moved to another network and removed, each seen by itself."""
    world = agent.world
    agent.publish(NEAR)
    for family in Family:
        check(world, {Attempt(NEXT, 443, family=family): 443}, [Attempt(BEYOND, 443, family=family)])
    handle = world.open(Attempt(NEXT, 443))
    ip(world, "hop", "link set ens7 down", "link set ens7 name wls7", "link set wls7 up")
    ip(world, "hop", f"address replace {ENS7[V6]} dev wls7 nodad")
    world.wait_until(lambda: is_open(agent, Attempt(NEXT, 443)), 20)
    world.wait_until(lambda: is_open(agent, Attempt(NEXT, 443, family=V6)), 20)
    assert "ens7" not in world.nft(Node.HOP, f"list set ip {TABLE} near")
    # DHCP gives an address of another network.
    for family, (new, old) in {V4: ("10.0.6.2/24", ENS7[V4]), V6: ("2001:db8:6::2/64", ENS7[V6])}.items():
        nodad = " nodad" if family is V6 else ""
        bits = old.rpartition("/")[2]
        ip(world, "beyond", f"address add {MOVED.addresses[family]}/{bits} dev lan1{nodad}")
        ip(world, "hop", f"address add {new} dev wls7{nodad}", f"address del {old} dev wls7")
        world.wait_until(lambda f=family: is_open(agent, Attempt(MOVED, 443, family=f)), 20)  # type: ignore[misc]
    assert world.client_speaks(handle) is not Life.ALIVE
    other = world.open(Attempt(MOVED, 443))
    ip(world, "hop", "link del wls7")
    world.wait_until(lambda: "wls7" not in world.nft(Node.HOP, f"list set ip {TABLE} near"), 20)
    assert world.client_speaks(other) is not Life.ALIVE
    check(world, {Attempt(LAPTOP, 443): 443})
    add_card(world, "wls7")
    world.wait_until(lambda: is_open(agent, Attempt(NEXT, 443)), 20)


def test_the_old_networks_clients_are_refused_and_cut(agent: RunningAgent) -> None:
    """They can still reach the card, but it no longer stands in their network."""
    world = agent.world
    agent.publish(NEAR)
    handle = world.open(Attempt(NEXT, 443))
    ip(world, "hop", "address add 10.0.5.2/32 dev ens7", "address del 10.0.5.2/24 dev ens7")
    ip(world, "hop", f"route add {ROUTER[V4]} dev ens7")
    world.wait_until(lambda: not is_open(agent, Attempt(NEXT, 443)), 20)
    # The door is shut; its old connections are ended right after that.
    world.wait_until(lambda: world.client_speaks(handle) is Life.RESET, 20)


@pytest.fixture
def vpn(agent: RunningAgent) -> Iterator[RunningAgent]:
    """hop has a tunnel that takes everything, as OpenVPN makes it."""
    if not agent.world.has_tunnel:
        pytest.skip("no /dev/net/tun here")
    way_out(agent, b"uplink")
    wide = [prefix for family in Family for prefix in HALVES[family]]
    ip(agent.world, "hop", *(f"route add {prefix} dev tun0" for prefix in wide))
    yield agent
    ip(agent.world, "hop", *(f"route del {prefix} dev tun0" for prefix in wide))
    way_out(agent, b"uplink")


def test_c28_a_vpn_is_told_to_dom0_and_replies_do_not_leave_by_it(vpn: RunningAgent) -> None:
    vpn.publish(RULES)
    way_out(vpn, b"tunnel")
    clients = (BEYOND, LAPTOP, UPSTREAM)
    check(vpn.world, {Attempt(c, 443, proto, family): 443 for proto, family in EVERY for c in clients})


def test_c28_from_inside_the_tunnel_an_internal_forward_opens_and_an_external_one_does_not(vpn: RunningAgent) -> None:
    inside = [relay(443, family=f, side=Side.DOWNSTREAM, source=str(TUNNEL.addresses[f])) for f in Family]
    vpn.publish(inside)
    opens = {Attempt(TUNNEL, 443, family=family): 443 for family in Family}
    check(vpn.world, opens, [Attempt(c, 443, family=f) for c in (*OUTSIDE, BEYOND) for f in Family])
    handle = vpn.world.open(Attempt(TUNNEL, 443))
    vpn.publish([relay(443, side=Side.DOWNSTREAM, source="10.99.0.0/16")])
    assert vpn.world.client_speaks(handle) is Life.RESET
    check(vpn.world, shut=list(opens))
    vpn.publish(RULES)
    check(vpn.world, {Attempt(BEYOND, 443): 443}, list(opens))


def test_c28_what_the_vpn_qubes_own_programs_answer_does_not_leave_by_the_tunnel(vpn: RunningAgent) -> None:
    vpn.world.machine("hop").call(sockets.serve, [5001])
    vpn.publish([accept(5001, family=family) for family in Family])
    # What an accept opens is for the uplink to a net qube.
    check(vpn.world, shut=[Attempt(BEYOND, 5001, family=family) for family in Family])
    ip(vpn.world, "hop", "link set ens7 group 1")
    for family in Family:
        (reached,) = vpn.world.probe([Attempt(BEYOND, 5001, family=family)], 1)
        assert reached is not None
        assert (reached.address, reached.client) == (BEYOND.dials[family], BEYOND.addresses[family])
    ip(vpn.world, "hop", "link set ens7 group 0")


def test_a_vpn_that_took_the_default_route_away_does_not_get_the_replies(vpn: RunningAgent) -> None:
    """The uplink to a net qube then has the gateway that dom0 gave it."""
    world = vpn.world
    near, far = HOP[V4], UPSTREAM.addresses[V4]
    gateway = "10.137.0.99"
    routes = f"route del {far} dev eth0", f"route del default via {LAPTOP.addresses[V4]} dev ens6"
    ip(world, "outside", f"address add {gateway}/32 dev up0")
    ip(world, "hop", *routes)
    try:
        # An address of its own keeps eth0 known as a way out.
        ip(world, "hop", f"route add {gateway} dev eth0 src {near}")
        vpn.publish(RULES)
        # A change of net qube: the entries of this qube stay as they are, so dom0 commits nothing.
        vpn.dom0.write("/qubes-gateway", gateway)
        check(world, {Attempt(UPSTREAM, 443): 443, Attempt(BEYOND, 443): 443})
    finally:
        ip(world, "hop", f"route del {gateway} dev eth0", *(line.replace(" del ", " add ") for line in routes))
        ip(world, "outside", f"address del {gateway}/32 dev up0")
