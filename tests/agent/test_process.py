# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The agent as it runs in a qube: a program, QubesDB on the other side, and whatever happens around it."""

import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from portfwd.agent.rules.skeleton import COMMENT, TABLE
from portfwd.wire import limits
from portfwd.wire.acknowledgement import Acknowledgement, AgentState
from portfwd.wire.answers.connections import Ended, parse_result
from portfwd.wire.answers.preview import Preview, format_request
from portfwd.wire.answers.report import Report
from portfwd.wire.values import Family, Proto
from tests.agent.kernel_world import KernelWorld
from tests.agent.machine import run, write
from tests.agent.process import RunningAgent
from tests.agent.world import (
    HOP,
    LAPTOP,
    PHONE,
    SIBLING_AT,
    V4,
    WORK,
    Attempt,
    Life,
    Node,
    Reached,
    accept,
    check,
    relay,
    through,
)

RULE, TARGET = through(relay(443))
NAMED, NAMED_TARGET = through(relay(80, source="name:phone.example.org"))
OPEN = Attempt(LAPTOP, 443)
HOSTS = "127.0.0.1 localhost\n192.168.7.3 phone.example.org\n"


@pytest.fixture
def agent(kernel: KernelWorld) -> Iterator[RunningAgent]:
    kernel.reset()
    running = RunningAgent(kernel, HOSTS)
    running.open_target([TARGET, accept(80), accept(22)])
    yield running
    running.close()


def is_open(agent: RunningAgent, attempt: Attempt = OPEN) -> bool:
    return agent.world.probe([attempt], 0) != [None]


def waits_for(agent: RunningAgent, listed: str, text: str) -> None:
    agent.world.wait_until(lambda: text in agent.world.nft(Node.HOP, listed), 20)


def test_a_commit_opens_and_a_removal_shuts(agent: RunningAgent) -> None:
    check(agent.world, shut=[OPEN])
    agent.publish([RULE])
    check(agent.world, {OPEN: 443}, [Attempt(LAPTOP, 80)])
    agent.publish([RULE, relay(80)])
    check(agent.world, {OPEN: 443, Attempt(LAPTOP, 80): 80})
    handle = agent.world.open(OPEN)
    agent.publish([])
    assert agent.world.client_speaks(handle) is Life.RESET
    check(agent.world, shut=[OPEN, Attempt(LAPTOP, 80)])


def test_the_status_tells_dom0(agent: RunningAgent) -> None:
    clash = relay("400-500", rule=None)
    agent.publish([RULE, clash])
    assert agent.acknowledged() == Acknowledgement(1, AgentState.APPLIED)
    status = agent.dom0.multiread(limits.STATUS)
    words = {status[limits.STATUS + entry.key] for entry in (RULE, clash)}
    assert words == {b"ok", b"clash"}
    assert b"192.168.7.1/24" in status[limits.STATUS + "uplinks"].split()
    agent.publish([])
    assert agent.dom0.list(limits.STATUS) == [limits.STATUS + "uplinks", limits.STATUS + "way-out"]


def test_dom0_asks_the_running_agent(agent: RunningAgent) -> None:
    agent.publish([RULE])
    check(agent.world, {OPEN: 443, Attempt(PHONE, 443): 443})
    for number in (None, signal.SIGKILL, signal.SIGTERM):
        if number is not None:
            agent.end(number)
            agent.start()
        told = Report.parse(agent.ask(limits.REPORT_SERVICE)).relay(RULE.key)
        assert told is not None
        assert told.hits == 2
    agent.publish([])
    assert Report.parse(agent.ask(f"{limits.REPORT_SERVICE}+")).entries == {}
    assert parse_result(agent.ask(limits.KILL_SERVICE, "nonsense")) is Ended.REFUSED
    wanted = relay(22)
    preview = Preview.parse(agent.ask(limits.PREVIEW_SERVICE, format_request([wanted])))
    assert any(text.startswith("ip up-port { tcp . 22 ") for text in preview.elements)
    check(agent.world, shut=[Attempt(LAPTOP, 22)])


def test_entries_without_commit_do_nothing(agent: RunningAgent) -> None:
    agent.write([RULE])
    check(agent.world, shut=[OPEN])
    agent.commit([RULE])
    agent.world.wait_until(lambda: is_open(agent), 20)


def test_half_a_set_changes_nothing_and_then_shuts_everything(agent: RunningAgent) -> None:
    agent.publish([RULE])
    missing = relay(22)
    begin = time.monotonic()
    for _ in range(3):
        # More of them in a row: dom0 rewrites several times, and we look each time in the middle.
        generation = agent.commit([RULE, missing])
        reached = agent.world.probe([OPEN, Attempt(LAPTOP, 22)], 1)
        # On a machine that is so slow that the time is over, nothing can be said.
        if time.monotonic() - begin < 1.9:
            assert reached == [Reached(WORK[V4], 443, LAPTOP.addresses[V4]), None]
    agent.world.wait_until(lambda: not is_open(agent), 20)
    assert time.monotonic() - begin > 1.9
    agent.world.wait_until(lambda: agent.acknowledged() == Acknowledgement(generation, AgentState.INCOMPLETE), 20)
    agent.publish([RULE, missing])
    check(agent.world, {OPEN: 443, Attempt(LAPTOP, 22): 22})


def test_a_restart_of_the_database_is_survived(agent: RunningAgent) -> None:
    """What was committed meanwhile is applied, and the watch is made anew."""
    agent.publish([RULE])
    handle = agent.world.open(OPEN)
    agent.stop_daemon()
    check(agent.world, {OPEN: 443})
    more = [RULE, relay(80)]
    agent.write(more)
    generation = agent.commit(more)
    agent.start_daemon()
    agent.world.wait_until(lambda: agent.acknowledged() == Acknowledgement(generation, AgentState.APPLIED), 20)
    check(agent.world, {OPEN: 443, Attempt(LAPTOP, 80): 80})
    assert agent.world.client_speaks(handle) is Life.ALIVE
    agent.publish([])
    check(agent.world, shut=[OPEN, Attempt(LAPTOP, 80)])


def test_a_lost_database_is_told_once_and_not_at_each_try(agent: RunningAgent) -> None:
    """Mistake: a line per second in the journal for as long as it lasts."""
    agent.publish([RULE])
    agent.stop_daemon()
    time.sleep(3.5)
    agent.start_daemon()
    agent.world.wait_until(lambda: "QubesDB is back" in agent.log(), 20)
    assert agent.log().count("no QubesDB") == 1
    check(agent.world, {OPEN: 443})


def test_a_silent_database_does_not_hold_the_agent(agent: RunningAgent) -> None:
    """Mistake: the agent waits for an answer, and repairs and ends nothing."""
    agent.publish([RULE])
    check(agent.world, {OPEN: 443})
    with agent.silent_daemon():
        agent.world.nft(Node.HOP, "flush chain ip qubes custom-forward")
        waits_for(agent, "list chain ip qubes custom-forward", COMMENT)
        agent.world.nft(Node.HOP, "flush chain ip qubes custom-forward")
        waits_for(agent, "list chain ip qubes custom-forward", COMMENT)
        check(agent.world, {OPEN: 443})
    agent.publish([])
    check(agent.world, shut=[OPEN])


def test_a_dom0_that_describes_the_qube_anew_is_told_everything_again(agent: RunningAgent) -> None:
    """Its daemon may have been started anew, and has lost what the agent has said."""
    agent.publish([RULE])
    lost = [limits.STATUS + RULE.key, limits.STATUS + "way-out", limits.STATUS_BASE]
    told = [agent.dom0.read(path) for path in lost]
    for path in lost:
        agent.dom0.write(path, "")
    agent.dom0.write("/name", "hop")
    agent.world.wait_until(lambda: [agent.dom0.read(path) for path in lost] == told, 20)


def test_a_reload_resolves_names_again(agent: RunningAgent) -> None:
    agent.publish([RULE, NAMED])
    agent.world.wait_until(lambda: is_open(agent, Attempt(PHONE, 80)), 20)
    handle = agent.world.open(Attempt(PHONE, 80))
    agent.reload(HOSTS.replace("192.168.7.3", "192.168.7.2"))
    agent.world.wait_until(lambda: is_open(agent, Attempt(LAPTOP, 80)), 20)
    # The door has moved; its old connections are ended right after that.
    agent.world.wait_until(lambda: agent.world.client_speaks(handle) is Life.RESET, 20)
    check(agent.world, {OPEN: 443}, [Attempt(PHONE, 80)])


def test_a_killed_agent_leaves_everything_and_its_successor_goes_on(agent: RunningAgent) -> None:
    agent.publish([RULE, NAMED])
    agent.world.wait_until(lambda: is_open(agent, Attempt(PHONE, 80)), 20)
    handle, by_name = agent.world.open(OPEN), agent.world.open(Attempt(PHONE, 80))
    agent.end(signal.SIGKILL)
    check(agent.world, {OPEN: 443, Attempt(PHONE, 80): 80}, [Attempt(LAPTOP, 80)])
    before = agent.world.ruleset(Node.HOP)
    agent.start()
    generation = agent.commit([RULE, NAMED])
    agent.world.wait_until(lambda: agent.acknowledged() == Acknowledgement(generation, AgentState.APPLIED), 20)
    assert agent.world.client_speaks(handle) is Life.ALIVE
    assert agent.world.client_speaks(by_name) is Life.ALIVE
    assert agent.world.ruleset(Node.HOP) == before
    agent.publish([])
    assert agent.world.client_speaks(handle) is Life.RESET
    check(agent.world, shut=[OPEN, Attempt(PHONE, 80)])


def test_what_was_removed_while_the_agent_was_dead_is_shut_and_cut(agent: RunningAgent) -> None:
    agent.publish([RULE])
    handle = agent.world.open(OPEN)
    agent.end(signal.SIGKILL)
    agent.write([])
    agent.commit([])
    agent.start()
    agent.world.wait_until(lambda: not is_open(agent), 20)
    agent.world.wait_until(lambda: agent.world.client_speaks(handle) is Life.RESET, 20)


def test_an_end_by_the_service_manager_leaves_the_forwards(agent: RunningAgent) -> None:
    agent.publish([RULE])
    assert agent.end(signal.SIGTERM) == 0
    check(agent.world, {OPEN: 443})


def test_flushed_chains_are_repaired_unasked(agent: RunningAgent) -> None:
    agent.publish([RULE])
    agent.world.nft(Node.HOP, "flush chain ip qubes custom-forward")
    waits_for(agent, "list chain ip qubes custom-forward", COMMENT)
    check(agent.world, {OPEN: 443})
    agent.world.nft(Node.HOP, f"flush table ip {TABLE}")
    waits_for(agent, f"list chain ip {TABLE} entrance", "up-port")
    agent.world.nft(Node.HOP, f"delete table ip {TABLE}")
    agent.world.wait_until(lambda: is_open(agent), 20)


@pytest.mark.parametrize("family", list(Family))
def test_f28_a_forward_is_not_reported_open_before_there_is_an_interface_to_its_qube(
    agent: RunningAgent, family: Family
) -> None:
    """The script for a vif runs beside the agent, and may fail."""
    hop = agent.world.machine("hop")
    route = [f"-{int(family)}", "route", "{}", str(WORK[family]), "dev", "vif1.0"]
    hop.call(run, ["ip", *(word.format("del") for word in route)])
    try:
        entry, _ = through(relay(443, family=family))
        agent.publish([entry])
        key = limits.STATUS + entry.key
        assert agent.dom0.read(key) == b"no-route"
    finally:
        hop.call(run, ["ip", *(word.format("add") for word in route)])
    agent.world.wait_until(lambda: agent.dom0.read(key) == b"ok", 20)


def test_f28_a_forward_whose_interface_goes_and_comes_in_steps_says_so(agent: RunningAgent) -> None:
    """A qube that is restarted, or whose script failed: DOWN and in no group first."""
    hop = agent.world.machine("hop")
    four, last = through(relay(443))
    six, _ = through(relay(443, family=Family.V6))
    other = replace(relay(22), to=SIBLING_AT[V4])
    agent.publish([four, six, other])
    agent.open_target([last])

    def words() -> list[bytes | None]:
        return [agent.dom0.read(limits.STATUS + entry.key) for entry in (four, six, other)]

    assert words() == [b"ok"] * 3
    hop.call(run, ["ip", "link", "set", "vif1.0", "down", "group", "0"])
    agent.world.wait_until(lambda: words() == [b"no-route", b"no-route", b"ok"], 20)
    hop.call(run, ["ip", "link", "set", "vif1.0", "up"])
    for family in Family:
        ip = ["ip", f"-{int(family)}"]
        hop.call(run, [*ip, "address", "replace", f"{HOP[family]}/{family.bits}", "dev", "vif1.0"])
        hop.call(run, [*ip, "route", "replace", str(WORK[family]), "dev", "vif1.0"])
    assert words() == [b"no-route", b"no-route", b"ok"], "it is no interface to a qube yet"
    hop.call(run, ["ip", "link", "set", "vif1.0", "group", "2"])
    agent.world.wait_until(lambda: words() == [b"ok"] * 3, 20)
    check(agent.world, {OPEN: 443})


@pytest.mark.parametrize(("family", "switch"), [(4, "ipv4/ip_forward"), (6, "ipv6/conf/all/forwarding")])
def test_f28_a_forward_is_not_reported_open_before_its_net_qube_forwards(
    agent: RunningAgent, family: int, switch: str
) -> None:
    """qubes-network runs beside the agent, and may come later."""
    hop = agent.world.machine("hop")
    entry, _ = through(relay(443, family=Family(family)))
    hop.call(write, f"/proc/sys/net/{switch}", "0")
    try:
        agent.publish([entry])
        key = limits.STATUS + entry.key
        assert agent.dom0.read(key) == b"not-forwarding"
    finally:
        hop.call(write, f"/proc/sys/net/{switch}", "1")
    agent.world.wait_until(lambda: agent.dom0.read(key) == b"ok", 20)


def test_the_base_firewall_comes_back_after_a_flush_of_everything(agent: RunningAgent) -> None:
    agent.publish([RULE])
    agent.world.nft(Node.HOP, "flush ruleset")
    key = limits.STATUS + RULE.key
    agent.world.wait_until(lambda: agent.dom0.read(key) == b"no-base-firewall", 20)
    check(agent.world, shut=[OPEN])
    agent.world.nft(
        Node.HOP,
        "table ip qubes { chain custom-input {\n}\nchain custom-forward {\n}\n"
        "chain forward { type filter hook forward priority filter; policy accept;\n"
        "jump custom-forward\nct state related,established accept\noifgroup 2 drop\n}\n}",
    )
    agent.world.wait_until(lambda: agent.dom0.read(key) == b"ok", 20)
    check(agent.world, {OPEN: 443})


def test_expiry_cuts_by_itself(agent: RunningAgent) -> None:
    soon = relay(443, expire=int(agent.world.now()) + 2)
    agent.publish([soon])
    handle = agent.world.open(OPEN)
    key = limits.STATUS + soon.key
    agent.world.wait_until(lambda: agent.dom0.read(key) == b"expired", 20)
    assert agent.world.client_speaks(handle) is Life.RESET
    check(agent.world, shut=[OPEN])


def memory(agent: RunningAgent) -> int:
    """Megabytes that the agent holds."""
    lines = Path(f"/proc/{agent.pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS:")).split()[1]) >> 10


def test_f17_no_shifted_range_makes_the_agent_grow(agent: RunningAgent) -> None:
    agent.publish([relay(22)])
    before = memory(agent)
    wide = [relay("1-30000", "30001-60000", proto=proto, family=family) for proto in Proto for family in Family]
    agent.publish(wide)
    assert memory(agent) - before < 10
    begin = time.monotonic()
    assert Preview.parse(agent.ask(limits.PREVIEW_SERVICE, format_request(wide))).elements == ()
    assert time.monotonic() - begin < 10
    ways = [(proto, family) for proto in Proto for family in Family]
    for first in range(1, 41):
        ports = (f"{first}-{first + 1023}", f"{first + 5000}-{first + 6023}")
        agent.publish([relay(*ports, proto=proto, family=family) for proto, family in ways])
    assert memory(agent) - before < 40, "what is gone is not kept"


@pytest.mark.parametrize("lost", ["no database", "half a set", "an empty database"])
def test_f15_a_clock_that_was_set_back_extends_nothing_after_a_start_without_entries(
    agent: RunningAgent, lost: str
) -> None:
    """The anchor says three seconds, the wall clock, which was set back, an hour."""
    ending, target = through(relay(443, expire=int(time.time()) + 3600))
    agent.open_target([target])
    agent.publish([])
    agent.end(signal.SIGKILL)
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text()
    until = time.clock_gettime(time.CLOCK_BOOTTIME) + 5
    (agent.kept / "ends").write_text(f"{boot_id}{ending.key} {ending.expire} {until!r}\n")
    if lost == "half a set":
        agent.write([ending])
        agent.start()
        agent.world.wait_until(lambda: b"incomplete" in (agent.dom0.read(limits.STATUS_BASE) or b""), 20)
    else:
        if lost == "an empty database":
            agent.dom0.rm(limits.BASE)
        else:
            agent.stop_daemon()
        agent.start()
        if lost == "no database":
            agent.start_daemon()
    agent.write([ending])
    agent.commit([ending])
    agent.world.wait_until(lambda: agent.dom0.read(limits.STATUS + ending.key) == b"expired", 20)
    assert time.clock_gettime(time.CLOCK_BOOTTIME) - until < 30
    check(agent.world, shut=[OPEN])


def test_neighbours_follow_the_network(agent: RunningAgent) -> None:
    near = relay(443, source="neighbours")
    agent.publish([near])
    check(agent.world, {OPEN: 443})
    hop = agent.world.machine("hop")
    hop.call(run, ["ip", "address", "add", "192.168.7.1/32", "dev", "ens6"])
    hop.call(run, ["ip", "address", "del", "192.168.7.1/24", "dev", "ens6"])
    hop.call(run, ["ip", "route", "add", "192.168.7.0/24", "dev", "ens6"])
    try:
        agent.world.wait_until(lambda: not is_open(agent), 20)
    finally:
        hop.call(run, ["ip", "address", "add", "192.168.7.1/24", "dev", "ens6"])
        hop.call(run, ["ip", "address", "del", "192.168.7.1/32", "dev", "ens6"])
    agent.world.wait_until(lambda: is_open(agent), 20)
