# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Programs end and come again: agents, qubesd, QubesDB daemons; and a user who flushes nftables."""

import pytest

from tests.follow.world import FORWARDS, PATHS, World

OTHERS = tuple(forward for forward in FORWARDS if forward.qube != "work")
HOPS = ("sys-net", "sys-firewall", "work")


@pytest.mark.parametrize("action", ["kill", "restart"])
def test_agent_ends_and_comes_again(world: World, action: str) -> None:
    def on_every_hop() -> None:
        for qube in HOPS:
            world.lab.agent(qube, action)

    world.after(f"{action} of three agents", on_every_hop, PATHS)


def test_agent_that_missed_changes_catches_up(world: World) -> None:
    world.lab.agent("sys-firewall", "stop")
    world.allow("work")
    world.see(PATHS, forwards=OTHERS, dead=("sys-firewall",))
    world.after("agent starts again", lambda: world.lab.agent("sys-firewall", "start"), PATHS, forwards=OTHERS)


@pytest.mark.parametrize("qube", ["sys-firewall", "work"])
def test_u8_agent_is_missing_and_appears(world: World, qube: str) -> None:
    """Mistake: rules that silently do nothing, or are open half way, since one hop cannot carry them out."""
    behind = [name for name, path in PATHS.items() if qube in (name, *path)]

    def leave() -> None:
        world.lab.uninstall_agent(qube)
        # What the agent had loaded would stay until the next start.
        world.lab.restart(qube)

    world.after(f"agent of {qube} goes", leave, PATHS | dict.fromkeys(behind, ()), dead=(qube,))
    status = world.lab.api("work", "admin.vm.firewall.Get", "forward.status")
    assert f"hop={qube} state=problem reason=no-agent" in status
    world.after(f"agent of {qube} appears", lambda: world.lab.install_agent(qube), PATHS)


@pytest.mark.parametrize("action", ["kill", "restart"])
def test_qubesd_ends_and_comes_again(world: World, action: str) -> None:
    world.after(f"{action} of qubesd", lambda: world.lab.service("dom0", "qubesd", action), PATHS)


def test_what_happened_while_qubesd_was_dead_is_caught_up(world: World) -> None:
    """No event tells it: qubesd has to look at everything when it starts."""
    world.lab.service("dom0", "qubesd", "stop")
    world.lab.ask("destroy", name="sys-disp")
    world.after(
        "qubesd starts after a hop died",
        lambda: world.lab.service("dom0", "qubesd", "start"),
        PATHS | {"untrusted": ()},
    )
    world.after("the hop starts", lambda: world.lab.start("sys-disp"), PATHS)


@pytest.mark.parametrize("qube", HOPS)
def test_qubesdb_daemon_of_a_qube_ends_and_comes_again(world: World, qube: str) -> None:
    """Watches are lost without an error when a daemon restarts; what dom0 writes next must arrive all the same."""
    world.after(f"QubesDB in {qube}", lambda: world.lab.service(qube, "qubesdb-daemon", "kill"), PATHS)
    world.after("a removal after that", lambda: world.allow("work"), PATHS, forwards=OTHERS)


def test_dead_database_of_dom0_shuts_the_path_at_every_other_hop(world: World) -> None:
    """With dom0's side of a hop's QubesDB gone, that hop cannot be told anything until it restarts."""
    world.lab.kill_database("sys-firewall")
    world.allow("work")
    world.after("removal that one hop cannot hear", lambda: None, PATHS, forwards=OTHERS, dead=("sys-firewall",))
    assert world.ask("laptop", "192.168.1.10", 443) in ("timeout", "refused")
    world.after("restart of that hop", lambda: world.lab.restart("sys-firewall"), PATHS, forwards=OTHERS)


@pytest.mark.parametrize("what", ["custom", "table"])
@pytest.mark.parametrize("qube", ["sys-firewall", "work"])
def test_user_flushes_nftables(world: World, what: str, qube: str) -> None:
    world.after(f"flush {what} in {qube}", lambda: world.lab.flush(qube, what), PATHS)
    if what == "custom":
        listed = world.lab.run(qube, ["nft", "list", "table", "ip", "qubes"], capture_output=True, text=True).stdout
        assert listed.count('comment "qubes-port-forward"') == 2


def test_user_flushes_the_whole_ruleset(world: World) -> None:
    """Without Qubes' own firewall nothing of ours is loaded, and the status says why; a restart brings both back."""
    world.lab.flush("sys-firewall", "ruleset")
    world.wait_status("work", "state=no-base")
    assert (
        "DNAT" not in world.lab.run("sys-firewall", ["nft", "list", "ruleset"], capture_output=True, text=True).stdout
    )
    for port in (443, 7443):
        assert world.ask("laptop", "192.168.1.10", port) in ("timeout", "refused")
    world.after("restart after a flushed ruleset", lambda: world.lab.restart("sys-firewall"), PATHS)


def test_f28_a_net_qube_enforces_ordinary_rules_from_its_next_start_too(world: World) -> None:
    world.lab.stock_firewall("sys-firewall", "on")
    try:
        world.after("restart beside the stock firewall", lambda: world.lab.restart("sys-firewall"), PATHS)
        listed = world.lab.run("sys-firewall", ["nft", "list", "tables"], capture_output=True, text=True).stdout
        assert "table ip qubes-firewall\n" in listed
    finally:
        world.lab.stock_firewall("sys-firewall", "off")
