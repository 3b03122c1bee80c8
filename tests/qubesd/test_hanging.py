# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""A qube can have its QubesDB daemon in dom0 hang, by half a message. It alone is to suffer from that."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from tests.qubesd.test_forwards import GET, SET, WEB, entries, opened
from tests.qubesd.world import World, eventually

OTHER = WEB.replace("443-443", "444-444")


@pytest.fixture
def hanging(world: World) -> Iterator[int]:
    """The daemon of `personal`, which has a forward, stopped."""
    world.api("personal", "admin.vm.Start")
    world.api("personal", f"{SET}+forward", OTHER)
    opened(world, "personal")
    pid = int((world.folder / "run" / "qubesdb.personal.pid").read_text())
    os.kill(pid, signal.SIGSTOP)
    yield pid
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


@pytest.mark.usefixtures("hanging")
def test_others_get_their_forwards_and_qubesd_answers_meanwhile(world: World) -> None:
    """Mistake: qubesd waits for the daemon, and with it everyone who asks qubesd for anything."""
    change = threading.Thread(target=world.api, args=("work", f"{SET}+forward", WEB))
    change.start()
    opened(world, "work", "sys-firewall", "sys-net")
    assert world.state("work") == "Running"
    assert world.api("work", f"{GET}+forward") == WEB
    assert change.is_alive(), "the answer waits for all to be told, others do not wait for it"
    change.join(10)
    assert not change.is_alive()
    assert "QubesDB of 'personal' cannot be written" in world.log()


@pytest.mark.usefixtures("hanging")
def test_status_tells_what_it_can(world: World) -> None:
    world.api("work", f"{SET}+forward", WEB)
    lines = [_words(line) for line in world.api("dom0", f"{GET}+forward.status").splitlines()]
    (rule,) = (words["rule"] for words in lines if words.get("qube") == "personal")
    states = {words["hop"]: words["state"] for words in lines if "hop" in words and words["rule"] == rule}
    assert states == {"sys-net": "written", "sys-firewall": "written", "personal": "unknown"}


def test_what_could_not_be_told_is_told_later_without_any_event(world: World, hanging: int) -> None:
    """Mistake: a port that should shut stays open until something else happens."""
    world.api("personal", f"{SET}+forward", "")
    os.kill(hanging, signal.SIGCONT)
    deadline = time.monotonic() + 20
    while entries(world, "personal"):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_the_next_run_of_the_qube_is_not_held_to_the_silence_of_this_one(world: World, hanging: int) -> None:
    world.api("work", f"{SET}+forward", WEB)
    os.kill(hanging, signal.SIGCONT)
    world.api("personal", "admin.vm.Kill")
    world.forget_qdb("personal")
    world.api("personal", "admin.vm.Start")
    eventually(lambda: entries(world, "personal"), "the entries of the new run")


def _words(line: str) -> dict[str, str]:
    return dict(word.split("=", 1) for word in line.split(" ") if "=" in word)
