# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Mistakes that other port forwarding for Qubes has made, each as a test that fails on it.

C2 to C5 and C17 to C19 stand in test_chains.py, C9 and C24 in test_removal.py, C22 in test_internal.py.
"""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.dom0 import exchange
from tests.chain.world import (
    LAPTOP,
    LAPTOP6,
    LONG,
    MASK,
    PHONE,
    ROUTER,
    SERVER,
    SERVER6,
    SHUT,
    SYS_NET,
    SYS_NET6,
    SYS_NET_GUEST,
    TARGETS,
    VISITOR,
    Ask,
    World,
    router_forwards,
    says,
    wait_until,
)

WEB = "forwardtype=external proto=tcp srcports=443-443 dstports=8443-8443"
HOPS = ("sys-net", "sys-firewall", "work")
PATH_MAX = 63
"""Bytes of a QubesDB path without the final zero (qubesdb.h)."""


def test_c1_success_means_open_and_refusal_has_an_exit_code(world: World) -> None:
    """Mistake: success is reported and nothing is forwarded; or something was refused and the exit code is 0."""
    added = world.command("work", "add", "action=forward", *WEB.split())
    assert (added.returncode, added.stderr) == (0, "")
    world.settle()
    world.expect({Ask("laptop", SYS_NET, 443): says("work", 8443, LAPTOP)})
    taken = world.command("personal", "add", "action=forward", *WEB.split())
    assert taken.returncode == 1
    assert "work" in taken.stderr
    senseless = world.command("personal", "add", "action=forward", *WEB.replace("8443", "80443").split())
    assert senseless.returncode == 2
    assert world.forwards("personal") == []
    world.expect({Ask("laptop", SYS_NET, 443): says("work", 8443, LAPTOP)})


def test_c10_loading_again_and_again_adds_nothing(world: World) -> None:
    """Mistake: every load appends, so that a rule stands there as often as it was loaded."""
    world.add("work", WEB)
    world.add("personal", "forwardtype=external srcports=7000-7002 dstports=5000-5002 srchost=laptop")
    before = {hop: world.ruleset(hop) for hop in HOPS}
    world.lab.call("dom0", reload_100_times, "work")
    world.settle()
    assert {hop: world.ruleset(hop) for hop in HOPS} == before
    world.replace("work")
    world.add("work", WEB)
    assert {hop: world.ruleset(hop) for hop in HOPS} == before


def test_c11_the_base_firewall_that_drops_lets_the_forward_through(world: World) -> None:
    """Mistake: an accept in a table of one's own; the base chain comes later and drops."""
    world.add("work", WEB)
    for hop in ("sys-net", "sys-firewall"):
        chain = world.output(hop, "nft", "--stateless", "list", "chain", "ip", "qubes", "forward")
        assert chain.rstrip(" \t\n}").endswith("oifgroup 2 counter drop")
    world.expect(
        {
            Ask("laptop", SYS_NET, 443): says("work", 8443, LAPTOP),
            Ask("laptop", SYS_NET6, 443): says("work", 8443, LAPTOP6),
        }
    )


def test_c12_the_targets_own_input_is_open_for_this_port_only(world: World) -> None:
    """Mistake: everything on the way is open, but the qube itself drops what comes in."""
    world.add("work", WEB)
    assert "policy drop" in world.output("work", "nft", "list", "chain", "ip", "qubes", "input")
    work = world.ip["work"]
    world.expect(
        {
            Ask("laptop", SYS_NET, 443): says("work", 8443, LAPTOP),
            Ask("sys-firewall", work, 22): SHUT,
            Ask("sys-firewall", work, 631): SHUT,
            Ask("sys-firewall", work, 8443, "udp"): SHUT,
        }
    )


def test_c13_three_qubes_with_three_rules_each_behind_one_firewall(world: World) -> None:
    """Mistake: a key without the qube in it: the first rule of one qube overwrites the first rule of another."""
    wanted: dict[Ask, str] = {}
    for hundred, qube in enumerate(("work", "personal", LONG), 40):
        world.replace(qube, *(f"forwardtype=external srcports={hundred}0{n} dstports={5000 + n}" for n in range(3)))
        for n in range(3):
            wanted[Ask("laptop", SYS_NET, hundred * 100 + n)] = says(qube, 5000 + n, LAPTOP)
            wanted[Ask("phone", SYS_NET, hundred * 100 + n, "udp")] = says(qube, 5000 + n, PHONE)
    world.expect(wanted)


def test_c14_ipv6_is_switched_off_and_on_while_ipv4_goes_on(world: World) -> None:
    """Mistake: the pass for IPv6 removes the IPv4 rules just written, or hops get the other family's address."""
    world.add("work", WEB.replace("8443-8443", "9001"))
    world.add("work", WEB.replace("443-443", "444", 1))
    held = world.hold("laptop", SYS_NET, 443, "work", 9001)
    v4, v6 = Ask("laptop", SYS_NET, 444), Ask("laptop", SYS_NET6, 444)
    both = {v4: says("work", 8443, LAPTOP), v6: says("work", 8443, LAPTOP6)}
    world.expect(both)
    with ipv6_off(world, "work"):
        world.expect(both | {v6: SHUT})
    world.expect(both)
    assert held.lives


def test_c15_rules_for_different_families_do_not_disturb_each_other(world: World) -> None:
    """Mistake: one IPv4 rule that is met while IPv6 is loaded stops the loading of all."""
    world.replace(
        "work",
        f"forwardtype=external proto=tcp srcports=441 dstports=8443 srchost={LAPTOP}",
        f"forwardtype=external proto=tcp srcports=442 dstports=8443 srchost={LAPTOP6}",
        "forwardtype=external proto=tcp srcports=443 dstports=8443 srchost=laptop",
        "forwardtype=external proto=tcp srcports=444 dstports=8443 srchost=nobody.invalid",
        "forwardtype=external proto=tcp srcports=445 dstports=8443 srchost=::/0",
        "forwardtype=external proto=tcp srcports=446 dstports=8443 srchost=any",
        "forwardtype=internal proto=tcp srcports=447 dstports=8443",
    )
    open4, open6 = (441, 443, 446), (442, 443, 445, 446)
    wait_until(lambda: world.states("work", 443) == {"applied"}, lambda: "the name laptop resolved")
    world.expect(
        {
            Ask("laptop", SYS_NET, port): says("work", 8443, LAPTOP) if port in open4 else SHUT
            for port in range(441, 448)
        }
        | {
            Ask("laptop", SYS_NET6, port): says("work", 8443, LAPTOP6) if port in open6 else SHUT
            for port in range(441, 448)
        }
    )


def test_c16_both_protocols_on_both_network_cards(world: World) -> None:
    """Mistake: a loop over cards and protocols of which only the last combination is applied."""
    world.add("work", "forwardtype=external srcports=443 dstports=8443")
    world.expect(
        {
            Ask("laptop", SYS_NET, 443, "tcp"): says("work", 8443, LAPTOP),
            Ask("laptop", SYS_NET, 443, "udp"): says("work", 8443, LAPTOP),
            Ask("visitor", SYS_NET_GUEST, 443, "tcp"): says("work", 8443, VISITOR),
            Ask("visitor", SYS_NET_GUEST, 443, "udp"): says("work", 8443, VISITOR),
        }
    )


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("accept 1.2.3.4 tcp 443", "action=accept dst4=1.2.3.4/32 proto=tcp dstports=443-443"),
        ("drop example.com udp 1000-1010", "action=drop dsthost=example.com proto=udp dstports=1000-1010"),
        ("action=drop proto=icmp", "action=drop proto=icmp"),
    ],
)
def test_c20_ordinary_rules_are_typed_as_always(world: World, words: str, line: str) -> None:
    """Mistake: the new words take places in the old positional order."""
    done = world.command("work", "add", *words.split())
    assert (done.returncode, done.stderr) == (0, "")
    try:
        assert world.lab.api("work", "admin.vm.firewall.Get").splitlines() == ["action=accept", line]
        assert world.forwards("work") == []
        assert world.command("work", "del", *words.split()).returncode == 0
    finally:
        world.lab.api("work", "admin.vm.firewall.Set", payload="action=accept\n")


@pytest.mark.parametrize(
    "words",
    [
        "action=forward",
        "action=forward forwardtype=external",
        "action=accept srcports=443",
        "action=forward forwardtype=external proto=tcp srcports=443 srcports=444",
        "action=forward forwardtype=external proto=icmp srcports=443",
    ],
)
def test_c20_senseless_forwards_are_refused(world: World, words: str) -> None:
    """Mistake: the check of what a rule needs never runs, on the client or on the server."""
    done = world.command("work", "add", *words.split())
    assert done.returncode == 2
    assert "error" in done.stderr
    assert world.forwards("work") == []


def test_c21_longest_name_ipv6_and_many_rules_fit_into_qubesdb(world: World) -> None:
    """Mistake: a QubesDB path with the name of the qube and its address, which is longer than the 63 bytes it may."""
    world.replace(LONG, *(f"forwardtype=external proto=tcp srcports={20000 + n} dstports=8443" for n in range(200)))
    for hop in ("sys-net", "sys-firewall", LONG):
        entries = world.entries(hop)
        assert len(entries) == 400
        assert max(map(len, entries)) <= PATH_MAX
    world.expect(
        {
            Ask("laptop", SYS_NET, 20000): says(LONG, 8443, LAPTOP),
            Ask("laptop", SYS_NET6, 20199): says(LONG, 8443, LAPTOP6),
            Ask("laptop", SYS_NET, 20200): SHUT,
        }
    )


def test_c25_by_default_not_everyone_may_come(world: World) -> None:
    """Mistake: a rule that says nothing of its clients is open to the whole internet."""
    with router_forwards(world, 443):
        world.add("work", WEB)
        world.expect(
            {
                Ask("laptop", SYS_NET, 443): says("work", 8443, LAPTOP),
                Ask("server", ROUTER, 443): SHUT,
                Ask("server", SYS_NET6, 443): SHUT,
            }
        )
        near = world.output("sys-net", "nft", "--stateless", "list", "set", "ip", "qubes-port-forward", "near")
        assert sorted(re.findall(r'"(\w+)" \. ([0-9./]+)', near)) == [
            ("ens6", "192.168.1.0/24"),
            ("wls7", "192.168.77.0/24"),
        ]
        world.replace("work", f"{WEB} srchost=any")
        world.expect(
            {
                Ask("server", ROUTER, 443): says("work", 8443, SERVER),
                Ask("server", SYS_NET6, 443): says("work", 8443, SERVER6),
            }
        )


def test_c26_only_the_port_and_no_kernel_setting(world: World) -> None:
    """Mistake: the whole qube is exposed, masquerading ends, or proxy ARP is turned on for an uplink."""
    hops = ("sys-net", "dmz")
    settings = {hop: world.lab.call(hop, kernel_settings) for hop in hops}
    dmz, dmz6 = world.ip["dmz"], world.ip6["dmz"]
    world.add("dmz", WEB)
    assert {hop: world.lab.call(hop, kernel_settings) for hop in hops} == settings
    with contextlib.ExitStack() as stack:
        # Nothing but sys-net stands between the laptop and dmz, whose owner lets everything in.
        stack.enter_context(route_through_sys_net(world, dmz, dmz6))
        for family in ("ip", "ip6"):
            stack.enter_context(users_own_rule(world, "dmz", family, "custom-input", "accept"))
        shut = {Ask("laptop", host, port): SHUT for host in (dmz, dmz6) for port in (22, 443, 631, 8443)}
        shut |= {Ask("laptop", SYS_NET, port): SHUT for port in (22, 631, 8443)}
        world.expect(
            shut
            | {
                Ask("sys-net", dmz, 22): says("dmz", 22, world.ip["sys-net"]),
                Ask("laptop", SYS_NET, 443): says("dmz", 8443, LAPTOP),
                Ask("laptop", SYS_NET6, 443): says("dmz", 8443, LAPTOP6),
            }
        )
        world.serve("laptop", words=("--tcp", "7500"), stack=stack)
        world.expect({Ask("dmz", LAPTOP, 7500): says("laptop", 7500, SYS_NET)})


def test_c29_qubes_that_see_another_address_of_themselves(world: World) -> None:
    """Mistake: a rule names the address that others use for a qube, which it never sees itself (net.fake-ip)."""
    assert f"{MASK}/32" in world.output("masked", "ip", "address", "show", "eth0")
    world.replace("masked", WEB)
    world.replace("veiled", WEB.replace("443-443", "444", 1))
    world.expect(
        {
            Ask("laptop", SYS_NET, 443): says("masked", 8443, LAPTOP),
            Ask("laptop", SYS_NET, 444): says("veiled", 8443, LAPTOP),
            Ask("laptop", SYS_NET, 8443): SHUT,
        }
    )


def test_u1_u2_ordinary_edits_neither_see_nor_lose_forwards(world: World) -> None:
    """Mistake: a forward among the ordinary rules: the stock editor takes it for damage, and deletes it when saving."""
    world.add("work", WEB)
    rules = world.lab.api("work", "admin.vm.firewall.Get")
    assert rules == "action=accept\n"
    before = world.forwards("work")
    try:
        world.lab.api("work", "admin.vm.firewall.Set", payload="action=accept dst4=1.2.3.4/32\naction=drop\n")
        world.settle()
        assert world.forwards("work") == before
        world.expect({Ask("laptop", SYS_NET, 443): says("work", 8443, LAPTOP)})
    finally:
        world.lab.api("work", "admin.vm.firewall.Set", payload=rules)


def test_u12_users_own_rules_in_the_custom_chains_stay(world: World) -> None:
    """Mistake: the custom chains are flushed or filled anew; they belong to the user."""
    places = [("sys-firewall", "custom-forward"), ("work", "custom-input")]
    rule = f"ip saddr {PHONE} counter drop"
    with contextlib.ExitStack() as stack:
        for qube, chain in places:
            stack.enter_context(users_own_rule(world, qube, "ip", chain, rule))
        before = [listing(world, *place) for place in places]
        world.replace("work", WEB)
        world.expect({Ask("laptop", SYS_NET, 443): says("work", 8443, LAPTOP), Ask("phone", SYS_NET, 443): SHUT})
        for qube, chain in places:
            delete_rule(world, qube, "ip", chain, "qubes-port-forward")
            wait_until(lambda p=(qube, chain): "qubes-port-forward" in listing(world, *p), lambda: "our own rule again")  # type: ignore[misc]
        world.replace("work")
        assert [listing(world, *place) for place in places] == before


def test_own_services_of_every_qube_on_the_way_stay_shut(world: World) -> None:
    for port, qube in enumerate(TARGETS[:-1], 4000):
        world.replace(qube, f"forwardtype=external srcports={port} dstports=5000")
    for proto in ("tcp", "udp"):
        world.expect(
            {Ask("laptop", SYS_NET, port, proto): SHUT for port in (22, 631, 8443, 5000, 5001)}
            | {Ask("sys-net", world.ip["sys-firewall"], port, proto): SHUT for port in (22, 631, 8443)}
        )


def reload_100_times(qube: str) -> None:
    """In dom0."""
    for _ in range(100):
        assert exchange(f"admin.vm.firewall.Reload+ dom0 name {qube}\0".encode()) == b"0\0"


def kernel_settings() -> dict[str, str]:
    """Inside a qube: what forwarding and address resolution depend on."""
    root = Path("/proc/sys/net")
    files = [root / "ipv4/ip_forward", *root.glob("ipv4/conf/*/*"), *root.glob("ipv6/conf/*/*")]
    return {str(path): path.read_text() for path in files if path.name not in ("stable_secret",)}


@contextlib.contextmanager
def ipv6_off(world: World, qube: str) -> Iterator[None]:
    """The qube's feature ipv6, as a user would unset it."""
    world.lab.api(qube, "admin.vm.feature.Set", "ipv6", "")
    try:
        world.settle()
        yield
    finally:
        world.lab.api(qube, "admin.vm.feature.Remove", "ipv6")
        world.settle()


@contextlib.contextmanager
def route_through_sys_net(world: World, *addresses: str) -> Iterator[None]:
    """Someone on the LAN who knows the addresses behind sys-net."""
    for address in addresses:
        world.output("laptop", "ip", "route", "add", address, "via", SYS_NET6 if ":" in address else SYS_NET)
    try:
        yield
    finally:
        for address in addresses:
            world.output("laptop", "ip", "route", "delete", address)


@contextlib.contextmanager
def users_own_rule(world: World, qube: str, family: str, chain: str, rule: str) -> Iterator[None]:
    """A rule that the user has written into a custom chain."""
    world.output(qube, "nft", f'insert rule {family} qubes {chain} {rule} comment "user"')
    try:
        yield
    finally:
        delete_rule(world, qube, family, chain, "user")


def delete_rule(world: World, qube: str, family: str, chain: str, comment: str) -> None:
    """Delete the one rule with that comment."""
    listed = world.output(qube, "nft", "-a", "list", "chain", family, "qubes", chain)
    (handle,) = re.findall(rf'comment "{comment}" # handle (\d+)', listed)
    world.output(qube, "nft", f"delete rule {family} qubes {chain} handle {handle}")


def listing(world: World, qube: str, chain: str) -> str:
    """An IPv4 chain of the base firewall."""
    return world.output(qube, "nft", "--stateless", "list", "chain", "ip", "qubes", chain)
