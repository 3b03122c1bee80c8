# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Qubes come and go: clones, removed and made again, disposables of a template with forwards, preloaded ones."""

import time

from tests.follow.world import DEADLINE, FORWARDS, PATHS, Forward, World


def test_u4_clone_has_no_forwards_and_takes_no_port(world: World) -> None:
    """Mistake: the clone brings the rules along, and two qubes claim one port."""

    def clone() -> None:
        world.lab.clone("work", "work-copy")
        world.lab.start("work-copy")

    world.after("clone, and its start", clone, PATHS)
    assert world.lab.api("work-copy", "admin.vm.firewall.Get", "forward") == ""
    world.lab.kill("work-copy")
    world.after("clone goes", lambda: world.lab.remove("work-copy"), PATHS)


def test_u14_qube_made_again_with_the_old_name_and_address(world: World) -> None:
    """Mistake: rules of removed qubes stay, and match whoever gets their address."""
    shop = Forward("shop", "external", ("tcp",), 8080, 8443)

    def make() -> None:
        world.lab.create("shop", "sys-firewall")
        world.lab.set("shop", "ip", "10.137.0.99")
        world.lab.start("shop")

    make()
    world.allow("shop", shop)
    world.see(PATHS | {"shop": ("sys-net", "sys-firewall")}, forwards=(*FORWARDS, shop), packets=False)
    world.after("qube crashes", lambda: world.lab.kill("shop"), PATHS)
    world.after("it is removed", lambda: world.lab.remove("shop"), PATHS)
    world.after("and made again with its address", make, PATHS)
    assert world.lab.api("shop", "admin.vm.firewall.Get", "forward") == ""
    assert world.ask("laptop", "192.168.1.10", 8080) in ("timeout", "refused")


def test_u3_disposables_of_a_template_with_forwards(world: World) -> None:
    """Mistake: each disposable copies the rules of its template and claims the same port."""
    names: list[str] = []
    world.after("two disposables start", lambda: names.extend(world.lab.disposable("work") for _ in range(2)), PATHS)
    for name in names:
        assert world.lab.api(name, "admin.vm.firewall.Get", "forward") == ""
    own = Forward(names[0], "external", ("tcp",), 8080, 8443)
    world.allow(own.qube, own)
    world.see(PATHS | {own.qube: ("sys-net", "sys-firewall")}, forwards=(*FORWARDS, own), packets=False)
    world.after("disposable with a forward ends", lambda: world.lab.kill(own.qube), PATHS)
    other = Forward(names[1], "external", ("tcp",), 8080, 8443)
    world.after(
        "another one takes the port",
        lambda: world.allow(other.qube, other),
        PATHS | {other.qube: ("sys-net", "sys-firewall")},
        forwards=(*FORWARDS, other),
        packets=False,
    )


def test_u7_preloaded_disposable_opens_when_it_is_used(world: World) -> None:
    """Mistake: a preloaded disposable runs, so its rules open before anybody uses it; or they never do."""
    world.lab.preload("personal", 1)
    name = wait_for_preloaded(world, "personal")
    assert world.lab.api(name, "admin.vm.firewall.Get", "forward") == ""
    world.lab.feature("personal", "preload-dispvm-max", "0")
    world.see(PATHS)
    world.lab.set(name, "netvm", "sys-disp")
    early = Forward(name, "external", ("tcp",), 8080, 8443)
    world.after("rule of a preloaded disposable", lambda: world.allow(name, early), PATHS)
    taken: list[str] = []
    world.after(
        "it is used, with another net qube than it was started with",
        lambda: taken.append(world.lab.disposable("personal")),
        PATHS | {name: ("sys-net", "sys-disp")},
        forwards=(*FORWARDS, early),
        packets=False,
    )
    assert taken == [name]
    world.serve(name)
    assert world.ask("laptop", "192.168.1.10", 8080).startswith(f"{name} port 8443")
    world.after("it ends", lambda: world.lab.kill(name), PATHS)


def wait_for_preloaded(world: World, template: str) -> str:
    """The first disposable of a template that is preloaded and paused."""
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        listed = world.lab.api("dom0", "admin.vm.List")
        paused = [line.split(" ")[0] for line in listed.splitlines() if "class=DispVM state=Paused" in line]
        if paused and "preload-dispvm-completed" in world.lab.api(paused[0], "admin.vm.feature.List"):
            return paused[0]
    raise AssertionError(f"no preloaded disposable of {template}")
