# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""qvm-port-forward in a whole chain: what it says is what clients meet, at the moment it says so."""

import json
import subprocess

from tests.chain.world import LAPTOP, PHONE, SHUT, SYS_NET, SYS_NET6, VISITOR, Ask, World, agents_stopped, says


def tool(world: World, *words: str) -> "subprocess.CompletedProcess[str]":
    return world.lab.run("dom0", ["qvm-port-forward", *words], capture_output=True, text=True, timeout=60)


def test_what_add_says_is_open_and_what_remove_says_is_shut(world: World) -> None:
    added = tool(world, "add", "work", "443:8443/tcp", "--from", "192.168.1.0/24", "--for", "1h", "--comment", "web")
    assert (added.returncode, added.stderr) == (0, "")
    assert added.stdout.startswith(f"Hosts in 192.168.1.0/24 can now reach work's port 8443 at tcp {SYS_NET}:443 until")
    world.expect(
        {
            Ask("laptop", SYS_NET, 443): says("work", 8443, LAPTOP),
            Ask("phone", SYS_NET, 443): says("work", 8443, PHONE),
            Ask("laptop", SYS_NET6, 443): SHUT,
        }
    )
    listed = tool(world, "list")
    assert (listed.returncode, listed.stderr) == (0, "")
    row = next(line for line in listed.stdout.splitlines() if line.startswith("work "))
    assert all(word in row.split() for word in ("f0", "443:8443/tcp", f"{SYS_NET}:443", "8443", "open", "web"))
    shown = json.loads(tool(world, "show", "work", "443", "--json").stdout)["forward"]
    assert shown["state"] == "open"
    assert [hop["state"] for hop in shown["hops"]] == ["applied"] * len(shown["hops"])
    assert shown["hops"][0]["hop"] == "sys-net"
    assert shown["hops"][-1]["listening"] == "yes"
    assert tool(world, "remove", "work", "443").returncode == 0
    world.expect({Ask("laptop", SYS_NET, 443): SHUT})
    assert tool(world, "list").stdout == "No forwards.\n"


def test_an_edit_and_a_pause_take_effect(world: World) -> None:
    assert tool(world, "add", "work", "443:8443/tcp", "--from", LAPTOP).returncode == 0
    edited = tool(world, "edit", "work", "443", "444:8443", "--anyone")
    assert edited.returncode == 0
    assert edited.stdout.startswith("Anyone can now reach work's port 8443 at tcp and udp ")
    world.expect(
        {
            Ask("laptop", SYS_NET, 443): SHUT,
            Ask("phone", SYS_NET, 444): says("work", 8443, PHONE),
            Ask("visitor", "192.168.77.10", 444, "udp"): says("work", 8443, VISITOR),
        }
    )
    assert tool(world, "pause", "work", "f0").returncode == 0
    world.expect({Ask("phone", SYS_NET, 444): SHUT})
    assert tool(world, "resume", "work", "f0").returncode == 0
    world.expect({Ask("phone", SYS_NET, 444): says("work", 8443, PHONE)})


def test_f6_who_has_not_confirmed_a_removal_is_named(world: World) -> None:
    """Mistake: that a port is shut is said as soon as the rule is gone from dom0."""
    ask = Ask("laptop", SYS_NET, 443)
    assert tool(world, "add", "work", "443:8443/tcp").returncode == 0
    with agents_stopped(world.lab, "sys-firewall"):
        done = tool(world, "pause", "work", "f0", "--wait", "1")
        silent = "sys-firewall has not confirmed it: the port may stay open until it does"
        assert (done.returncode, done.stdout, done.stderr) == (3, "", f"The forward is paused, but {silent}\n")
        world.expect({ask: SHUT})
    assert tool(world, "resume", "work", "f0").returncode == 0
    with agents_stopped(world.lab, "sys-net", "sys-firewall", "work"):
        done = tool(world, "remove", "work", "f0", "--wait", "1")
        assert (done.returncode, done.stdout) == (3, "")
        silent = "sys-net, sys-firewall and work have not confirmed it: the port may stay open until they do"
        assert done.stderr == f"The forward is removed, but {silent}\n"
        world.expect({ask: says("work", 8443, LAPTOP)})
    world.settle()
    world.expect({ask: SHUT})
    near = Ask("personal", world.ip["sys-firewall"], 444)
    assert tool(world, "add", "work", "444:8443/tcp", "--internal").returncode == 0
    with agents_stopped(world.lab, "sys-firewall", "work"):
        done = tool(world, "remove", "work", "f0", "--wait", "1")
        assert (done.returncode, "sys-firewall and work have not confirmed it" in done.stderr) == (3, True)
        world.expect({near: says("work", 8443, world.ip["personal"])})
    world.settle()
    world.expect({near: SHUT})


def test_a_free_port_is_picked_past_that_of_another_qube(world: World) -> None:
    assert tool(world, "add", "personal", "443:8443/tcp").returncode == 0
    refused = tool(world, "add", "work", "443:8443/tcp")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "is taken at 'sys-net'" in refused.stderr
    picked = tool(world, "add", "work", "443:8443/tcp", "--pick-port")
    assert picked.returncode == 0
    assert f"{SYS_NET}:1024" in picked.stdout
    world.expect({Ask("laptop", SYS_NET, 1024): says("work", 8443, LAPTOP)})


def test_the_hop_that_is_down_is_named(world: World) -> None:
    done = tool(world, "add", "work", "9:9000/tcp")
    assert done.returncode == 0
    assert "but nothing listens on port 9000 in work; start the server in work" in done.stdout


def test_what_would_be_is_shown_and_not_done(world: World) -> None:
    planned = tool(world, "plan", "work", "add", "443:8443/tcp")
    assert planned.returncode == 0
    assert "sys-net: hands IPv4 tcp port 443 that comes in by its uplink from its neighbours to " in planned.stdout
    assert planned.stdout.endswith("Nothing has been changed.\n")
    world.expect({Ask("laptop", SYS_NET, 443): SHUT})
