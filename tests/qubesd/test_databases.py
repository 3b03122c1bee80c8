# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""dom0's QubesDB daemons over several runs of a qube: as the real ones, each outlives its domain for a while."""

import select
from collections.abc import Iterator

import pytest

from portfwd.base.qubesdb_client import DisconnectedError, QubesDB
from tests.qubesd.world import DEADLINE, World, chain, eventually


@pytest.fixture
def slow() -> Iterator[World]:
    """A dom0 whose QubesDB daemons look at their domains seldom, as the real ones do."""
    world = World(chain(autostart=False), poll=10 * DEADLINE)
    try:
        yield world
    finally:
        world.close()


def test_f28_the_database_of_a_dead_run_goes_on_serving_until_the_next_run_takes_its_place(slow: World) -> None:
    slow.api("sys-other", "admin.vm.Start")
    old = slow.qdb("sys-other")
    old.write("/run", "1")
    slow.api("sys-other", "admin.vm.Kill")
    assert slow.state("sys-other") == "Halted"
    assert old.read("/run") == b"1"
    # Whoever connects between the runs gets the dead one's database, too.
    between = QubesDB(str(slow.folder / "run/qubesdb.sys-other.sock"))
    assert between.read("/run") == b"1"
    slow.api("sys-other", "admin.vm.Start")
    slow.forget_qdb("sys-other")
    assert slow.read("sys-other", "/run") is None
    assert between.read("/run") == b"1"
    between.close()


def test_f28_the_database_of_a_dead_run_ends_by_itself_and_leaves_the_socket_of_the_next(world: World) -> None:
    path = world.folder / "run/qubesdb.work.sock"
    old = QubesDB(str(path))
    old.watch("/run")
    world.api("work", "admin.vm.Kill")
    world.api("work", "admin.vm.Start")
    assert select.select([old.watch_fd()], [], [], DEADLINE)[0]
    with pytest.raises(DisconnectedError):
        old.read_watch()
    world.forget_qdb("work")
    assert world.read("work", "/name") == "work"
    world.forget_qdb("work")
    world.api("work", "admin.vm.Kill")
    eventually(lambda: not path.exists(), "the end of the daemon")
