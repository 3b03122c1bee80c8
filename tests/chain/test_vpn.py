# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Net qubes that are not simply crossed: with a tunnel, that refuse, without agent, with network cards of their own."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lab.inside.vpn import NETWORK, NETWORK6, SERVER, SERVER_ADDRESS, SERVER_ADDRESS6, addresses_of
from portfwd.wire.limits import FEATURE_DENY, FEATURE_TRANSIT, FEATURE_VPN
from tests.chain.world import (
    LAPTOP,
    LAPTOP6,
    SERVER6,
    SHUT,
    SYS_NET,
    SYS_NET6,
    Ask,
    World,
    databases,
    running,
    says,
    wait_until,
)
from tests.chain.world import SERVER as VPN_SERVER

TARGETS = ("work", "personal", "anon", "far", "office", "web")
WEB, WEB6 = "203.0.113.90", "2001:db8:ffff::5a"
EXTERNAL = "forwardtype=external proto=tcp srcports=443 dstports=8443"
HELD = "forwardtype=external proto=tcp srcports=444 dstports=9001"
OUTSIDE = {Ask("laptop", SYS_NET, 443): SHUT, Ask("laptop", SYS_NET6, 443): SHUT}
COUNTERS = f"""
add table inet seen
delete table inet seen
table inet seen {{
	counter replies-by-uplink {{ }}
	counter replies-by-tunnel {{ }}
	counter own-by-uplink {{ }}
	counter own-by-tunnel {{ }}
	chain forward {{
		type filter hook forward priority filter + 10;
		iifgroup 2 ip daddr {LAPTOP} oifname eth0 counter name replies-by-uplink
		iifgroup 2 ip6 daddr {LAPTOP6} oifname eth0 counter name replies-by-uplink
		iifgroup 2 ip daddr {LAPTOP} oifname tun0 counter name replies-by-tunnel
		iifgroup 2 ip6 daddr {LAPTOP6} oifname tun0 counter name replies-by-tunnel
		iifgroup 2 ip daddr {WEB} oifname eth0 counter name own-by-uplink
		iifgroup 2 ip6 daddr {WEB6} oifname eth0 counter name own-by-uplink
		iifgroup 2 ip daddr {WEB} oifname tun0 counter name own-by-tunnel
		iifgroup 2 ip6 daddr {WEB6} oifname tun0 counter name own-by-tunnel
	}}
}}
"""


@pytest.fixture(scope="module")
def home() -> Iterator[World]:
    """A laboratory of its own, in which the tunnel stands."""
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        pytest.skip("/dev/net/tun cannot be opened")
    with running(f"vpn-{os.getpid()}", str(Path(__file__).parent / "vpn.toml"), TARGETS) as world:
        world.lab.vpn("sys-vpn", "up")
        yield world


def standing(world: World) -> dict[str, tuple[dict[str, str], str]]:
    """Everything that stands in every running qube: entries in its QubesDB, and its ruleset."""
    return {name: (world.entries(name), world.ruleset(name)) for name in world.lab.call("dom0", databases)}


def request(world: World, qube: str, rule: str) -> None:
    """Type a rule of which one need not expect that it opens anything."""
    done = world.command(qube, "add", "action=forward", *rule.split())
    assert done.returncode == 0, done


def refuses(world: World, qube: str, reason: str, hop: str) -> None:
    """Wait until every rule of the qube is this problem at this hop, of which the user is told, and no entry stands."""
    wait_until(
        lambda: {(w["state"], w.get("reason"), w["hop"]) for w in world.status(qube)} == {("problem", reason, hop)},
        lambda: f"{reason} at {hop}, {world.status(qube)}",
    )
    assert all(words["text"].startswith(f"'{hop}' ") for words in world.status(qube))
    wait_until(lambda: written(world) == {}, lambda: f"nothing written, {written(world)}")


def written(world: World) -> dict[str, dict[str, str]]:
    """The qubes whose QubesDB holds entries."""
    return {name: found for name in world.lab.call("dom0", databases) if (found := world.entries(name))}


def inside(world: World) -> tuple[str, str]:
    """The addresses of sys-vpn in its tunnel."""
    return addresses_of(world.ip["sys-vpn"])


def way_out(world: World) -> str:
    """What the agent of sys-vpn says."""
    return world.output("sys-vpn", "qubesdb-read", "-e", "", "/qubes-port-forward-status/way-out").strip()


def count(world: World) -> Callable[[], dict[str, bool]]:
    """Look from now on by which interface of sys-vpn packets leave; the result tells by which some did."""
    world.lab.run("sys-vpn", ["nft", "-f", "-"], input=COUNTERS, text=True, check=True)

    def seen() -> dict[str, bool]:
        listed = json.loads(world.output("sys-vpn", "nft", "-j", "list", "counters", "table", "inet", "seen"))
        found = (item["counter"] for item in listed["nftables"] if "counter" in item)
        return {counter["name"]: counter["packets"] > 0 for counter in found}

    return seen


def test_c28_internal_is_for_those_in_the_tunnel_too(world: World) -> None:
    near, near6 = inside(world)
    for network in (NETWORK, NETWORK6):
        world.add("work", f"forwardtype=internal proto=tcp srcports=2222 dstports=22 srchost={network}")
    world.add("work", f"forwardtype=internal proto=tcp srcports=2223 dstports=9001 srchost={NETWORK}")
    world.add("personal", "forwardtype=internal proto=tcp srcports=2224 dstports=22")
    gateway = world.ip["sys-vpn"]
    opens = {
        Ask("server", near, 2222): says("work", 22, SERVER_ADDRESS),
        Ask("server", near6, 2222): says("work", 22, SERVER_ADDRESS6),
    }
    world.expect(
        opens
        | {
            Ask("work", gateway, 2224): says("personal", 22, world.ip["work"]),
            Ask("server", near, 2224): SHUT,
            Ask("server", near, 22): SHUT,
            Ask("personal", gateway, 2222): SHUT,
            Ask("laptop", SYS_NET, 2222): SHUT,
            Ask("laptop", SYS_NET6, 2222): SHUT,
            Ask("sys-net", world.ip["sys-firewall"], 2222): SHUT,
            Ask("sys-firewall", gateway, 2222): SHUT,
            Ask("sys-firewall", gateway, 2224): SHUT,
        }
    )
    held = world.hold("server", near, 2223, "work", 9001)
    world.replace("work")
    assert held.is_cut
    world.expect(dict.fromkeys(opens, SHUT))


@pytest.mark.parametrize("routes", ["halves", "table"])
def test_c28_external_crosses_only_where_the_user_lets_it(world: World, routes: str) -> None:
    world.lab.vpn("sys-vpn", "down")
    world.lab.vpn("sys-vpn", "up", routes=routes)
    before = standing(world)
    request(world, "work", EXTERNAL)
    request(world, "work", HELD)
    refuses(world, "work", "vpn", "sys-vpn")
    assert FEATURE_TRANSIT in world.status("work")[0]["text"]
    assert standing(world) == before
    world.expect(OUTSIDE)
    world.lab.feature("sys-vpn", FEATURE_TRANSIT, "1")
    world.wait_applied("work")
    seen = count(world)
    world.expect(
        {
            Ask("laptop", SYS_NET, 443): says("work", 8443, LAPTOP),
            Ask("laptop", SYS_NET6, 443): says("work", 8443, LAPTOP6),
            Ask("work", WEB, 8443): says("web", 8443, VPN_SERVER),
            Ask("work", WEB6, 8443): says("web", 8443, SERVER6),
            Ask("server", inside(world)[0], 443): SHUT,
        }
    )
    held = world.hold("laptop", SYS_NET, 444, "work", 9001)
    assert seen() == {
        "replies-by-uplink": True,
        "replies-by-tunnel": False,
        "own-by-uplink": False,
        "own-by-tunnel": True,
    }
    world.lab.feature("sys-vpn", FEATURE_TRANSIT, None)
    refuses(world, "work", "vpn", "sys-vpn")
    world.settle()
    assert held.is_cut
    world.expect(OUTSIDE)


def test_c28_a_tunnel_that_is_down_or_not_yet_up_opens_nothing(world: World) -> None:
    request(world, "work", EXTERNAL)
    refuses(world, "work", "vpn", "sys-vpn")
    assert world.lab.api("sys-vpn", "admin.vm.feature.Get", FEATURE_VPN) == "1"
    world.lab.vpn("sys-vpn", "down")
    wait_until(lambda: way_out(world) == "uplink", lambda: f"tunnel is down, {way_out(world)}")
    world.settle()
    refuses(world, "work", "vpn", "sys-vpn")
    world.expect(OUTSIDE)
    world.lab.service("server", SERVER, "stop")
    try:
        world.lab.restart("sys-vpn")
        wait_until(lambda: way_out(world) == "uplink", lambda: f"tunnel is not up yet, {way_out(world)}")
        refuses(world, "work", "vpn", "sys-vpn")
        world.expect(OUTSIDE)
        # The user says that it is none.
        world.lab.feature("sys-vpn", FEATURE_VPN, None)
        world.wait_applied("work")
        world.expect({Ask("laptop", SYS_NET, 443): says("work", 8443, LAPTOP)})
    finally:
        world.lab.vpn("sys-vpn", "up")
    refuses(world, "work", "vpn", "sys-vpn")
    world.settle()
    world.expect(OUTSIDE)


def test_c28_gateways_that_refuse_are_named(world: World) -> None:
    before = standing(world)
    request(world, "anon", EXTERNAL)
    request(world, "anon", "forwardtype=internal proto=tcp srcports=2222 dstports=22 srchost=any")
    refuses(world, "anon", "tor-gateway", "sys-whonix")
    assert standing(world) == before
    world.expect({**OUTSIDE, Ask("sys-firewall", world.ip["sys-whonix"], 443): SHUT})
    world.replace("anon")
    request(world, "office", EXTERNAL)
    world.wait_applied("office")
    world.lab.feature("sys-firewall", FEATURE_DENY, "1")
    refuses(world, "office", "denied", "sys-firewall")
    world.settle()
    world.expect(OUTSIDE)
    world.lab.feature("sys-firewall", FEATURE_DENY, None)
    world.wait_applied("office")
    world.expect({Ask("laptop", SYS_NET, 443): says("office", 8443, LAPTOP)})


def test_c27_nothing_is_written_around_a_net_qube_without_agent(world: World) -> None:
    """Mistake: the hops before it are opened, and then there is an error."""
    before = standing(world)
    request(world, "far", EXTERNAL)
    refuses(world, "far", "no-agent", "sys-bare")
    assert standing(world) == before
    world.expect(OUTSIDE)
    world.lab.install_agent("sys-bare")
    world.wait_applied("far")
    world.expect({Ask("laptop", SYS_NET, 443): says("far", 8443, LAPTOP)})
    world.lab.uninstall_agent("sys-bare")
    refuses(world, "far", "no-agent", "sys-bare")
    world.expect(OUTSIDE)
    world.lab.restart("sys-bare")
    refuses(world, "far", "no-agent", "sys-bare")
    world.settle()
    world.expect(OUTSIDE)
    assert [name for name, (_, rules) in standing(world).items() if "8443" in rules] == []


@pytest.mark.parametrize(
    ("qube", "address", "address6"),
    [("sys-firewall", "192.168.77.10", "2001:db8:77::a"), ("office", "192.168.77.11", "2001:db8:77::b")],
)
@pytest.mark.parametrize("source", ["", " srchost=any", " srchost=192.168.0.0/16"])
def test_network_cards_further_in_are_no_entrance(
    world: World, qube: str, address: str, address6: str, source: str
) -> None:
    """Who stands at a card of an inner net qube, or of the target, has not passed the entrance."""
    world.lab.plug(qube, "ens8", "guest", address)
    try:
        world.add("office", EXTERNAL + source)
        wanted = {Ask("laptop", SYS_NET, 443): says("office", 8443, LAPTOP)}
        world.expect(wanted | {Ask("visitor", a, port): SHUT for a in (address, address6) for port in (443, 8443)})
    finally:
        world.lab.unplug(qube, "ens8")
