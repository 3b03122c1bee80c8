# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""A new list of forwards, as dom0 stores it: dates, sessions, and what it refuses."""

import pytest

from portfwd.model.errors import RuleError
from portfwd.wire.errors import RefusedError
from tests.dom0.asking import NEAR, WEB, Clock
from tests.fakes.app import FakeApp, FakeVM
from tests.fakes.service import Service

SHORT = WEB.strip()
LATER = 2_000_000


def dates(vm: FakeVM) -> list[int]:
    return [stored.added for stored in vm.firewall.forwards]


def test_an_edit_keeps_the_date_of_a_forward_and_so_its_place_in_the_queue(
    app: FakeApp, service: Service, clock: Clock
) -> None:
    service.set(app.work, WEB)
    (added,) = dates(app.work)
    clock.now = LATER
    service.set(app.work, f"{SHORT} comment=another word\n")
    assert dates(app.work) == [added]
    service.set(app.work, f"{SHORT} enabled=no\n")
    service.set(app.work, WEB + NEAR)
    assert dates(app.work) == [added, LATER]


def test_a_forward_that_is_removed_and_added_again_is_a_new_one(app: FakeApp, service: Service, clock: Clock) -> None:
    service.set(app.work, WEB)
    service.set(app.work, "")
    clock.now = LATER
    service.set(app.work, WEB)
    assert dates(app.work) == [LATER]


def test_dates_grow_over_all_qubes_also_when_the_clock_is_set_back(
    app: FakeApp, service: Service, clock: Clock
) -> None:
    service.set(app.work, WEB)
    clock.now = 10.0
    service.set(app.personal, WEB.replace("443-443", "80-80") + NEAR.replace("444", "445"))
    assert dates(app.work) < [dates(app.personal)[0]] < [dates(app.personal)[1]]


def test_a_forward_until_shutdown_is_of_this_run_of_its_qube_and_one_until_reboot_of_this_host(
    app: FakeApp, service: Service
) -> None:
    service.set(app.work, f"{SHORT} expire=shutdown\n{NEAR.strip()} expire=reboot\n")
    sessions = [stored.session for stored in app.work.firewall.forwards]
    assert sessions == [service.snapshot().qubes["work"].session, "boot-1"]  # type: ignore[index]
    service.set(app.work, WEB)
    assert [stored.session for stored in app.work.firewall.forwards] == [""]


def test_a_taken_port_is_refused_with_its_owner_and_nothing_is_stored(app: FakeApp, service: Service) -> None:
    service.set(app.work, WEB)
    service.refresh()
    with pytest.raises(RefusedError, match="443"):
        service.set(app.personal, WEB)
    assert dates(app.personal) == []


def test_what_is_paused_takes_no_port_until_it_is_enabled(app: FakeApp, service: Service) -> None:
    service.set(app.work, f"{SHORT} enabled=no\n")
    service.set(app.personal, WEB)
    with pytest.raises(RefusedError, match="443"):
        service.set(app.work, WEB)
    assert not app.work.firewall.forwards[0].rule.enabled


def test_a_rule_that_shifts_too_many_ports_is_refused_by_its_line(app: FakeApp, service: Service) -> None:
    wide = "action=forward forwardtype=external proto=tcp srcports=1-30000 dstports=30001-60000"
    with pytest.raises(RuleError, match="line 2"):
        service.set(app.work, f"{WEB}{wide}\n")
    assert dates(app.work) == []
