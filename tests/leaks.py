# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""A test that leaves a process, a thread or a descriptor behind fails for it.

The process of the tests is a subreaper, so that whatever a test starts stays below it, also when what started it has
ended. What fixtures of a wider scope than a test set up is theirs, and so is what is made anew for them (lasting()).
"""

import contextlib
import ctypes
import gc
import os
import signal
import threading
import time
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from lab.base import namespaces as ns

PATIENCE = 10.0
"""Seconds for what is just ending."""
_PR_SET_CHILD_SUBREAPER = 36
_FAILED = pytest.StashKey[bool]()


def pytest_configure() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


class Thing(NamedTuple):
    """A process, thread or descriptor; the mark tells it from a later one of its number."""

    kind: str
    number: int
    mark: str


_known: set[Thing] = set()
"""What belongs to fixtures that outlive a test."""


def look(known: Set[Thing]) -> set[Thing]:
    """Everything there is; processes below known ones are the business of those."""
    return _processes({thing.number for thing in known if thing.kind == "process"}) | _threads() | _descriptors()


def _processes(known: set[int]) -> set[Thing]:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        # No child, so nothing further below either: who loses its parent becomes a child. All of /proc is long.
        return set()
    children: dict[int, list[int]] = {}
    for pid in ns.processes():
        with contextlib.suppress(OSError):
            children.setdefault(ns.process_state(pid)[1], []).append(pid)
    found, left = set(), [os.getpid()]
    while left:
        for pid in children.get(left.pop(), ()):
            with contextlib.suppress(OSError):
                started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
                found.add(Thing("process", pid, started))
                if pid not in known:
                    left.append(pid)
    return found


def _threads() -> set[Thing]:
    return {Thing("thread", thread.ident or 0, thread.name) for thread in threading.enumerate()}


def _descriptors() -> set[Thing]:
    """All but Qt's eventfds: it makes one for a thread in which a signal is sent, and lets go of it in its own time."""
    found = set()
    for number in os.listdir("/proc/self/fd"):  # noqa: PTH208 - the folder's own descriptor is closed by then
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{number}")  # noqa: PTH115
            if target != "anon_inode:[eventfd]":
                found.add(Thing("descriptor", int(number), target))
    return found


@contextlib.contextmanager
def lasting() -> Iterator[None]:
    """What is made in here belongs to something that outlives the test."""
    before = look(_known)
    try:
        yield
    finally:
        _known.update(look(_known) - before)


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> Iterator[None]:
    if fixturedef.scope == "function":
        return (yield)
    with lasting():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report: Any = yield
    item.stash[_FAILED] = item.stash.get(_FAILED, False) or report.failed
    return report


@pytest.fixture(autouse=True)
def leaves_nothing(request: pytest.FixtureRequest) -> Iterator[None]:
    """Set up before and taken down after all else that belongs to one test only."""
    before = look(_known)
    yield
    failed = request.node.stash.get(_FAILED, False)
    # All else has been taken down, but would live until pytest lets go of it.
    request.node.funcargs.clear()
    left = _left(before)
    deadline = time.monotonic() + (0.0 if failed else PATIENCE)
    while left and time.monotonic() < deadline:
        # What an exception holds, or a cycle, is closed only when it is collected.
        gc.collect()
        _reap(left)
        time.sleep(0.01)
        left = _left(before)
    told = "; ".join(_described(thing) for thing in sorted(left))
    for thing in left:
        if thing.kind == "process":
            with contextlib.suppress(ProcessLookupError):
                os.kill(thing.number, signal.SIGKILL)
    # The traceback of a test that failed keeps what the test had in its hands.
    if left and not failed:
        pytest.fail(f"left behind: {told}")


def _described(thing: Thing) -> str:
    words = thing.mark
    if thing.kind == "process":
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{thing.number}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return f"{thing.kind} {thing.number} {words}"


def _left(before: set[Thing]) -> set[Thing]:
    return look(before | _known) - before - _known


def _reap(left: set[Thing]) -> None:
    """Nobody waits any more for the dead among these."""
    for kind, number, _ in left:
        if kind == "process":
            with contextlib.suppress(OSError):
                if ns.process_state(number)[0] == "Z":
                    os.waitpid(number, os.WNOHANG)
