# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The target hands a port on by its user's own DNAT: to a container inside of it, or to another port of its own.

    hop -- eth0 (group 1) work ctr0 (group 0) -- eth0 container     172.18.0.2

What came in by a forward ends with it, whoever in the target answers.
"""

import enum
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import pytest

from portfwd.agent.rules.skeleton import LATE_SECONDS
from portfwd.wire.entry import Entry
from portfwd.wire.values import Family, Proto
from tests.agent import sockets
from tests.agent.kernel_world import KernelWorld, bring
from tests.agent.machine import run, write
from tests.agent.world import LAPTOP, PHONE, PORTS, WORK, Attempt, Life, Node, accept, relay

pytestmark = pytest.mark.slow

INSIDE = {Family.V4: ("172.18.0.1/24", "172.18.0.2/24"), Family.V6: ("fd18::1/64", "fd18::2/64")}


class To(enum.StrEnum):
    """Who answers in the target."""

    PROGRAM = "a program of the target"
    OTHER_PORT = "a program of the target at another port"
    CONTAINER = "a container"


class Target:
    """The network of world.py with a container in work, and the user's own nft in work."""

    def __init__(self, world: KernelWorld, to: To, proto: Proto, family: Family) -> None:
        self.world, self.to, self.proto, self.family = world, to, proto, family
        world.server = "container" if to is To.CONTAINER else "work"
        if to is not To.PROGRAM:
            self._hand_on()

    def _hand_on(self) -> None:
        ip = "ip" if self.family is Family.V4 else "ip6"
        address = INSIDE[self.family][1].partition("/")[0] if self.to is To.CONTAINER else str(WORK[self.family])
        where = f"[{address}]:8080" if self.family is Family.V6 else f"{address}:8080"
        rule = f"iifgroup 1 {self.proto.value} dport {{ 80, 443 }} dnat to {where}"
        self.world.nft(
            Node.WORK,
            f"add table {ip} users\n"
            f"add chain {ip} users pre {{ type nat hook prerouting priority dstnat; }}\n"
            f"add rule {ip} users pre {rule}\n"
            f"add rule {ip} qubes custom-input ct status dnat accept\n",
        )

    def apply(self, *entries: Entry) -> None:
        self.world.apply(entries)

    def apply_in_target(self, *entries: Entry) -> None:
        """Its agent alone is alive."""
        self.world.machine("work").call(bring, list(entries), self.world.now(), {})

    def relay(self, **words: int) -> Entry:
        return relay(443, proto=self.proto, family=self.family, **words)  # type: ignore[arg-type]

    def accept(self, source: str = "any", **words: int) -> Entry:
        return accept(443, proto=self.proto, family=self.family, source=source, **words)  # type: ignore[arg-type]

    def opens(self, source_port: int = 0) -> int:
        return self.world.open(Attempt(LAPTOP, 443, self.proto, self.family, source_port))

    def speaks(self, handle: int, *, first: str = "client") -> Life:
        return self.world.client_speaks(handle) if first == "client" else self.world.server_speaks(handle)


@pytest.fixture(scope="module")
def network() -> Iterator[KernelWorld]:
    world = KernelWorld("container")
    work, container = world.machine("work"), world.machine("container")
    pid = world.pids["container"]
    work.call(run, ["ip", "link", "add", "ctr0", "type", "veth", "peer", "name", "eth0", "netns", str(pid)])
    for machine, device, place in ((work, "ctr0", 0), (container, "eth0", 1)):
        machine.call(run, ["ip", "link", "set", device, "up"])
        for addresses in INSIDE.values():
            nodad = ["nodad"] if ":" in addresses[place] else []
            machine.call(run, ["ip", "address", "add", addresses[place], "dev", device, *nodad])
    for addresses in INSIDE.values():
        container.call(run, ["ip", "route", "add", "default", "via", addresses[0].partition("/")[0]])
    for path in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        work.call(write, f"/proc/sys/net/{path}", "1")
    container.call(sockets.serve, PORTS)
    yield world
    world.close()


@pytest.fixture(params=list(To))
def to(request: pytest.FixtureRequest) -> To:
    found: To = request.param
    return found


@pytest.fixture(params=[(proto, family) for proto in Proto for family in Family], ids=lambda way: f"{way[0]}-{way[1]}")
def target(network: KernelWorld, to: To, request: pytest.FixtureRequest) -> Target:
    network.reset()
    network.machine("container").call(sockets.hang_up)
    return Target(network, to, *request.param)


class Way(NamedTuple):
    """One of the forwards that expire at the same time."""

    proto: Proto
    family: Family
    source: str


WAYS = [Way(proto, family, source) for proto in Proto for family in Family for source in ("any", "listed")]


@dataclass(frozen=True)
class Ended:
    """What is noticed of two connections after the end: soon, and when the kernel waits for no agent any more."""

    soon: list[Life]
    late_client: Life
    late_server: Life


@pytest.fixture(scope="module", params=list(To))
def ended(network: KernelWorld, request: pytest.FixtureRequest) -> dict[Way, Ended]:
    """All ways at once: the time until the end passes for all of them."""
    to: To = request.param
    network.reset()
    network.machine("container").call(sockets.hang_up)
    for proto, family in {(way.proto, way.family) for way in WAYS}:
        Target(network, to, proto, family)
    end = int(network.now()) + 3
    entries = []
    for way in WAYS:
        port = 443 if way.source == "any" else 80
        where = "any" if way.source == "any" else str(LAPTOP.addresses[way.family])
        entries.append(relay(port, proto=way.proto, family=way.family, expire=end))
        entries.append(accept(port, proto=way.proto, family=way.family, source=where, expire=end))
    network.apply(entries)
    first, second = (
        {way: network.open(Attempt(LAPTOP, 443 if way.source == "any" else 80, way.proto, way.family)) for way in WAYS}
        for _ in range(2)
    )
    assert network.clients_speak([*first.values(), *second.values()]) == [Life.ALIVE] * 2 * len(WAYS)
    network.wait_until(lambda: network.now() > end + 1)
    # What a program of the target sends by itself over UDP is asked only a little later: nothing comes in by it.
    asked = [way for way in WAYS if to is To.CONTAINER or way.proto is Proto.TCP]
    servers = dict(zip(asked, network.servers_speak([first[way] for way in asked]), strict=True))
    clients = [dict(zip(WAYS, network.clients_speak(list(one.values())), strict=True)) for one in (first, second)]
    network.wait_until(lambda: network.now() > end + LATE_SECONDS + 0.2)
    late_clients = dict(zip(WAYS, network.clients_speak(list(second.values())), strict=True))
    late_servers = dict(zip(WAYS, network.servers_speak(list(second.values())), strict=True))
    return {
        way: Ended([lives[way] for lives in (servers, *clients) if way in lives], late_clients[way], late_servers[way])
        for way in WAYS
    }


@pytest.mark.parametrize("way", WAYS, ids=lambda way: f"{way.proto}-{way.family}-{way.source}")
def test_f4_an_expired_forward_ends_what_the_target_has_handed_on_without_any_agent(
    ended: dict[Way, Ended], way: Way
) -> None:
    assert Life.ALIVE not in ended[way].soon
    assert ended[way].late_client is (Life.RESET if way.proto is Proto.TCP else Life.SILENT)
    assert ended[way].late_server is not Life.ALIVE


@pytest.mark.parametrize("first", ["client", "server"])
def test_f4_a_removed_forward_ends_what_the_target_has_handed_on_by_the_targets_agent_alone(
    target: Target, first: str
) -> None:
    opened, through_hop = target.accept(), target.relay()
    target.apply(through_hop, opened)
    handle = target.opens()
    assert target.speaks(handle) is Life.ALIVE
    target.apply_in_target()
    for speaker in ("client", "server") if first == "client" else ("server", "client"):
        assert target.speaks(handle, first=speaker) is not Life.ALIVE
    assert target.speaks(handle) is (Life.RESET if target.proto is Proto.TCP else Life.SILENT)
    port = target.world.source_port(handle)
    target.world.machine("outside").call(sockets.hang_up)
    target.apply_in_target(opened)
    again = target.opens(port)
    assert target.speaks(again) is Life.ALIVE
    assert target.speaks(again, first="server") is Life.ALIVE


@pytest.mark.parametrize("to", [To.CONTAINER], indirect=True)
def test_f4_what_no_forward_of_ours_let_in_is_left_alone(target: Target) -> None:
    """The user's own DNAT, reached by a relay of the user's, or of another rule."""
    target.apply(target.relay(), accept(80, proto=target.proto, family=target.family))
    handle = target.opens()
    target.apply_in_target()
    assert target.speaks(handle) is Life.ALIVE


@pytest.mark.parametrize("to", [To.CONTAINER], indirect=True)
def test_f4_a_neighbouring_door_and_a_restart_of_the_agent_cut_nobody(target: Target) -> None:
    opened = target.accept()
    other = accept(80, proto=target.proto, family=target.family)
    target.apply(target.relay(), opened, other)
    handle = target.opens()
    target.apply_in_target(opened)
    target.world.restart_agent()
    target.apply_in_target(opened, other)
    assert target.speaks(handle) is Life.ALIVE
    assert target.speaks(handle, first="server") is Life.ALIVE
    narrowed = target.accept(str(PHONE.addresses[target.family]))
    target.apply_in_target(narrowed, other)
    assert target.speaks(handle) is not Life.ALIVE


@pytest.mark.parametrize("to", [To.CONTAINER], indirect=True)
def test_f4_an_agent_that_starts_after_the_end_ends_it_too(target: Target) -> None:
    opened = target.accept()
    target.apply(target.relay(), opened)
    handle = target.opens()
    target.world.restart_agent()
    target.apply_in_target()
    assert target.speaks(handle) is not Life.ALIVE


@pytest.mark.parametrize("to", [To.CONTAINER], indirect=True)
def test_f4_a_flow_that_never_pauses_does_not_outlast_the_watch(target: Target) -> None:
    """The hops' agents are dead and their connection tables let the flow come; nobody watches any more."""
    target.apply(target.relay(), target.accept())
    handle = target.opens()
    target.apply_in_target()
    assert target.speaks(handle) is not Life.ALIVE
    target.world.tend(Node.WORK, target.world.now() + 601)
    assert target.speaks(handle) is not Life.ALIVE
    assert target.speaks(handle, first="server") is not Life.ALIVE
