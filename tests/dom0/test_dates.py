# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Dates of rules that stand in files, whoever wrote them: who came first, and that nobody's date harms others."""

from pathlib import Path

import pytest

from portfwd.wire import limits
from tests.dom0.asking import SSH, WEB, Clock, entries
from tests.fakes.app import FakeApp, FakeVM
from tests.fakes.service import Service


def by_hand(vm: FakeVM, *attributes: str) -> None:
    """Rules for the same port as WEB, one for each of the attributes, with 443 and 444."""
    rules = ""
    for number, attribute in enumerate(attributes):
        words = WEB.replace("443-443", f"{443 + number}").split()
        inner = "".join('<property name="{}">{}</property>'.format(*word.split("=")) for word in words)
        rules += f"<rule {attribute}><properties>{inner}</properties></rule>"
    text = (
        '<firewall version="2"><rules><rule><properties><property name="action">accept</property></properties></rule>'
    )
    vm.firewall.path.write_text(f"{text}</rules><forwards>{rules}</forwards></firewall>")


@pytest.mark.parametrize("date", [10**20 - 1, limits.EXPIRE_MAX, limits.ADDED_MAX + 1, limits.ADDED_MAX, 2**63])
def test_f11_a_date_in_one_file_harms_no_other_qubes_next_rule(
    app: FakeApp, service: Service, clock: Clock, tmp_path: Path, date: int
) -> None:
    by_hand(app.personal, f'added="{date}"')
    service.refresh()
    service.set(app.work, SSH)
    service.set(app.work, SSH + SSH.replace("22", "23"))
    later = FakeApp(tmp_path)
    assert Service(later, "boot-1", clock, clock).get(later.work).count("\n") == 2
    first, second = later.work.firewall.forwards
    assert 0 < first.added < second.added <= limits.ADDED_MAX


@pytest.mark.parametrize("attribute", ["", 'added="0"', f'added="{10**20 - 1}"', f'added="{limits.ADDED_MAX + 1}"'])
def test_f11_a_forward_placed_by_hand_takes_no_port_from_another_qube(
    app: FakeApp, service: Service, clock: Clock, tmp_path: Path, attribute: str
) -> None:
    """Mistake: what has no date is the oldest."""
    service.set(app.work, WEB)
    by_hand(app.personal, attribute)
    for _ in range(3):
        service.refresh()
        assert [str(e.to) for e in entries(app.firewall)] == ["10.137.0.6"]
        app = FakeApp(tmp_path)
        service = Service(app, "boot-1", clock, clock)
    assert app.personal.firewall.forwards[0].added > app.work.firewall.forwards[0].added, "it has got a date meanwhile"


def test_f11_who_came_first_is_the_same_after_each_restart(
    app: FakeApp, service: Service, clock: Clock, tmp_path: Path
) -> None:
    """Two without a date, found at the same time; a new rule is younger than both, also with the clock set back."""
    by_hand(app.personal, "", "")
    by_hand(app.work, "")
    service.refresh()
    owner = [str(e.to) for e in entries(app.firewall) if e.listen.first == 443]
    clock.now -= 500_000
    for _ in range(3):
        app = FakeApp(tmp_path)
        service = Service(app, "boot-1", clock, clock)
        service.refresh()
        assert [str(e.to) for e in entries(app.firewall) if e.listen.first == 443] == owner
    dates = [s.added for vm in (app.personal, app.work) for s in vm.firewall.forwards]
    service.set(app.firewall, SSH)
    assert app.firewall.firewall.forwards[0].added > max(dates)
    assert len(set(dates)) == 3
