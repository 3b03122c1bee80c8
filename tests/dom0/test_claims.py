# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Who keeps a port when a change of the network makes forwards meet: the one that has it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from portfwd.wire.errors import RefusedError
from tests.dom0.asking import SSH, WEB, plan
from tests.fakes.app import FakeApp, FakeVM
from tests.fakes.service import Service


class Clock:
    """Each rule is a second younger than the one before."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


class Home:
    """sys-net and sys-wifi, each with its own forwards; dom0 can be restarted."""

    def __init__(self, folder: Path) -> None:
        self.app = FakeApp(folder / "qubes")
        self.wifi = FakeVM(folder / "qubes/sys-wifi", "sys-wifi", None, "10.137.0.8")
        self.app.domains.append(self.wifi)
        self.file = folder / "holders"
        self.clock, self.boot = Clock(), "boot-1"
        self.restart()

    def restart(self, boot: str = "") -> None:
        """qubesd starts anew; with another `boot`, the host."""
        self.boot = boot or self.boot
        self.service = Service(self.app, self.boot, self.clock, self.clock, holders=self.file)

    def old(self, netvm: FakeVM, line: str = WEB) -> FakeVM:
        """personal with an old rule, behind another net qube."""
        self.app.personal.netvm = netvm
        self.service.set(self.app.personal, line)
        self.service.refresh()
        return self.app.personal

    def meet(self) -> FakeVM:
        """personal, whose rule is older, comes from sys-wifi to sys-net, where work has the port."""
        old = self.old(self.wifi)
        self.service.set(self.app.work, WEB)
        self.service.refresh()
        old.netvm = self.app.firewall
        return old

    def open(self) -> list[str]:
        """Whose forwards are open, sorted."""
        planned = self.service.refresh()
        assert planned is not None
        return sorted(str(path[-1][0]) for path in planned.paths.values())

    def reason(self, vm: FakeVM) -> str:
        """Why a qube's only forward is not open."""
        return plan(self.app, self.service, vm)[0].partition(" text=")[2]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def test_f5_who_has_the_port_keeps_it_however_old_the_newcomer(home: Home) -> None:
    old = home.old(home.wifi)
    home.service.set(home.app.work, WEB)
    assert home.open() == ["personal", "work"]
    old.netvm = home.app.firewall
    assert home.open() == ["work"]
    assert home.reason(old) == "port is taken at 'sys-net' by external tcp port 443 of 'work'"


@pytest.mark.parametrize("boot", ["boot-1", "boot-2"])
def test_f5_the_same_one_keeps_it_after_a_restart(home: Home, boot: str) -> None:
    old = home.meet()
    assert home.open() == ["work"]
    for _ in range(3):
        home.restart(boot)
        assert home.open() == ["work"]
        assert "taken" in home.reason(old)


def test_f5_a_change_just_before_a_restart_is_judged_as_one_before_it(home: Home) -> None:
    """Mistake: who holds what is known in memory only, and the refresh after the restart lets age decide."""
    home.meet()
    home.restart("boot-2")
    assert home.open() == ["work"]


def test_f5_three_meet_and_the_port_goes_on_to_the_oldest_of_those_who_wait(home: Home) -> None:
    lone = FakeVM(home.file.parent / "qubes/lone", "lone", None, "10.137.0.9")
    home.app.domains.append(lone)
    home.service.set(lone, WEB)
    old = home.old(home.wifi)
    home.service.set(home.app.work, WEB)
    home.service.refresh()
    old.netvm = lone.netvm = home.app.firewall
    assert home.open() == ["work"]
    home.service.set(home.app.work, "")
    assert home.open() == ["lone"]
    home.restart()
    assert home.open() == ["lone"]


def test_f5_whoever_moves_away_finds_the_port_taken_when_it_comes_back(home: Home) -> None:
    home.meet()
    assert home.open() == ["work"]
    home.app.work.netvm = home.wifi
    assert home.open() == ["personal", "work"]
    home.app.work.netvm = home.app.firewall
    assert home.open() == ["personal"]
    home.restart()
    assert home.open() == ["personal"]


def test_f5_halted_qubes_keep_their_ports_as_running_ones_do(home: Home) -> None:
    old = home.old(home.wifi)
    home.service.set(home.app.work, WEB)
    home.app.work.running = old.running = False
    assert home.open() == []
    old.netvm = home.app.firewall
    home.service.refresh()
    home.restart("boot-2")
    home.app.work.running = old.running = True
    assert home.open() == ["work"]


def test_f5_a_paused_rule_gives_its_port_to_the_one_that_waits(home: Home) -> None:
    home.meet()
    home.service.refresh()
    home.service.set(home.app.work, WEB.replace("\n", " enabled=no\n"))
    assert home.open() == ["personal"]
    with pytest.raises(RefusedError, match="taken at 'sys-net' by external tcp port 443 of 'personal'"):
        home.service.set(home.app.work, WEB)
    home.restart()
    assert home.open() == ["personal"]


def test_f5_a_rule_that_is_edited_keeps_the_port_that_others_wait_for(home: Home) -> None:
    home.meet()
    home.service.refresh()
    home.service.set(home.app.work, WEB.replace("\n", " srchost=192.168.1.20\n"))
    assert home.open() == ["work"]


def test_f5_a_whole_branch_that_moves_takes_nothing_from_those_who_are_there(home: Home) -> None:
    """As after a change of default_netvm: sys-firewall with all behind it goes to sys-wifi."""
    home.service.set(home.app.work, WEB + SSH)
    home.service.refresh()
    home.old(home.wifi)
    assert home.open() == ["personal", "work", "work"]
    home.app.firewall.netvm = home.wifi
    assert home.open() == ["personal", "work"]
    home.restart()
    assert home.open() == ["personal", "work"]
    home.app.firewall.netvm = home.app.net
    assert home.open() == ["personal", "work", "work"]


def test_f5_ports_that_hops_further_in_hold_are_kept_too(home: Home) -> None:
    inner = FakeVM(home.file.parent / "qubes/inner", "inner", home.wifi, "10.137.0.10")
    home.app.domains.append(inner)
    home.app.personal.netvm = inner
    home.service.set(home.app.personal, WEB.replace("external", "internal"))
    home.service.refresh()
    home.service.set(home.app.work, WEB.replace("external", "internal"))
    home.service.refresh()
    home.app.personal.netvm = home.app.firewall
    assert home.open() == ["work"]


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"work", b"evil"))


@pytest.mark.parametrize("harm", [Path.unlink, damage, lambda path: path.write_bytes(b"\xff" * 5000)])
def test_f5_without_the_file_age_decides(home: Home, harm: Callable[[Path], None]) -> None:
    home.meet()
    assert home.open() == ["work"]
    harm(home.file)
    home.restart()
    assert home.open() == ["personal"]
    home.restart()
    assert home.open() == ["personal"]


def test_f5_a_file_that_cannot_be_written_changes_nothing_now_and_is_written_later(home: Home) -> None:
    old = home.old(home.wifi)
    home.file.unlink()
    home.file.mkdir()
    home.service.set(home.app.work, WEB)
    home.service.refresh()
    old.netvm = home.app.firewall
    assert home.open() == ["work"]
    home.file.rmdir()
    assert home.open() == ["work"]
    home.restart()
    assert home.open() == ["work"]
    assert home.file.is_file()


def test_f5_whose_forwards_cannot_be_read_for_a_while_loses_no_port(home: Home) -> None:
    old = home.meet()
    good = home.app.work.firewall.path.read_bytes()
    home.app.work.firewall.path.write_bytes(good.replace(b"443", b"4%43"))
    home.service.reload(home.app.work)
    assert home.open() == []
    assert home.reason(old) == "port is taken at 'sys-net' by external tcp port 443 of 'work'"
    home.app.work.firewall.path.write_bytes(good)
    home.service.reload(home.app.work)
    assert home.open() == ["work"]
