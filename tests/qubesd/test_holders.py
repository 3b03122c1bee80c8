# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Who has a port keeps it when forwards meet, through qubesd's API and over its restarts and those of the host."""

import pytest

from tests.qubesd.world import World, eventually

GET, SET = "admin.vm.firewall.Get", "admin.vm.firewall.Set+forward"
WEB = "action=forward forwardtype=external proto=tcp srcports=443-443 dstports=8443-8443\n"
TAKEN = "reason=conflict text=port is taken at 'sys-net' by external tcp port 443 of 'work'"


@pytest.mark.parametrize("boot", ["boot-1", "boot-2"], ids=["qubesd", "host"])
def test_f5_an_older_forward_that_moves_in_takes_no_open_port_also_after_a_restart(world: World, boot: str) -> None:
    """Mistake: age decides, so a change of one qube's net qube leads the clients of another one elsewhere."""
    world.set("personal", "netvm", "sys-other")
    world.api("personal", SET, WEB)
    world.api("work", SET, WEB)
    world.set("personal", "netvm", "sys-firewall")

    def told(qube: str) -> str:
        return world.api(qube, f"{GET}+forward.status")

    eventually(lambda: TAKEN in told("personal"), "the conflict of the newcomer")
    assert "reason=conflict" not in told("work")
    for _ in range(2):
        world.stop()
        (world.folder / "boot_id").write_text(f"{boot}\n")
        world.start()
        assert TAKEN in told("personal")
        assert "reason=conflict" not in told("work")
    world.api("work", SET, "")
    eventually(lambda: "reason=conflict" not in told("personal"), "the port is free")
