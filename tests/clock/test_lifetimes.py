# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Every lifetime in dom0, with its service on a clock that jumps, and with a qubesd that is not there at the time."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.dom0.asking import SSH, WEB, entries
from tests.fakes.app import FakeApp
from tests.fakes.service import Service
from tests.qubesd.test_forwards import GET, SET, closed, opened
from tests.qubesd.world import World, eventually

pytestmark = pytest.mark.slow

UNTIL = WEB.replace("\n", " expire=1000010\n")


class Clocks:
    def __init__(self) -> None:
        self.wall, self.boot = 1_000_000.0, 50.0

    def passes(self, seconds: float) -> None:
        self.wall += seconds
        self.boot += seconds


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


@pytest.fixture
def app(tmp_path: Path) -> FakeApp:
    return FakeApp(tmp_path)


@pytest.fixture
def restart(app: FakeApp, tmp_path: Path, clocks: Clocks) -> Callable[[], Service]:
    """A new qubesd in the same run of the host."""
    kept = tmp_path / "kept"
    return lambda: Service(app, "boot-1", lambda: clocks.wall, lambda: clocks.boot, kept)


@pytest.mark.parametrize("restarted", [False, True])
def test_u5_a_clock_that_is_set_back_extends_nothing(
    app: FakeApp, restart: Callable[[], Service], clocks: Clocks, restarted: bool
) -> None:
    service = restart()
    service.set(app.work, UNTIL + SSH)
    service.refresh()
    clocks.wall -= 5000
    service = restart() if restarted else service
    clocks.passes(9)
    service.refresh()
    assert service.get(app.work) == UNTIL + SSH
    assert service.next_deadline() == clocks.wall + 1
    clocks.passes(1)
    assert service.get(app.work) == SSH
    service.refresh()
    assert [e.listen.first for e in entries(app.net)] == [22]
    assert "443" not in app.work.firewall.path.read_text()


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("damage", ["<firewall", "", None])
def test_f15_a_qube_that_cannot_be_read_for_a_while_gets_no_longer_lifetime(
    app: FakeApp, restart: Callable[[], Service], clocks: Clocks, restarted: bool, damage: str | None
) -> None:
    service = restart()
    service.set(app.work, UNTIL)
    service.set(app.personal, SSH.replace("\n", " expire=1000010\n"))
    service.refresh()
    file = app.work.firewall.path
    good = file.read_text()
    if damage is None:
        file.unlink()
        file.mkdir()
    else:
        file.write_text(damage)
    service = restart() if restarted else service
    service.refresh()
    assert [e.listen.first for e in entries(app.net)] == [22]
    if damage is None:
        file.rmdir()
    file.write_text(good)
    clocks.wall -= 3600
    clocks.passes(9)
    service.refresh()
    assert {e.listen.first for e in entries(app.net)} == {22, 443}
    clocks.passes(1)
    service.refresh()
    assert entries(app.net) == []


def test_f15_the_end_of_a_rule_that_is_gone_is_forgotten(
    app: FakeApp, restart: Callable[[], Service], tmp_path: Path
) -> None:
    """Else the file of ends would grow as long as the host runs."""
    service = restart()
    service.set(app.work, UNTIL)
    service.refresh()
    assert "1000010" in (tmp_path / "kept").read_text()
    app.work.firewall.path.unlink()
    service.refresh()
    assert "1000010" not in (tmp_path / "kept").read_text()


def test_a_clock_that_is_set_back_revives_nothing(
    app: FakeApp, restart: Callable[[], Service], clocks: Clocks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the rule could not be removed from its file."""
    service = restart()
    service.set(app.work, UNTIL)
    service.refresh()
    monkeypatch.setattr(type(app.work.firewall), "save_forwards", _full)
    clocks.passes(11)
    service.refresh()
    assert entries(app.net) == []
    clocks.wall -= 5000
    service = restart()
    service.refresh()
    assert service.get(app.work) == ""
    assert entries(app.net) == []


def test_a_new_rule_goes_by_the_clock_as_it_is_now(
    app: FakeApp, restart: Callable[[], Service], clocks: Clocks
) -> None:
    service = restart()
    service.set(app.work, UNTIL)
    service.refresh()
    clocks.wall -= 5000
    service.set(app.work, SSH.replace("\n", f" expire={int(clocks.wall) + 60}\n"))
    service.refresh()
    assert service.next_deadline() == clocks.wall + 60


@pytest.mark.parametrize("running", [True, False])
def test_until_shutdown_when_qubesd_was_away(app: FakeApp, restart: Callable[[], Service], running: bool) -> None:
    """The rule is gone whether the qube stayed down or is up again."""
    service = restart()
    service.set(app.work, SSH.replace("\n", " expire=shutdown\n"))
    service.refresh()
    app.work.running, app.work.xid = running, 9
    service = restart()
    service.refresh()
    assert service.get(app.work) == ""
    assert "forward" not in app.work.firewall.path.read_text()


def test_until_reboot_leaves_the_file_after_it(app: FakeApp, restart: Callable[[], Service]) -> None:
    service = restart()
    service.set(app.work, SSH.replace("\n", " expire=reboot\n"))
    restart().refresh()
    assert "expire" in app.work.firewall.path.read_text()
    Service(app, "boot-2").refresh()
    assert "forward" not in app.work.firewall.path.read_text()


def test_u5_what_ends_while_qubesd_is_away_leaves_everything_when_it_comes_back(world: World) -> None:
    soon = int(time.time()) + 2
    ending = WEB.replace("\n", f" expire={soon}\n") + SSH.replace("\n", " expire=shutdown\n")
    world.api("work", f"{SET}+forward", ending + SSH.replace("22", "23").replace("\n", " expire=reboot\n"))
    opened(world, "sys-net", "sys-firewall", "work")
    world.stop()
    world.xen.die("work")
    eventually(lambda: time.time() > soon)
    world.start()
    closed(world, "sys-net", "sys-firewall")
    assert world.api("work", f"{GET}+forward").count("\n") == 1
    text = world.firewall_file("work").read_text()
    assert text.count("<rule added") == 1
    world.forget_qdb("work")
    world.api("work", "admin.vm.Start")
    opened(world, "sys-net", "sys-firewall", "work")
    world.stop()
    (world.folder / "boot_id").write_text("boot-2\n")
    world.start()
    closed(world, "sys-net", "sys-firewall", "work")
    assert "forward" not in world.firewall_file("work").read_text()


def test_an_end_in_running_minutes_comes_after_a_restart_of_qubesd_too(world: World) -> None:
    world.api("work", f"{SET}+forward", WEB.replace("\n", f" expire={int(time.time()) + 3}\n"))
    opened(world, "sys-net")
    world.stop()
    world.start()
    eventually(lambda: world.api("work", f"{GET}+forward") == "", "the end of the rule")
    closed(world, "sys-net", "sys-firewall", "work")


def _full(*_: object) -> None:
    raise OSError(28, "No space left on device")
