# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""A change of net qube: of the qube itself and of net qubes above it; running, halted and paused; to none and back."""

import pytest

from tests.follow.world import PATHS, World

BY_DISP = ("sys-net", "sys-disp")


def test_c18_running_qube_switches_and_comes_back(world: World) -> None:
    """Mistake: the entries stay in the old net qube."""
    world.after(
        "netvm of a running qube", lambda: world.lab.set("work", "netvm", "sys-disp"), PATHS | {"work": BY_DISP}
    )
    world.after("and back", lambda: world.lab.set("work", "netvm", "sys-firewall"), PATHS)


def test_c18_many_switches_in_a_row(world: World) -> None:
    """Mistake: a change that comes while the last one is being carried out is lost, or done in the wrong order."""

    def there_and_back() -> None:
        for netvm in ("sys-disp", "sys-firewall", "", "sys-disp", "sys-firewall"):
            world.lab.set("work", "netvm", netvm)

    world.after("five changes of netvm", there_and_back, PATHS)


def test_to_none_and_back(world: World) -> None:
    world.after("netvm to none", lambda: world.lab.set("work", "netvm", ""), PATHS | {"work": ()})
    assert "reason=no-net-qube" in world.lab.api("work", "admin.vm.firewall.Get", "forward.status")
    world.after("and back", lambda: world.lab.reset("work", "netvm"), PATHS)


def test_halted_qube_switches(world: World) -> None:
    world.after("qube halts", lambda: world.lab.stop("work"), PATHS | {"work": ()})
    world.after("netvm of a halted qube", lambda: world.lab.set("work", "netvm", "sys-disp"), PATHS | {"work": ()})
    world.after("it starts", lambda: world.lab.start("work"), PATHS | {"work": BY_DISP})
    world.after("and back", lambda: world.lab.set("work", "netvm", "sys-firewall"), PATHS)


def test_u7_paused_qube_switches_when_it_goes_on(world: World) -> None:
    """Mistake: the change that Qubes puts off until the qube goes on is not followed, or done twice."""

    def while_paused() -> None:
        world.lab.pause("work")
        world.lab.set("work", "netvm", "sys-disp")

    world.after("netvm of a paused qube", while_paused, PATHS | {"work": BY_DISP}, packets=False)
    world.after("it goes on", lambda: world.lab.unpause("work"), PATHS | {"work": BY_DISP})
    world.after("and back", lambda: world.lab.set("work", "netvm", "sys-firewall"), PATHS)


def test_u7_paused_qube_goes_to_none(world: World) -> None:
    world.lab.pause("work")
    world.after("paused qube to none", lambda: world.lab.set("work", "netvm", ""), PATHS | {"work": ()}, packets=False)
    world.after("it goes on", lambda: world.lab.unpause("work"), PATHS | {"work": ()})
    world.after("and back", lambda: world.lab.set("work", "netvm", "sys-firewall"), PATHS)


@pytest.mark.parametrize("netvm", ["sys-disp", ""])
def test_net_qube_switches_and_all_behind_it_follow(world: World, netvm: str) -> None:
    """Mistake: only the qube whose property changes is looked at, not those behind it."""
    path = ("sys-net", "sys-disp", "sys-firewall") if netvm else ()
    paths = PATHS | {"work": path, "personal": path}
    if not netvm:
        # Without an uplink the outermost net qube is sys-firewall itself.
        paths = PATHS | {"work": ("sys-firewall",), "personal": ("sys-firewall",)}
    world.after(
        "netvm of a net qube", lambda: world.lab.set("sys-firewall", "netvm", netvm), paths, packets=bool(netvm)
    )
    world.after("and back", lambda: world.lab.set("sys-firewall", "netvm", "sys-net"), PATHS)


def test_disposable_net_qube_switches(world: World) -> None:
    path = ("sys-net", "sys-firewall", "sys-disp")
    world.after(
        "netvm of a disposable net qube",
        lambda: world.lab.set("sys-disp", "netvm", "sys-firewall"),
        PATHS | {"untrusted": path},
    )
    world.after("and back", lambda: world.lab.set("sys-disp", "netvm", "sys-net"), PATHS)


def test_default_net_qube_changes(world: World) -> None:
    world.lab.reset("work", "netvm")
    world.after(
        "default_netvm",
        lambda: world.lab.api("dom0", "admin.property.Set", "default_netvm", "sys-disp"),
        PATHS | {"work": BY_DISP},
    )
    world.after("and back", lambda: world.lab.api("dom0", "admin.property.Set", "default_netvm", "sys-firewall"), PATHS)
