# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""What someone on the LAN finds who tries every port."""

from lab import probes
from tests.chain.world import SYS_NET, World


def test_scan_of_all_ports_finds_exactly_those_of_the_rules(world: World) -> None:
    """Three forwards of two qubes; sys-net's own services and all others of the qubes stay out of sight."""
    world.add("work", "forwardtype=external proto=tcp srcports=443 dstports=8443")
    world.add("work", "forwardtype=external srcports=50022 dstports=22")
    world.add("personal", "forwardtype=external proto=tcp srcports=5005 dstports=5005")
    world.replace("dmz", "forwardtype=internal proto=tcp srcports=4000 dstports=22")
    assert world.lab.call("laptop", probes.scan_tcp, SYS_NET) == [443, 5005, 50022]
