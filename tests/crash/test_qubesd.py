# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""A real qubesd process is killed before each durable step, with real QubesDB daemons; and twenty editors at once."""

import itertools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.qubesd.client import ApiError
from portfwd.agent.desired import read_desired
from tests.leaks import lasting
from tests.qubesd.test_forwards import GET, SET, opened
from tests.qubesd.world import World, chain, eventually

ROOT = Path(__file__).parents[2]
HOPS = ("sys-net", "sys-firewall", "work")
RULE = "action=forward forwardtype=external proto=tcp srcports={0}-{0} dstports={0}-{0}\n"
OLD, NEW = RULE.format(443), RULE.format(22)
EDITORS = 20
_TOOL = (
    "import sys; from pathlib import Path; from portfwd.client.commands.qvm_firewall import main; "
    "from portfwd.client.adminapi import SocketTransport; "
    "sys.exit(main(sys.argv[2:], SocketTransport(Path(sys.argv[1]))))"
)


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    made = World(chain())
    try:
        made.running(*HOPS)
        yield made
    finally:
        made.close()


def doors(world: World, hop: str) -> set[int] | None:
    """The entrance ports that the agent of a hop may open; None for half a set."""
    desired = read_desired(world.qdb(hop))
    return {entry.listen.first for entry in desired.entries} if desired.complete else None


def settled(world: World, *ports: int) -> None:
    eventually(lambda: all(doors(world, hop) == set(ports) for hop in HOPS), f"{ports} on all hops")


@lasting()  # The qubesd that is started again is that of all tests here.
def test_u16_killed_before_any_step_of_an_edit(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    deaths = 0
    for step in itertools.count(1):
        world.api("work", f"{SET}+forward", OLD)
        settled(world, 443)
        world.stop()
        monkeypatch.setenv("DIES_AT", str(step))
        world.start("tests.crash.dying_qubesd")
        try:
            world.api("work", f"{SET}+forward", NEW)
        except (ApiError, OSError, ValueError):
            deaths += 1
            eventually(world.died, "its death")
        else:
            eventually(lambda: world.died() or all(doors(world, hop) == {22} for hop in HOPS), "death or the end")
            deaths += world.died()
        killed = world.died()
        for hop in HOPS:
            assert doors(world, hop) in (None, {443}, {22}), f"{hop} at step {step}"
        if killed:
            world.start()
            stored = world.api("work", f"{GET}+forward")
            assert stored in (OLD, NEW)
            settled(world, 443 if stored == OLD else 22)
            assert [p.name for p in (world.folder / "lib/appvms/work").glob("firewall.xml?*")] in (
                [],
                ["firewall.xml.new"],
            )
            world.api("work", f"{SET}+forward", "")
            assert not list((world.folder / "lib/appvms/work").glob("firewall.xml?*"))
        else:
            world.stop()
            world.start()
            break
    # Two or three of the file; for each of three hops an entry that goes, one that comes, and the commit.
    assert deaths >= 11


def test_twenty_editors_at_once_lose_nothing(world: World) -> None:
    """Processes of the real tool add and delete forwards of one qube at the same time."""
    old, new = range(1000, 1000 + EDITORS // 2), range(2000, 2000 + EDITORS // 2)
    world.api("work", f"{SET}+forward", "".join(RULE.format(port) for port in (*old, 3000)))
    jobs = [("del", port) for port in old] + [("add", port) for port in new]
    argv = [sys.executable, "-c", _TOOL, str(world.socket), "work"]
    editors = [
        subprocess.Popen([*argv, verb, *RULE.format(port).split()], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for verb, port in jobs
    ]
    said = [editor.communicate(timeout=60)[1] for editor in editors]
    # No agent runs here, and a tool that removes something says so.
    note = "Note: the forward is removed, but sys-net, sys-firewall and work have not confirmed it: "
    assert [
        text for (verb, _), text in zip(jobs, said, strict=True) if not (verb == "del" and text.startswith(note))
    ] == [""] * len(new)
    assert [editor.returncode for editor in editors] == [3 if verb == "del" else 0 for verb, _ in jobs]
    rules = sorted(world.api("work", f"{GET}+forward").splitlines(keepends=True))
    assert rules == sorted(RULE.format(port) for port in (*new, 3000))
    settled(world, *new, 3000)
    opened(world, *HOPS)
