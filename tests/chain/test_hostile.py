# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""A hostile qube on a path, the target or the entrance: what a user sees of it, and of everybody else's forwards.

The qube answers every call badly, or fills its QubesDB with rubbish; the user types qvm-port-forward in dom0.
"""

import contextlib
import json
import subprocess
import time
from typing import Any

import pytest

from portfwd.api.forwards import parse_forwards
from portfwd.wire import limits
from portfwd.wire.values import QubeName
from tests.chain.held import Held
from tests.chain.hostile import BAD, DESERTS, MARK, MOST, STRAYS, answering, lies, peak_memory, spoilt
from tests.chain.world import LAPTOP, LONG, PHONE, SYS_NET, Ask, World, says, wait_until

SECONDS = 15.0
"""A command that asks qubes once or twice: a second for each, and programs that start on a loaded machine."""
CHECK_SECONDS = 60.0
"""Two at the same time: one probe goes after the other, and a hop has three seconds for each of three things."""
MEMORY_MAX = 64 << 10
"""kB by which the memory of qubesd may grow, whatever a qube sends: an answer has less than one MB."""
WEB, HELD = (443, 8443), (7451, 7452)
OTHER, INSIDE, OTHER_HELD = (444, 8443), (445, 8443), (7461, 7462)
"""Ports of the forwards of work, and of personal."""
CASES = [("work", kind) for kind in BAD]
# What an entrance is asked goes the same ways in dom0; these differ in what they hold up.
CASES += [("sys-net", kind) for kind in ("garbage", "endless lines", "silent", "half")]


Limits = dict[str, float]
"""Commands of qvm-port-forward, and how many seconds each may take; the quick ones first."""


def run(world: World, commands: Limits) -> "list[subprocess.CompletedProcess[str]]":
    """Type commands at the same time; all end in time, and nothing but text is printed."""
    begin = time.monotonic()
    done = []
    with contextlib.ExitStack() as stack:
        started = []
        for command in commands:
            argv = ["qvm-port-forward", *command.split()]
            process = world.lab.popen("dom0", argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            stack.enter_context(process)
            stack.callback(process.kill)
            started.append(process)
        for (command, seconds), process in zip(commands.items(), started, strict=True):
            out, err = (text.decode("latin-1") for text in process.communicate(timeout=60))
            took = time.monotonic() - begin
            assert took < seconds, f"{command}: {took:.1f} seconds"
            for text in (out, err):
                assert all(c == "\n" or " " <= c <= "~" for c in text), (command, text)
                assert MARK not in text, (command, text)
                assert "Traceback" not in text, (command, text)
            done.append(subprocess.CompletedProcess(command, process.returncode, out, err))
    return done


Facts = dict[tuple[str, int], dict[str, Any]]


Rows = dict[tuple[str, str], list[str]]


def facts(world: World) -> Facts:
    """What `list --json` says of every forward, without what passes with time."""
    [listed] = run(world, {"list --json": SECONDS})
    return _facts(listed)


def facts_and_rows(world: World) -> tuple[Facts, Rows]:
    """The same, and the table, by qube and number."""
    as_json, listed = run(world, {"list --json": SECONDS, "list": SECONDS})
    assert (listed.returncode, listed.stderr) == (0, "")
    rows = {(words[0], words[1]): words for line in listed.stdout.splitlines()[1:] if (words := line.split())}
    return _facts(as_json), rows


def _facts(listed: "subprocess.CompletedProcess[str]") -> Facts:
    assert (listed.returncode, listed.stderr) == (0, "")
    found = {(one["qube"], one["number"]): one for one in json.loads(listed.stdout)["forwards"]}
    for one in found.values():
        del one["last_hit"]
        for hop in one["hops"]:
            del hop["last_hit"]
    return found


def external(ports: tuple[int, int]) -> str:
    return f"forwardtype=external proto=tcp srcports={ports[0]} dstports={ports[1]}"


def internal(ports: tuple[int, int]) -> str:
    return external(ports).replace("external", "internal")


def rule_id(qube: str, rule: str) -> str:
    [parsed] = parse_forwards(f"action=forward {rule}\n")
    return parsed.id(QubeName(qube))


def used(world: World) -> tuple[Held, Facts, Rows]:
    """Forwards of work and of personal with some traffic, an open connection to each; what the tool says of them."""
    world.replace("work", external(WEB), external(HELD))
    world.replace("personal", external(OTHER), internal(INSIDE), external(OTHER_HELD))
    world.expect(
        {
            Ask("laptop", SYS_NET, WEB[0]): says("work", WEB[1], LAPTOP),
            Ask("laptop", SYS_NET, OTHER[0]): says("personal", OTHER[1], LAPTOP),
            Ask("phone", SYS_NET, OTHER[0]): says("personal", OTHER[1], PHONE),
            Ask(LONG, world.ip["sys-firewall"], INSIDE[0]): says("personal", INSIDE[1], world.ip[LONG]),
        }
    )
    held = world.hold("laptop", SYS_NET, HELD[0], "work", HELD[1])
    world.hold("laptop", SYS_NET, OTHER_HELD[0], "personal", OTHER_HELD[1])
    wanted = {
        ("work", 0): ("open", 1, 0),
        ("work", 1): ("no-server", 1, 1),
        ("personal", 0): ("open", 2, 0),
        ("personal", 1): ("open", 1, 0),
        ("personal", 2): ("no-server", 1, 1),
    }

    def told() -> dict[tuple[str, int], tuple[object, ...]]:
        return {key: (one["state"], one["hits"], one["open_connections"]) for key, one in facts(world).items()}

    wait_until(lambda: told() == wanted, lambda: f"{wanted}: {told()}")
    return (held, *facts_and_rows(world))


def others_are_right(now: Facts, before: Facts, hostile: str, *, counted: bool) -> None:
    """Forwards that do not touch the hostile qube are told as before; of the rest what it has not told is not known.

    `counted`: it has told nothing, else what it has told may be anything.
    """
    assert set(now) == set(before)
    for key, one in before.items():
        if hostile not in {hop["hop"] for hop in one["hops"]}:
            assert now[key] == one
            continue
        for told, was in zip(now[key]["hops"], one["hops"], strict=True):
            if told["hop"] != hostile:
                assert told == was
            elif counted:
                assert {told[name] for name in ("hits", "packets", "bytes", "open_connections")} == {None}
                assert told["listening"] == (None if told["kind"] == "relay" else "unknown")


def healthy_again(world: World, before: Facts) -> None:
    """All states are those of the beginning, and numbers are told; work's own have gone on."""

    def states(found: Facts) -> dict[tuple[str, int], object]:
        return {
            key: [one["state"], one["hits"], one["fault"], *((h["state"], h["listening"]) for h in one["hops"])]
            for key, one in found.items()
        }

    found: list[Facts] = []

    def healthy() -> bool:
        found[:] = [facts(world)]
        return states(found[0]) == states(before)

    wait_until(healthy, lambda: f"{states(before)}: {states(found[0])}")
    assert None not in [one["packets"] for one in found[0].values()]


@pytest.mark.parametrize(("qube", "kind"), CASES)
def test_bad_answers_cost_only_the_qubes_own_words(world: World, qube: str, kind: str) -> None:
    held, before, table = used(world)
    memory = world.lab.call("dom0", peak_memory)
    with answering(world, qube, BAD[kind]):
        now, listed = facts_and_rows(world)
        others_are_right(now, before, qube, counted=True)
        # Every hop says that it has applied; only of the server nothing is known.
        assert now["work", 0]["state"] == ("server-unknown" if qube == "work" else "open")
        assert listed["personal", "f1"] == table["personal", "f1"]
        assert qube == "sys-net" or [listed[key] for key in listed if key[0] == "personal"] == [
            table[key] for key in table if key[0] == "personal"
        ]
        # No traffic, no connections, no comment.
        assert (listed["work", "f0"][-3:] == ["-", "-", "-"]) == (qube == "work"), listed
        # All at the same time: what the qube does not answer is waited for once.
        kill = {f"kill work {peer(held, world)}": SECONDS} if qube == "work" else {}
        done = run(world, kill | TOLD | CHECKED)
        if qube == "work":
            failed_to_kill(done.pop(0), held)
        the_tool_says_what_is_unknown(done[: len(TOLD)], qube)
        check_names_nobody(done[len(TOLD) :], qube)
    assert world.lab.call("dom0", peak_memory) - memory < MEMORY_MAX
    healthy_again(world, before)
    kill_works(world, held)


TOLD = dict.fromkeys(("show work f0", "show work f0 --json", "plan work"), 2 * SECONDS)
CHECKED = dict.fromkeys(("check work f0", "check work f0 --json"), CHECK_SECONDS)


def the_tool_says_what_is_unknown(done: "list[subprocess.CompletedProcess[str]]", qube: str) -> None:
    """Of what the commands TOLD have printed."""
    shown, as_json, planned = done
    assert (shown.returncode, as_json.returncode, planned.returncode) == (0, 0, 0)
    told = json.loads(as_json.stdout)
    assert (told["connections"] is None) == (qube == "work")
    for one in (shown, as_json):
        assert ("Note: the open connections are not known" in one.stderr) == (qube == "work")
    assert ("server unknown" in shown.stdout) == (qube == "work")
    assert "(work: unclear)" not in shown.stdout
    assert (told["forward"]["hits"] is None) == (qube == "sys-net")
    head, _, tail = planned.stdout.partition(f"nft elements of {qube}:\n")
    assert tail.startswith("    not known: its agent does not answer\n"), planned.stdout
    assert f"nft elements of {qube}" not in head
    assert planned.stdout.count("not known") == 1
    assert "nft elements of sys-firewall:\n    ip" in planned.stdout


def check_names_nobody(done: "list[subprocess.CompletedProcess[str]]", qube: str) -> None:
    """A hop that cannot be looked into is told as that by the commands CHECKED, and is no fault."""
    text, as_json = done
    assert (text.returncode, as_json.returncode) == (3, 3), text
    assert (text.stderr, as_json.stderr) == ("", "")
    [checked] = json.loads(as_json.stdout)["checked"]
    assert (checked["opens"], checked["fault"]) == (None, None)
    assert text.stdout.splitlines()[-1] == "  Whether packets pass could not be found out."
    results = {(finding["hop"], finding["result"]) for finding in checked["findings"]}
    assert (qube, "unknown") in results
    assert f"  ?    {qube}: " in text.stdout
    assert {result for hop, result in results if hop != qube} <= {"ok", "hint"}
    assert qube == "sys-net" or ("sys-net", "ok") in results


@pytest.mark.parametrize("qube", ["work", "sys-net"])
def test_a_hop_that_deserts_a_probe_is_named_as_that(world: World, qube: str) -> None:
    world.replace("work", external(WEB))
    with answering(world, qube, {limits.PROBE_SERVICE: DESERTS}):
        check_names_nobody(run(world, CHECKED), qube)
    [checked] = run(world, {"check work f0": CHECK_SECONDS})
    assert (checked.returncode, checked.stdout.splitlines()[-1]) == (0, "  No fault was found.")
    for hop in ("sys-net", "work"):
        wait_until(
            lambda hop=hop: "qubes-port-forward-probe" not in world.output(hop, "nft", "list", "tables"),  # type: ignore[misc]
            lambda hop=hop: f"{hop} counts no more",  # type: ignore[misc]
        )


def peer(held: Held, world: World) -> str:
    """The client's end of the connection, as the entrance sees it."""
    listed = world.output("sys-net", "conntrack", "-L", "-p", "tcp", "--orig-port-dst", str(HELD[0]))
    port = next(word for word in listed.split() if word.startswith("sport=")).removeprefix("sport=")
    assert held.lives
    return f"{LAPTOP}:{port}"


def kill_fails(world: World, held: Held) -> None:
    [killed] = run(world, {f"kill work {peer(held, world)}": SECONDS})
    failed_to_kill(killed, held)


def failed_to_kill(killed: "subprocess.CompletedProcess[str]", held: Held) -> None:
    assert (killed.returncode, killed.stdout) == (1, "")
    assert killed.stderr == "Error: the agent of 'work' does not answer\n"
    assert held.lives


def kill_works(world: World, held: Held) -> None:
    client = peer(held, world)
    [killed] = run(world, {f"kill work {client}": SECONDS})
    assert (killed.returncode, killed.stderr) == (0, "")
    assert killed.stdout == f"Ended the tcp connection of {client} to work's port {HELD[1]}\n"
    wait_until(lambda: not held.lives, lambda: "the end of the connection")


@pytest.mark.parametrize("kind", ["garbage", "endless lines", "silent", "half", "escapes inside"])
def test_a_kill_that_is_answered_badly_is_not_called_done(world: World, kind: str) -> None:
    """The qube tells its connections rightly, and then does not end one."""
    held, before, _ = used(world)
    with answering(world, "work", {limits.KILL_SERVICE: BAD[kind][limits.KILL_SERVICE]}):
        kill_fails(world, held)
        assert facts(world).keys() == before.keys()
    kill_works(world, held)


@pytest.mark.parametrize("qube", ["work", "sys-net"])
def test_well_formed_lies_stay_with_the_liar(world: World, qube: str) -> None:
    """The largest numbers, as many lines as there may be, and words about the forwards of others."""
    held, before, table = used(world)
    rules = [rule_id("work", external(WEB)), rule_id("work", external(HELD))]
    strangers = [rule_id("personal", external(OTHER)), rule_id("personal", internal(INSIDE))]
    with answering(world, qube, lies(qube == "work", rules + strangers)):
        now, listed = facts_and_rows(world)
        others_are_right(now, before, qube, counted=False)
        assert now["personal", 1] == before["personal", 1]
        assert listed["personal", "f1"] == table["personal", "f1"]
        commands = (
            "show work f0",
            "show work f0 --json",
            "show personal f0 --json",
            "plan work",
            "list",
            "list --json",
        )
        done = run(world, dict.fromkeys(commands, 2 * SECONDS))
        assert [one.returncode for one in done] == [0] * len(commands), done
        assert json.loads(done[2].stdout)["connections"] == []
        told = json.loads(done[1].stdout)
        assert told["forward"]["hits" if qube == "sys-net" else "packets"] > MOST
        if qube == "work":
            # Some of the thousand lines are of others' rules; those are left out.
            assert 0 < len(told["connections"]) < limits.REPORT_CONNECTIONS_MAX
    healthy_again(world, before)
    kill_works(world, held)


@pytest.mark.parametrize("qube", ["work", "sys-net"])
@pytest.mark.parametrize("size", ["short", "huge"])
def test_a_spoilt_status_in_qubesdb_is_unclear_and_harms_nobody(world: World, qube: str, size: str) -> None:
    held, before, table = used(world)
    word = b"\x1b[2J\x1b]0;EVIL\x07\r\nok"
    value, strays = (
        (word, STRAYS[:3]) if size == "short" else ((word * limits.QDB_VALUE_MAX)[: limits.QDB_VALUE_MAX], STRAYS)
    )
    memory = world.lab.call("dom0", peak_memory)
    with spoilt(world, qube, value, strays):
        now, listed = facts_and_rows(world)
        for key, one in before.items():
            if qube in {hop["hop"] for hop in one["hops"]}:
                assert (now[key]["state"], now[key]["fault"]["hop"]) == ("unclear", qube), now[key]
            else:
                assert now[key] == one
        assert listed["personal", "f1"] == table["personal", "f1"]
        assert f"unclear ({qube}: unclear)" in " ".join(listed["work", "f0"])
        shown, as_json, planned, *checked = run(world, TOLD | CHECKED)
        assert (shown.returncode, as_json.returncode, planned.returncode) == (0, 0, 0)
        assert json.loads(as_json.stdout)["forward"]["state"] == "unclear"
        assert "not known" not in planned.stdout
        # The probe comes through whatever stands in the database.
        for done in checked:
            assert (done.returncode, done.stderr) == (0, "")
        [added] = run(world, {"add dmz 446:8443/tcp --wait 1": SECONDS})
        # A hostile entrance may say of a new forward what it likes, also nothing.
        assert added.returncode in ((0,) if qube == "work" else (0, 3)), added
    assert world.lab.call("dom0", peak_memory) - memory < MEMORY_MAX
    [removed] = run(world, {"remove dmz f0": SECONDS})
    assert removed.returncode == 0
    healthy_again(world, before)
    kill_works(world, held)
