# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""What counts as an uplink and as a network of neighbours, and which addresses come by which uplink: by real packets.

The network is that of test_ways.py, with the agent as a program in hop.
"""

import contextlib
import ipaddress
from collections.abc import Iterator

import pytest

from portfwd.wire import limits
from portfwd.wire.entry import Entry
from portfwd.wire.values import Family, Proto
from tests.agent.cards import BEYOND, ENS7, NEXT, add_card, client, ip
from tests.agent.kernel_world import KernelWorld
from tests.agent.machine import run
from tests.agent.process import RunningAgent
from tests.agent.world import LAPTOP, STRANGER, UPSTREAM, Attempt, Client, Life, Node, check, relay, through

pytestmark = pytest.mark.slow

V4, V6 = Family.V4, Family.V6
EVERY = [(proto, family) for proto in Proto for family in Family]
TARGETS = [through(relay(443, proto=proto, family=family))[1] for proto, family in EVERY]
NEAR = [relay(443, proto=proto, family=family, source="neighbours") for proto, family in EVERY]
ANYONE = [relay(443, proto=proto, family=family) for proto, family in EVERY]


@pytest.fixture(scope="module")
def world() -> Iterator[KernelWorld]:
    made = KernelWorld("beyond")
    yield made
    made.close()


@pytest.fixture
def agent(world: KernelWorld) -> Iterator[RunningAgent]:
    world.reset()
    add_card(world)
    running = RunningAgent(world)
    running.open_target(TARGETS)
    yield running
    running.close()
    ip(world, "hop", "link del ens7")


@contextlib.contextmanager
def address(agent: RunningAgent, machine: str, device: str, *texts: str) -> Iterator[None]:
    """These addresses stand on a device meanwhile."""
    lines = [f"{text} dev {device}{' nodad' * (':' in text)}" for text in texts]
    ip(agent.world, machine, *(f"address add {line}" for line in lines))
    try:
        yield
    finally:
        ip(agent.world, machine, *(f"address del {line.removesuffix(' nodad')}" for line in lines))


def every(*clients: Client) -> dict[Attempt, int]:
    return {Attempt(c, 443, proto, family): 443 for c in clients for proto, family in EVERY}


def ignored(agent: RunningAgent, word: str) -> None:
    """dom0 is told that this counts for nothing, and nothing else."""
    agent.world.wait_until(lambda: (agent.dom0.read(limits.STATUS + "ignored") or b"").decode() == word, 20)


def settled(agent: RunningAgent) -> None:
    """The agent has seen every change of the links: it answers only when it has nothing older to do."""
    agent.world.wait_until(lambda: agent.ask(limits.REPORT_SERVICE) != b"", 20)


@pytest.mark.parametrize("source", ["address", "prefix", "any"])
def test_f1_an_address_of_the_lan_is_not_served_at_another_card(agent: RunningAgent, source: str) -> None:
    """Replies leave as the request came, so a host behind the other card that takes the address is served in full."""
    spoofer = Client("beyond", "ens7", LAPTOP.addresses, NEXT.dials)
    words = {
        "address": {family: str(LAPTOP.addresses[family]) for family in Family},
        "prefix": {V4: "192.168.7.0/24", V6: "2001:db8:7::/64"},
        "any": dict.fromkeys(Family, "any"),
    }[source]
    agent.publish([relay(443, proto=proto, family=family, source=words[family]) for proto, family in EVERY])
    with address(agent, "beyond", "lan1", *(f"{a}/{a.max_prefixlen}" for a in LAPTOP.addresses.values())):
        check(agent.world, every(LAPTOP), every(spoofer))


def test_f1_two_cards_in_the_same_network_serve_both(agent: RunningAgent) -> None:
    other = client("beyond", "192.168.7.9", "2001:db8:7::9", {V4: "192.168.7.200/24", V6: "2001:db8:7::200/64"})
    agent.publish(ANYONE)
    with (
        address(agent, "hop", "ens7", "192.168.7.200/24", "2001:db8:7::200/64"),
        address(agent, "beyond", "lan1", "192.168.7.9/24", "2001:db8:7::9/64"),
    ):
        settled(agent)
        check(agent.world, every(LAPTOP, other))


def test_f1_of_networks_inside_each_other_the_longest_prefix_decides(agent: RunningAgent) -> None:
    inside = {V4: "192.168.7.130", V6: "2001:db8:7::130"}
    other = client("beyond", inside[V4], inside[V6], {V4: "192.168.7.129/25", V6: "2001:db8:7::129/120"})
    at_lan = Client("outside", "ens6", other.addresses, LAPTOP.dials)
    agent.publish(ANYONE)
    with (
        address(agent, "hop", "ens7", "192.168.7.129/25", "2001:db8:7::129/120"),
        address(agent, "beyond", "lan1", *(f"{text}/{Family(4 + 2 * (':' in text)).bits}" for text in inside.values())),
        address(
            agent, "outside", "lan0", *(f"{text}/{Family(4 + 2 * (':' in text)).bits}" for text in inside.values())
        ),
    ):
        ip(agent.world, "beyond", "route add 192.168.7.129 dev lan1", "route add 2001:db8:7::129 dev lan1")
        settled(agent)
        check(agent.world, every(LAPTOP, other), every(at_lan))


def test_f1_who_comes_by_the_wrong_card_is_cut_when_the_network_turns_up(agent: RunningAgent) -> None:
    agent.publish(ANYONE)
    handle = agent.world.open(Attempt(BEYOND, 443))
    near = ipaddress.ip_interface(f"{BEYOND.addresses[V4]}/24")
    with address(agent, "hop", "ens6", f"{near.ip + 1}/24"):
        agent.world.wait_until(lambda: agent.world.probe([Attempt(BEYOND, 443)], 0) == [None], 20)
        # The door is shut; its old connections are ended right after that.
        agent.world.wait_until(lambda: agent.world.client_speaks(handle) is not Life.ALIVE, 20)


@pytest.mark.parametrize("name", ['odd"0', "odd*", "odd\\0"])
def test_f2_an_interface_whose_name_cannot_be_written_in_a_rule_shuts_nothing_else(
    agent: RunningAgent, name: str
) -> None:
    """Its network is the only one that it costs its clients."""
    agent.publish(ANYONE)
    hop = agent.world.machine("hop")
    hop.call(run, ["ip", "link", "add", name, "type", "veth", "peer", "name", "odd1"])
    stranger = Client("outside", "ens6", {V4: ipaddress.ip_address("10.0.9.7")}, LAPTOP.dials)
    try:
        hop.call(run, ["ip", "link", "set", name, "up"])
        hop.call(run, ["ip", "address", "add", "10.0.9.1/24", "dev", name])
        ignored(agent, f"odd_{name[4:]}:name:veth")
        check(agent.world, every(LAPTOP))
        with address(agent, "outside", "lan0", "10.0.9.7/32"):
            check(agent.world, {}, [Attempt(stranger, 443)])
    finally:
        hop.call(run, ["ip", "link", "delete", name])
    ignored(agent, "")


@pytest.mark.parametrize(("own", "prefix"), [("203.0.113.1/1", "128.0.0.0/1"), ("203.0.113.1/0", "0.0.0.0/0")])
def test_f2_a_network_as_wide_as_the_world_has_no_neighbours(agent: RunningAgent, own: str, prefix: str) -> None:
    """What a hostile DHCP server may give. IPv6 is told by router advertisements, to the same effect."""
    agent.publish(NEAR)
    with address(agent, "hop", "ens7", own, "2001:db8:77::1/3"):
        settled(agent)
        check(agent.world, every(LAPTOP, NEXT), every(BEYOND, STRANGER))
        ignored(agent, f"ens7:network:{prefix} ens7:network:2000::/3")
        agent.publish(ANYONE)
        check(agent.world, every(LAPTOP, NEXT, BEYOND))
    ignored(agent, "")


@pytest.fixture
def overlay(agent: RunningAgent) -> Iterator[Client]:
    """A VXLAN between hop and `beyond`, which the kernel takes for an interface like any other."""
    agent.world.nft(Node.HOP, "add rule ip qubes custom-input udp dport 4789 accept")
    own, there = (ENS7[V4].partition("/")[0], NEXT.addresses[V4])
    try:
        ip(agent.world, "hop", f"link add over0 type vxlan id 7 remote {there} local {own} dstport 4789")
    except AssertionError:
        pytest.skip("this kernel has no VXLAN")
    ip(agent.world, "beyond", f"link add over0 type vxlan id 7 remote {own} local {there} dstport 4789")
    ip(agent.world, "hop", "link set over0 up")
    ip(agent.world, "beyond", "link set over0 up")
    made = client("beyond", "10.77.0.2", "fd77::2", {V4: "10.77.0.1/24", V6: "fd77::1/64"})
    with address(agent, "beyond", "over0", "10.77.0.2/24", "fd77::2/64"):
        yield made
    ip(agent.world, "hop", "link del over0")
    ip(agent.world, "beyond", "link del over0")


@pytest.mark.parametrize("entries", [ANYONE, NEAR], ids=["any", "neighbours"])
def test_f2_an_overlay_network_is_no_uplink(agent: RunningAgent, overlay: Client, entries: list[Entry]) -> None:
    agent.publish(entries)
    with address(agent, "hop", "over0", "10.77.0.1/24", "fd77::1/64"):
        settled(agent)
        check(agent.world, every(LAPTOP, NEXT), every(overlay))
        ignored(agent, "over0:kind:vxlan")


def test_f2_a_bridge_is_an_uplink_as_far_as_what_it_stands_on(agent: RunningAgent, overlay: Client) -> None:
    agent.publish(ANYONE)
    ip(agent.world, "hop", "link add br0 type bridge", "link set br0 up", "link set over0 master br0")
    try:
        with address(agent, "hop", "br0", "10.77.0.1/24", "fd77::1/64"):
            settled(agent)
            check(agent.world, every(LAPTOP), every(overlay))
            ignored(agent, "br0:below:over0")
    finally:
        ip(agent.world, "hop", "link del br0")
    ip(agent.world, "hop", "link add br0 type bridge", "link set br0 up", "link set ens7 master br0")
    try:
        texts = [ENS7[family] for family in Family]
        ip(agent.world, "hop", *(f"address del {text} dev ens7" for text in texts))
        with address(agent, "hop", "br0", *texts):
            for family in Family:
                ip(agent.world, "hop", f"route add default via {NEXT.addresses[family]} dev br0 metric 3001")
            settled(agent)
            check(agent.world, every(LAPTOP, NEXT, BEYOND, UPSTREAM))
    finally:
        ip(agent.world, "hop", "link del br0")
