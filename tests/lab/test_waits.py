# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Nothing of the laboratory waits without limit, and who forks into a machine reaps."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import client
from lab.base import enter
from lab.base import namespaces as ns
from lab.base.state import find
from lab.client import Lab, LabError
from lab.inside.root import PROJECT
from tests.lab.world import SMALL
from tests.leaks import lasting

PATIENCE = 60.0
ADOPTING = f"""
import ctypes, os, signal, subprocess, sys, time
from lab.client import Lab

# As the first process of a container does, this one adopts what its children leave behind, and reaps nothing.
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
lab = Lab(sys.argv[1], {SMALL!r})
lab.up()
program = lab.popen("work", ["sleep", "1000"])
os.kill(program.pid, signal.SIGKILL)
program.wait()
began = time.monotonic()
argv = [sys.executable, "-m", "lab", "kill", "--name", sys.argv[1], "work"]
killed = subprocess.run(argv, timeout=30, capture_output=True, text=True)
print(killed.returncode, killed.stderr, time.monotonic() - began < 10)
subprocess.run([sys.executable, "-m", "lab", "start", "--name", sys.argv[1], "work"], timeout=60, check=True)
began = time.monotonic()
lab.down()
print("down", time.monotonic() - began < 10)
"""


@pytest.fixture(scope="module")
def small() -> Iterator[Lab]:
    with Lab(f"waits-{os.getpid()}", SMALL) as lab:
        # Its connection to the hypervisor is its own, too.
        lab.machines()
        yield lab


def test_f24_a_qube_ends_although_a_program_that_was_forked_into_it_has_not_been_reaped() -> None:
    name = f"adopting-{os.getpid()}"
    try:
        done = subprocess.run(
            [sys.executable, "-c", ADOPTING, name],
            capture_output=True,
            text=True,
            cwd=PROJECT,
            timeout=PATIENCE,
            check=False,
        )
    finally:
        Lab(name).down()
    assert (done.stdout, done.stderr) == ("0  True\ndown True\n", "")


def test_f24_who_kills_a_program_in_a_qube_leaves_no_dead_process_behind(small: Lab) -> None:
    program = small.popen("work", ["sleep", "1000"])
    inside = children(program.pid)
    assert len(inside) == 1
    program.kill()
    assert program.wait(PATIENCE) == 128 + signal.SIGKILL
    for pid in inside:
        with pytest.raises(OSError, match="No such"):
            ns.process_state(pid)


def test_f24_a_program_that_ends_at_once_is_noticed(small: Lab) -> None:
    for _ in range(60):
        assert small.run("work", ["true"], timeout=PATIENCE).returncode == 0


def test_f24_a_function_that_does_not_end_in_a_qube_is_ended(small: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    before = children(os.getpid())
    monkeypatch.setattr(enter, "CALL_DEADLINE", 0.5)
    with pytest.raises(TimeoutError, match="sleep did not end within"):
        small.call("work", time.sleep, 1000)
    call = small.start_call("work", time.sleep, 1000)
    assert call.wait(0.5) == 128 + signal.SIGKILL
    assert children(os.getpid()) <= before


def test_f24_a_laboratory_that_stands_still_is_told(small: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "ANSWER_DEADLINE", 0.5)
    assert small.machines()
    hypervisor = find(small.name).pid()
    os.kill(hypervisor, signal.SIGSTOP)
    try:
        with pytest.raises(LabError, match="does not answer"):
            small.machines()
    finally:
        os.kill(hypervisor, signal.SIGCONT)
    monkeypatch.undo()
    with lasting():
        # Over a connection that is the laboratory's from now on.
        assert small.machines()


def children(parent: int) -> set[int]:
    """Child processes that are no laboratory of their own."""
    found = set()
    for pid in ns.processes():
        with contextlib.suppress(OSError):
            name = Path(f"/proc/{pid}/comm").read_text()
            if ns.process_state(pid)[1] == parent and name != "hypervisor\n":
                found.add(pid)
    return found
