# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""How forwards fare, through the API of qubesd: what each call takes, and what a hostile qube can do to it.

The qubes here have databases but no machines, so none of them answers when it is asked.
"""

import pytest

from portfwd.api.forwards import parse_forwards
from portfwd.client.forward_state import State
from portfwd.wire import limits
from portfwd.wire.acknowledgement import WAY_OUT
from portfwd.wire.entry import Commit
from portfwd.wire.values import QubeName
from tests.api.reading import read_plan, read_status
from tests.qubesd.world import World, eventually

GET, SET = "admin.vm.firewall.Get", "admin.vm.firewall.Set"
STATUS, PLAN = f"{GET}+forward.status", f"{GET}+forward.plan"
WEB = "action=forward forwardtype=external proto=tcp srcports=443-443 dstports=8443-8443\n"
NEAR = "action=forward forwardtype=internal srcports=80-80 dstports=80-80\n"
PATH = ("sys-net", "sys-firewall", "work")


def applied(world: World, *names: str) -> None:
    """Acknowledge what stands in databases, as agents do."""
    for name in names:
        database = world.qdb(name)
        eventually(lambda db=database: db.read(limits.BASE), f"a commit in {name}")
        for path in database.list(limits.ENTRIES):
            database.write(limits.STATUS + path.removeprefix(limits.ENTRIES), "ok")
        generation = Commit.parse((database.read(limits.BASE) or b"").decode()).generation
        database.write(limits.STATUS + WAY_OUT, "uplink")
        database.write(limits.STATUS_BASE, f"version=1 generation={generation} state=applied")


def states(world: World, dest: str) -> dict[str, State]:
    """What the tools would make of the answer: how each qube's only forward fares."""
    return {status.qube: status.state for status in read_status(world.api(dest, STATUS))}


def test_dom0_tells_of_all_qubes_what_each_tells_of_itself(world: World) -> None:
    world.api("personal", "admin.vm.Start")
    world.running("personal")
    world.api("work", f"{SET}+forward", WEB)
    world.api("personal", f"{SET}+forward", NEAR)
    applied(world, *PATH, "personal")
    eventually(
        lambda: states(world, "dom0") == {"work": State.SERVER_UNKNOWN, "personal": State.SERVER_UNKNOWN}, "both open"
    )
    whole = world.api("dom0", STATUS)
    each = world.api("work", STATUS) + world.api("personal", STATUS)
    assert sorted(whole.splitlines()) == sorted(each.splitlines())
    assert whole.count("\nqube=") + whole.startswith("qube=") == 2


def test_each_call_takes_its_destination_and_payload_and_nothing_else(world: World) -> None:
    wrong = ("ProtocolError", "unexpected payload")
    for call in (GET, f"{GET}+forward", STATUS, f"{GET}+forward.connections", f"{GET}+forward.hops"):
        assert world.error("work", call, WEB) == wrong
    assert world.error("dom0", STATUS, WEB) == wrong
    nowhere = ("ProtocolError", "expected destination to not be AdminVM")
    for call in (GET, f"{GET}+forward", PLAN, f"{GET}+forward.connections", f"{GET}+forward.hops"):
        assert world.error("dom0", call) == nowhere
    assert world.error("dom0", f"{SET}+forward.kill", WEB)[0] == "ProtocolError"
    for call in ("forward.statuses", "forward.", "check", "status", "plan", "kill"):
        assert world.error("work", f"{GET}+{call}") == ("ProtocolError", "unexpected argument")
    assert world.error("work", f"{SET}+kill", WEB) == ("ProtocolError", "unexpected argument")


def test_a_dry_run_is_answered_as_the_change_and_changes_nothing(world: World) -> None:
    world.api("work", f"{SET}+forward", WEB)
    applied(world, *PATH)
    before = [world.read(name, limits.BASE) for name in PATH]
    text = world.api("work", PLAN, WEB + NEAR)
    rules = parse_forwards(WEB + NEAR)
    assert [len(status.hops) for status in read_plan(text, QubeName("work"), rules)] == [3, 4]
    assert [line for line in text.splitlines() if line.startswith("hop=")] == [
        f"hop={name} elements=unknown" for name in PATH
    ]
    taken = world.error("personal", PLAN, WEB)
    assert taken == world.error("personal", f"{SET}+forward", WEB)
    assert "taken" in taken[1]
    assert world.error("work", PLAN, "action=forward \u00e9\n")[0] == "QubesValueError"
    assert world.api("work", f"{GET}+forward") == WEB
    assert [world.read(name, limits.BASE) for name in PATH] == before
    assert len(read_plan(world.api("work", PLAN), QubeName("work"), parse_forwards(WEB))) == 1


@pytest.mark.parametrize("line", ["family=4 proto=tcp client=192.168.1.20 port=1 to=8443\n", "family=4\n", "\u00e9"])
def test_what_cannot_be_ended_is_an_error_with_words(world: World, line: str) -> None:
    name, text = world.error("work", f"{SET}+forward.kill", line)
    assert name == "QubesValueError"
    assert text.isascii()
    assert "%" not in text


def test_connections_of_a_qube_that_does_not_answer(world: World) -> None:
    assert world.api("work", f"{GET}+forward.connections") == "", "it has no forwards"
    world.api("work", f"{SET}+forward", WEB)
    assert "does not answer" in world.error("work", f"{GET}+forward.connections")[1]


def test_a_flood_of_status_costs_nobody_a_word(world: World) -> None:
    world.api("work", f"{SET}+forward", WEB)
    applied(world, *PATH)
    flood = world.qdb("sys-firewall")
    for number in range(3000):
        flood.write(f"{limits.STATUS}{number:016x}.4.tcp", f"\x1b[2J{number}" * 100)
    flood.write(limits.STATUS + "uplinks", "\x1b[2J" * 700)
    text = world.api("dom0", STATUS)
    assert text.isascii()
    assert "\x1b" not in text
    assert [status.state for status in read_status(text)] == [State.SERVER_UNKNOWN]


def test_an_address_that_changes_while_the_qube_runs_waits_for_its_restart(world: World) -> None:
    world.api("work", f"{SET}+forward", WEB)
    applied(world, *PATH)
    assert states(world, "work") == {"work": State.SERVER_UNKNOWN}
    commit = world.read("sys-firewall", limits.BASE)
    world.set("work", "ip", "10.137.9.9")
    eventually(lambda: world.read("sys-firewall", limits.BASE) != commit, "the new address")
    applied(world, *PATH)
    (fault,) = (status.fault for status in read_status(world.api("work", STATUS)))
    assert fault is not None
    assert (fault.hop, fault.reason) == ("work", "restart-needed")
    world.api("work", "admin.vm.Kill")
    world.forget_qdb("work")
    world.api("work", "admin.vm.Start")
    world.running("work")
    # Each event of its start may have dom0 commit anew, which our part of an agent has to acknowledge again.
    eventually(lambda: applied(world, *PATH) or states(world, "work") == {"work": State.SERVER_UNKNOWN}, "its restart")


def test_siblings_whose_own_rules_refuse_an_internal_forward_are_named(world: World) -> None:
    world.api("personal", "admin.vm.Start")
    world.running("personal")
    world.api("work", f"{SET}+forward", NEAR)
    (before,) = read_status(world.api("work", STATUS))
    world.api("personal", SET, "action=accept proto=tcp dstports=443-443\naction=drop\n")
    (after,) = read_status(world.api("work", STATUS))
    assert (before.siblings, after.siblings) == ({}, {"personal": "refused"})
    world.api("personal", SET, "action=accept proto=tcp\naction=drop\n")
    assert " sibling=personal outbound=partly\n" in world.api("work", STATUS)
