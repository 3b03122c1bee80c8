# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Asking dom0 how forwards fare, and the qubes' side of it."""

import asyncio
import os
import re
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from portfwd.dom0.views.queries import StatusService
from portfwd.wire import limits
from portfwd.wire.acknowledgement import WAY_OUT
from portfwd.wire.answers.report import EntryReport, Report
from portfwd.wire.entry import Accept, Commit, Entry
from tests.fakes.app import FakeApp, FakeVM
from tests.fakes.service import Service

T = TypeVar("T")

WEB = "action=forward forwardtype=external proto=tcp srcports=443-443 dstports=8443-8443\n"
SSH = "action=forward forwardtype=external proto=tcp srcports=22-22 dstports=22-22\n"
NEAR = "action=forward forwardtype=internal proto=tcp srcports=444-444 dstports=8443-8443\n"


class Clock:
    """Stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end, and see that no task and no process stays behind."""

    async def whole() -> T:
        before = children()
        async with asyncio.timeout(20):
            result = await work
            while len(asyncio.all_tasks()) > 1 or not children() <= before:
                await asyncio.sleep(0.01)
            # The transports of processes say goodbye in the next turns of the loop, which qubesd's always has.
            for _ in range(5):
                await asyncio.sleep(0)
            return result

    return asyncio.run(whole())


def children() -> set[int]:
    """The processes that we have started; a laboratory of other tests may be among them."""
    path = Path(f"/proc/self/task/{os.getpid()}/children")
    return {int(word) for word in path.read_text().split()}


def status(app: FakeApp, service: Service, vm: FakeVM | None = None) -> list[str]:
    """The lines of Get+forward.status, of one qube or of all."""
    return run(StatusService(app, service).status(vm)).splitlines()


def hops(app: FakeApp, service: Service, vm: FakeVM) -> list[str]:
    """Those of them that tell of an entry."""
    return [line for line in status(app, service, vm) if " kind=" in line]


def plan(app: FakeApp, service: Service, vm: FakeVM, candidate: str = "") -> list[str]:
    """The lines of Get+forward.plan."""
    return run(StatusService(app, service).plan(vm, candidate)).splitlines()


def apply(vm: FakeVM, word: str = "ok", way_out: str = "uplink") -> list[Entry]:
    """Acknowledge what stands in a qube's database, as its agent does; one that knows no routes says no `way_out`."""
    found = vm.database.multiread(limits.ENTRIES)
    commit = Commit.parse((vm.database.read(limits.BASE) or b"").decode())
    entries = [Entry.decode(path.removeprefix(limits.ENTRIES), value.decode()) for path, value in found.items()]
    kept = {limits.STATUS + entry.key for entry in entries}
    for path in vm.database.multiread(limits.STATUS).keys() - kept:
        if re.fullmatch(r"[0-9a-f]{16}\.[46]\.(tcp|udp)", path.removeprefix(limits.STATUS)):
            vm.database.rm(path)
    for path in kept:
        vm.database.write(path, word)
    if way_out:
        vm.database.write(limits.STATUS + WAY_OUT, way_out)
    vm.database.write(limits.STATUS_BASE, f"version=1 generation={commit.generation} state=applied")
    return entries


def entries(vm: FakeVM) -> list[Entry]:
    """What stands committed in a qube's database."""
    found = {p.removeprefix(limits.ENTRIES): v.decode() for p, v in vm.database.multiread(limits.ENTRIES).items()}
    commit = vm.database.read(limits.BASE)
    assert not found or (commit is not None and Commit.parse(commit.decode()).covers(found))
    return [Entry.decode(key, value) for key, value in found.items()]


def states(app: FakeApp, service: Service) -> list[str]:
    """How far each entry for work has come."""
    return [line.rpartition(" state=")[2].split()[0] for line in hops(app, service, app.work)]


def give(vm: FakeVM, service: str, text: str) -> None:
    """Have a qube answer a service with this text."""
    path = Path(vm.firewall.path).parent / service
    path.write_text(text)
    vm.services[service] = f"exec cat '{path}'"


def report(vm: FakeVM, told: dict[str, EntryReport]) -> None:
    """Have a qube report this."""
    give(vm, limits.REPORT_SERVICE, str(Report(told)))


def accept(vm: FakeVM) -> str:
    """The key of the entry that a qube has as a target."""
    keys = [Entry.decode(p.rpartition("/")[2], v.decode()) for p, v in vm.database.multiread(limits.ENTRIES).items()]
    return next(entry.key for entry in keys if isinstance(entry, Accept))


def confirmed(app: FakeApp, service: Service) -> list[str]:
    """The lines of Get+forward.hops of work."""
    return run(StatusService(app, service).hops(app.work)).splitlines()
