# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Real connections as dom0 sees them: listed, counted, ended one by one; and the elements of a dry run."""

from portfwd.api.connections import parse_connections
from portfwd.client.forward_state import State
from tests.api.reading import read_status
from tests.chain.world import LAPTOP, SYS_NET, Ask, World, says, wait_until

ENTRANCE, PORT, SECOND = 7411, 7412, 7413
GET, SET = "admin.vm.firewall.Get", "admin.vm.firewall.Set"
WEB = f"forwardtype=external proto=tcp srcports={ENTRANCE} dstports={PORT}"
SSH = f"forwardtype=external proto=tcp srcports={SECOND} dstports=8443"


def test_a_connection_is_listed_counted_and_ended_alone(world: World) -> None:
    world.add("work", WEB)
    held = world.hold("laptop", SYS_NET, ENTRANCE, "work", PORT)
    (client,) = parse_connections(world.lab.api("work", GET, "forward.connections")).told
    connection = client.connection
    assert (str(connection.client), connection.to) == (LAPTOP, PORT)
    (status,) = read_status(world.lab.api("dom0", GET, "forward.status"))
    # The server took this one connection and listens no more.
    assert (status.qube, status.state) == ("work", State.NO_SERVER)
    assert (status.total("hits"), status.total("connections")) == (1, 1)
    assert status.total("packets")
    assert SYS_NET in [str(address) for address in status.addresses]
    world.lab.api("work", SET, "forward.kill", f"{connection}\n")
    wait_until(lambda: not held.lives, lambda: "the end of the connection")
    assert parse_connections(world.lab.api("work", GET, "forward.connections")).told == ()
    (status,) = read_status(world.lab.api("work", GET, "forward.status"))
    assert status.state.passes, "the forward itself stays open"


def test_a_dry_run_tells_the_elements_of_each_hop_and_opens_nothing(world: World) -> None:
    before = {qube: world.ruleset(qube) for qube in ("sys-net", "sys-firewall", "work")}
    text = world.lab.api("work", GET, "forward.plan", f"action=forward {SSH}\n")
    for qube in before:
        elements = [line for line in text.splitlines() if line.startswith(f"hop={qube} element=")]
        assert any(f" {8443 if qube == 'work' else SECOND} " in line for line in elements), text
    assert "elements=unknown" not in text
    assert world.forwards("work") == []
    assert {qube: world.ruleset(qube) for qube in before} == before
    world.add("work", SSH)
    world.expect({Ask("laptop", SYS_NET, SECOND): says("work", 8443, LAPTOP)})
