# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Start, stop, crash and restart of each hop alone and of several in any order; disposable net qubes."""

import pytest

from tests.follow.world import PATHS, World


def without(*qubes: str) -> dict[str, tuple[str, ...]]:
    """The paths, when these qubes are down."""
    return {qube: () if {qube, *path} & set(qubes) else path for qube, path in PATHS.items()}


def inside(qube: str) -> dict[str, tuple[str, ...]]:
    """The outermost net qube is no part of an internal forward's path."""
    return {"work": PATHS["work"]} if qube == "sys-net" else {}


@pytest.mark.parametrize("qube", ["work", "sys-firewall", "sys-disp", "sys-net"])
def test_c2_c5_c19_crash_of_one_hop_and_its_start(world: World, qube: str) -> None:
    """Mistakes: what was stored in the hop is gone with it; only the direct clients are served when it comes back."""
    world.after(f"{qube} crashes", lambda: world.lab.kill(qube), without(qube), inside=inside(qube))
    if qube in PATHS:
        assert f"hop={qube} state=problem reason=halted" in world.lab.api(
            qube, "admin.vm.firewall.Get", "forward.status"
        )
    world.after(f"{qube} starts", lambda: world.lab.start(qube), PATHS)


@pytest.mark.parametrize("qube", ["sys-firewall", "sys-net"])
def test_shutdown_of_one_hop_and_its_start(world: World, qube: str) -> None:
    world.after(f"{qube} shuts down", lambda: world.lab.stop(qube, force=True), without(qube), inside=inside(qube))
    world.after(f"{qube} starts", lambda: world.lab.start(qube), PATHS)


@pytest.mark.parametrize("order", [("sys-net", "sys-firewall"), ("sys-firewall", "sys-net"), ("work",)])
def test_several_hops_crash_and_come_in_any_order(world: World, order: tuple[str, ...]) -> None:
    """The start of a qube starts the net qubes above it."""

    def crash() -> None:
        for qube in ("sys-net", "sys-firewall", "work"):
            world.lab.kill(qube)

    def start() -> None:
        for qube in (*order, "sys-net", "sys-firewall", "work"):
            world.lab.start(qube)

    world.after("three hops crash", crash, without("sys-net", "work", "sys-firewall"))
    world.after("and start, " + ", ".join(order), start, PATHS)


@pytest.mark.parametrize("qube", ["work", "sys-firewall"])
def test_pause_keeps_everything(world: World, qube: str) -> None:
    """A paused qube is silent, not gone: its rules are there the moment that it goes on."""
    world.after(f"{qube} pauses", lambda: world.lab.pause(qube), PATHS, packets=False)
    world.after("and goes on", lambda: world.lab.unpause(qube), PATHS)


def test_rule_that_changes_while_its_qube_is_paused(world: World) -> None:
    world.lab.pause("sys-firewall")
    world.allow("work")
    world.after("paused hop misses a removal", lambda: None, PATHS | {"work": ()}, packets=False)
    assert world.ask("laptop", "192.168.1.10", 443) in ("timeout", "refused")
    world.after("and goes on", lambda: world.lab.unpause("sys-firewall"), PATHS | {"work": ()})
