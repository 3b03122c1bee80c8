# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Chains of one to four net qubes, targets that are net qubes, disposable net qubes, and hops that are halted."""

import contextlib
from collections.abc import Iterator

import pytest

from tests.chain.world import (
    LAPTOP,
    LAPTOP6,
    PHONE,
    SHUT,
    SYS_NET,
    SYS_NET6,
    VISITOR,
    VISITOR6,
    Ask,
    World,
    says,
    wait_until,
)

WEB = "forwardtype=external proto=tcp srcports=443 dstports=8443"


@pytest.mark.parametrize(
    ("qube", "hops"),
    [
        ("dmz", ["sys-net"]),
        ("sys-firewall", ["sys-net"]),
        ("work", ["sys-net", "sys-firewall"]),
        ("untrusted", ["sys-net", "sys-disp"]),
        ("media", ["sys-net", "sys-firewall", "sys-proxy"]),
        ("deep", ["sys-net", "sys-firewall", "sys-proxy", "sys-inner"]),
    ],
)
def test_c17_chain_of_any_length(world: World, qube: str, hops: list[str]) -> None:
    """Mistake: a walk over the chain that only works for the usual two net qubes."""
    world.add(qube, "forwardtype=external srcports=7000-7002 dstports=5000-5002")
    path = [words["hop"] for words in world.status(qube) if (words["family"], words["proto"]) == ("4", "tcp")]
    assert path == [*hops, qube]
    world.expect(
        {
            Ask("laptop", SYS_NET, 7001): says(qube, 5001, LAPTOP),
            Ask("laptop", SYS_NET, 7002, "udp"): says(qube, 5002, LAPTOP),
            Ask("laptop", SYS_NET6, 7000): says(qube, 5000, LAPTOP6),
            Ask("laptop", SYS_NET6, 7002, "udp"): says(qube, 5002, LAPTOP6),
            Ask("laptop", SYS_NET, 5001): SHUT,
            Ask("laptop", SYS_NET, 7003): SHUT,
        }
    )


def test_all_chains_at_the_same_time(world: World) -> None:
    qubes = ["dmz", "sys-firewall", "work", "untrusted", "media", "deep"]
    for port, qube in enumerate(qubes, 4000):
        world.replace(qube, f"forwardtype=external srcports={port} dstports=8443")
    world.expect({Ask("laptop", SYS_NET, port): says(qube, 8443, LAPTOP) for port, qube in enumerate(qubes, 4000)})
    world.replace("media")
    world.expect(
        {
            Ask("laptop", SYS_NET, port): SHUT if qube == "media" else says(qube, 8443, LAPTOP)
            for port, qube in enumerate(qubes, 4000)
        }
    )


def test_c17_halted_hop_or_target_is_told_and_its_start_opens_the_port(world: World) -> None:
    """Mistake: a crash, or a rule that is lost, because some qube of the chain is not running when it is added."""
    for qube in ("sys-inner", "deep"):
        with halted(world, qube):
            done = world.command("deep", "add", "action=forward", *WEB.split())
            assert (done.returncode, done.stderr.rpartition(": ")[2]) == (0, f"'{qube}' is not running\n")
            (line,) = world.status("deep")
            assert (line["state"], line["hop"], line["reason"]) == ("problem", qube, "halted")
            world.expect({Ask("laptop", SYS_NET, 443): SHUT})
        world.wait_applied("deep")
        if qube == "deep":
            world.serve("deep")
        wait_until(lambda: answers(world, "deep"), lambda: "the page of deep")
        world.replace("deep")


def test_c2_disposable_net_qube_that_is_restarted(world: World) -> None:
    """Mistake: a rule that is kept inside a disposable net qube and is gone with it."""
    world.add("untrusted", WEB)
    world.expect({Ask("laptop", SYS_NET, 443): says("untrusted", 8443, LAPTOP)})
    with halted(world, "sys-disp"):
        world.expect({Ask("laptop", SYS_NET, 443): SHUT})
    world.wait_applied("untrusted")
    wait_until(lambda: answers(world, "untrusted"), lambda: "the page of untrusted")


def test_c3_rule_deleted_from_a_disposable_net_qube_does_not_come_back(world: World) -> None:
    """Mistake: a hook that stays in the disposable template, so that a deleted rule returns with the next boot."""
    world.add("untrusted", WEB)
    world.delete("untrusted", WEB)
    with halted(world, "sys-disp"):
        pass
    world.settle()
    assert world.entries("sys-disp") == {}
    world.expect({Ask("laptop", SYS_NET, 443): SHUT})


def test_c3_c4_nothing_of_a_rule_is_stored_in_any_qube(world: World) -> None:
    """Mistake: hooks or files in a qube: they outlive the rule, and a template gives them to every disposable."""
    find = ("find", "/rw", "/etc", "/var", "(", "-type", "f", "-o", "-type", "l", ")", "-newer", "/proc/1/cmdline")
    qubes = ("sys-net", "sys-disp", "sys-spare", "untrusted")
    before = {qube: world.output(qube, *find) for qube in qubes}
    world.add("untrusted", WEB)
    assert {qube: world.output(qube, *find) for qube in qubes} == before


def test_c4_other_net_qubes_get_nothing(world: World) -> None:
    """Mistake: rules in a shared disposable template, so that every disposable net qube runs those of all."""
    world.add("untrusted", WEB)
    assert {qube for qube in world.ip if world.entries(qube)} == {"sys-net", "sys-disp", "untrusted"}
    assert world.ip["untrusted"] in world.ruleset("sys-disp")
    table = world.output("sys-spare", "nft", "list", "table", "ip", "qubes-port-forward")
    assert "elements" not in table


def test_c5_target_that_is_restarted(world: World) -> None:
    """Mistake: the target's own input is opened by a hook that only net qubes run, so it is shut after a restart."""
    world.add("personal", WEB)
    with halted(world, "personal"):
        pass
    world.serve("personal")
    world.wait_applied("personal")
    world.expect({Ask("laptop", SYS_NET, 443): says("personal", 8443, LAPTOP)})


def test_c18_change_of_net_qube_leaves_nothing_behind(world: World) -> None:
    """Mistake: the entries stay in the old net qube, which goes on leading to an address that others may get."""
    world.add("work", WEB)
    before = world.ruleset("sys-firewall")
    world.lab.api("work", "admin.vm.property.Set", "netvm", "sys-spare")
    try:
        world.wait_applied("work")
        assert {qube for qube in world.ip if world.entries(qube)} == {"sys-net", "sys-spare", "work"}
        assert world.ip["work"] not in world.ruleset("sys-firewall")
        world.expect({Ask("laptop", SYS_NET, 443): says("work", 8443, LAPTOP)})
    finally:
        world.lab.api("work", "admin.vm.property.Set", "netvm", "sys-firewall")
    world.wait_applied("work")
    assert {qube for qube in world.ip if world.entries(qube)} == {"sys-net", "sys-firewall", "work"}
    assert world.ruleset("sys-firewall").count(world.ip["work"]) == before.count(world.ip["work"])
    world.expect({Ask("laptop", SYS_NET, 443): says("work", 8443, LAPTOP)})


def test_c19_restart_of_the_hop_that_is_farthest_away(world: World) -> None:
    """Mistake: only the direct clients of a net qube that starts get their entries written again."""
    world.add("media", WEB)
    with halted(world, "sys-net"):
        assert [words["reason"] for words in world.status("media")] == ["halted"]
    world.serve("sys-net")
    # The laboratory's cards have another MAC after a restart, which real ones do not: sys-net speaks first.
    world.ask({Ask("sys-net", host, 9, "udp"): SHUT for host in (LAPTOP, LAPTOP6, PHONE, VISITOR, VISITOR6)})
    world.wait_applied("media")
    wait_until(lambda: answers(world, "media"), lambda: "the page of media")


@contextlib.contextmanager
def halted(world: World, qube: str) -> Iterator[None]:
    """A qube that is down meanwhile."""
    world.stop(qube)
    try:
        yield
    finally:
        world.start(qube)


def answers(world: World, qube: str) -> bool:
    ask = Ask("laptop", SYS_NET, 443)
    return world.ask({ask: ""})[ask].startswith(f"{qube} port 8443 to {LAPTOP} ")
