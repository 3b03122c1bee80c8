# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Network cards of the outermost net qube: plugged, pulled out, renamed, on another network. Neighbours follow."""

import pytest

from tests.follow.world import World

HOME, GUESTS = "192.168.1.10", "192.168.77.10"


def test_u9_card_is_plugged_in_and_pulled_out(world: World) -> None:
    """Mistake: rules for the cards that were there, or for interface group 1, in which no card is."""
    world.lab.unplug("sys-net", "wls7")
    world.expect("guest", GUESTS, 443, "")
    world.expect("laptop", HOME, 443, "work port 8443 to 192.168.1.20")
    world.lab.plug("sys-net", "wls7", "guest", GUESTS)
    world.expect("guest", GUESTS, 443, "work port 8443 to 192.168.77.20")
    world.lab.plug("sys-net", "enx1", "guest", "192.168.77.11")
    world.expect("guest", "192.168.77.11", 443, "work port 8443 to 192.168.77.20")
    world.lab.unplug("sys-net", "enx1")


def test_card_gets_another_name(world: World) -> None:
    world.lab.rename("sys-net", "wls7", "wlan0")
    world.expect("guest", GUESTS, 443, "work port 8443 to 192.168.77.20")
    world.lab.rename("sys-net", "wlan0", "wls7")
    world.expect("guest", GUESTS, 443, "work port 8443 to 192.168.77.20")


def test_c8_card_gets_another_address_and_another_network(world: World) -> None:
    """Mistake: a rule pinned to the prefix of the LAN that was there when it was added."""
    world.lab.move("sys-net", "wls7", "guest", "192.168.77.12")
    world.expect("guest", "192.168.77.12", 443, "work port 8443 to 192.168.77.20")
    # The network of guests is no neighbour any more, also for a guest who knows the way.
    world.lab.move("sys-net", "wls7", "lan", "192.168.1.12")
    world.expect("laptop", "192.168.1.12", 443, "work port 8443 to 192.168.1.20")
    assert "192.168.77." not in world.neighbours()
    world.lab.move("sys-net", "wls7", "guest", GUESTS)
    world.expect("guest", GUESTS, 443, "work port 8443 to 192.168.77.20")
    world.expect("laptop", HOME, 443, "work port 8443 to 192.168.1.20")


@pytest.mark.parametrize("event", ["restart", "kill"])
def test_cards_that_changed_while_the_agent_was_away(world: World, event: str) -> None:
    world.lab.agent("sys-net", "stop")
    world.lab.move("sys-net", "wls7", "lan", "192.168.1.12")
    world.lab.agent("sys-net", "start")
    world.expect("laptop", "192.168.1.12", 443, "work port 8443 to 192.168.1.20")
    world.lab.move("sys-net", "wls7", "guest", GUESTS)
    world.lab.agent("sys-net", event)
    world.expect("guest", GUESTS, 443, "work port 8443 to 192.168.77.20")


def test_cards_outlive_the_restart_of_their_qube(world: World) -> None:
    world.lab.plug("sys-net", "enx1", "lan", "192.168.1.13")
    world.lab.restart("sys-net")
    world.expect("laptop", "192.168.1.13", 443, "work port 8443 to 192.168.1.20")
    world.lab.unplug("sys-net", "enx1")
