# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""qubesd dies before any of its writes: each qube then has the old set, the new one, or one that opens nothing."""

import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from portfwd.agent.desired import read_desired
from portfwd.wire.entry import Entry
from tests.crash.dying import DyingDatabase, Fuse, KilledError
from tests.dom0.asking import SSH, WEB
from tests.fakes.app import FakeApp, FakeVM
from tests.fakes.service import Service

Change = Callable[[FakeApp, Service], None]
MORE = WEB.replace("443-443", "8000-8003").replace("8443-8443", "8000-8003")


def add(app: FakeApp, service: Service) -> None:
    service.set(app.work, WEB + SSH)


def remove(app: FakeApp, service: Service) -> None:
    service.set(app.work, "")


def replace(app: FakeApp, service: Service) -> None:
    service.set(app.work, SSH + MORE)


def switch(app: FakeApp, _service: Service) -> None:
    app.work.netvm = app.net


def halt(app: FakeApp, _service: Service) -> None:
    app.firewall.running = False


def move(app: FakeApp, _service: Service) -> None:
    app.work.ip = "10.137.0.77"


def sets(app: FakeApp) -> dict[str, frozenset[Entry] | None]:
    """What the agents may act on; None: half a set, which opens nothing new and soon nothing at all."""
    found = {vm.name: read_desired(vm.database) for vm in app.domains}
    return {name: frozenset(d.entries) if d.complete else None for name, d in found.items()}


def world(folder: Path, fuse: Fuse) -> tuple[FakeApp, Service]:
    app = FakeApp(folder)
    for vm in app.domains:
        vm.database = DyingDatabase(vm.database, fuse)  # type: ignore[assignment]
    service = Service(app, "boot-1")
    service.set(app.work, WEB + MORE.replace("external", "internal"))
    service.set(app.personal, SSH.replace("22-22", "2222-2222"))
    service.refresh()
    return app, service


@pytest.mark.parametrize("change", [add, remove, replace, switch, halt, move])
def test_death_between_two_writes(tmp_path: Path, change: Change) -> None:
    app, service = world(tmp_path / "clean", Fuse())
    before = sets(app)
    change(app, service)
    service.refresh()
    after = sets(app)
    assert before != after
    deaths = 0
    for step in itertools.count(1):
        fuse = Fuse()
        app, service = world(tmp_path / str(step), fuse)
        fuse.arm(step)
        try:
            change(app, service)
            service.refresh()
        except KilledError:
            deaths += 1
        else:
            break
        for name, found in sets(app).items():
            assert found in (None, before[name], after[name]), f"{name} at write {step}"
        Service(app, "boot-1").refresh()
        assert sets(app) == after, f"write {step}"
    assert deaths >= 3


def test_a_successor_that_dies_as_well(tmp_path: Path) -> None:
    """Every second qubesd gets one write further; at last all is done."""
    fuse = Fuse()
    app, service = world(tmp_path, fuse)
    service.set(app.work, SSH)
    for _ in range(50):
        fuse.arm(2)
        try:
            Service(app, "boot-1").refresh()
        except KilledError:
            continue
        break
    assert {e.listen.first for e in sets(app)["sys-net"] or ()} == {22, 2222}


def test_death_at_any_line_of_a_save(tmp_path: Path) -> None:
    """firewall.xml is the old one or the new one, and what the dead left beside it goes with the next save."""
    argv = [sys.executable, "-m", "tests.crash.dying_save", str(tmp_path)]
    done = subprocess.run(argv, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 50


def test_a_stranger_in_the_place_of_the_new_file_is_not_followed(tmp_path: Path) -> None:
    vm = FakeVM(tmp_path / "work", "work", None, "10.137.0.6")
    victim = tmp_path / "victim"
    victim.write_text("precious")
    vm.firewall.path.with_name("firewall.xml.new").symlink_to(victim)
    vm.firewall.save_forwards(())
    assert victim.read_text() == "precious"
    assert not vm.firewall.path.is_symlink()
