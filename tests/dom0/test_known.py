# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""What dom0 knows: which ports are open, which are shut, and of which that is not known; who has to confirm."""

import pytest

from portfwd.client.forward_state import State
from portfwd.wire import limits
from portfwd.wire.answers.report import AcceptReport, Listening
from tests.api.reading import read_status
from tests.dom0.asking import NEAR, WEB, accept, apply, confirmed, report, states, status
from tests.fakes.app import FakeApp, FakeVM
from tests.fakes.service import Service

STORED = WEB


def test_f6_a_net_qube_of_the_way_before_has_to_confirm_too(app: FakeApp, service: Service) -> None:
    for vm in (app.net, app.firewall, app.work):
        apply(vm)
    app.firewall.provides_network = app.net.provides_network = True
    app.work.netvm = app.net
    service.refresh()
    service.set(app.work, "")
    service.refresh()
    for vm in (app.net, app.work):
        apply(vm)
    silent = "hop=sys-firewall internal=yes confirmed=no"
    assert silent in confirmed(app, service)
    for _ in range(2):
        service.refresh()
        assert silent in confirmed(app, service)
    apply(app.firewall)
    assert not any("sys-firewall" in line for line in confirmed(app, service))


def test_f6_a_hop_where_something_could_not_be_taken_away_confirms_nothing(
    app: FakeApp, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its commit is right, and beside what is wanted there stands what dom0 failed to remove."""
    for vm in (app.net, app.firewall, app.work):
        apply(vm)
    service.refresh()
    told = "hop=sys-net internal=no confirmed="
    assert f"{told}yes" in confirmed(app, service)

    def full(_: str) -> None:
        raise OSError("no daemon")

    app.net.database.write(f"{limits.ENTRIES}other", "what an earlier dom0 wrote")
    with monkeypatch.context() as patch:
        patch.setattr(app.net.database, "rm", full)
        service.refresh()
        assert f"{told}no" in confirmed(app, service)
    service.refresh()
    apply(app.net)
    assert f"{told}yes" in confirmed(app, service)


def test_f6_after_a_restart_of_qubesd_it_is_not_known_what_a_silent_net_qube_holds(
    app: FakeApp, service: Service
) -> None:
    for vm in (app.net, app.firewall, app.work):
        apply(vm)
    app.work.netvm = app.net
    service.refresh()
    anew = Service(app, "boot-1")
    anew.set(app.work, "")
    anew.refresh()
    for vm in (app.net, app.work):
        apply(vm)
    assert "hop=sys-firewall internal=yes confirmed=no" in confirmed(app, anew)
    app.firewall.running = False
    assert not any("sys-firewall" in line for line in confirmed(app, anew)), "what does not run is shut"


def test_f6_a_hop_that_cannot_be_read_has_to_confirm_too(app: FakeApp, service: Service) -> None:
    for vm in (app.net, app.firewall, app.work):
        apply(vm)
    app.firewall.features = None  # type: ignore[assignment]
    service.set(app.work, "")
    service.refresh()
    apply(app.work)
    assert "hop=sys-firewall internal=yes confirmed=no" in confirmed(app, service)


def test_f6_a_word_on_a_commit_that_dom0_has_lost_is_no_confirmation(app: FakeApp, service: Service) -> None:
    for vm in (app.net, app.firewall, app.work):
        apply(vm)
    app.net.database.rm(limits.BASE)
    assert "hop=sys-net internal=no confirmed=no" in confirmed(app, service)


def judged(app: FakeApp, service: Service, vm: FakeVM | None = None) -> list[str]:
    """What dom0 says of each forward as a whole."""
    return [line.partition(" ")[2] for line in status(app, service, vm) if " doors=" in line]


@pytest.mark.parametrize("word", ["no-route", "not-forwarding"])
def test_f28_what_stood_in_the_kernel_without_a_way_may_have_come_open(
    app: FakeApp, service: Service, word: str
) -> None:
    """The kernel does not wait for an agent when the interface comes."""
    for vm in (app.net, app.firewall, app.work):
        apply(vm)
    apply(app.firewall, word)
    assert states(app, service) == ["applied", word, "applied"]
    assert judged(app, service, app.work)[0].startswith("doors=unknown ")
    service.set(app.work, WEB + NEAR)
    service.refresh()
    for vm in (app.net, app.work):
        apply(vm)
    assert states(app, service)[:3] == ["applied", "unknown", "applied"]


def test_f28_no_way_to_an_address_that_comes_with_a_restart_is_the_fault_of_nobody_else(
    app: FakeApp, service: Service
) -> None:
    for vm in (app.net, app.firewall, app.work):
        vm.database.write("/qubes-ip", vm.ip)
        apply(vm)
    apply(app.firewall, "no-route")
    assert states(app, service) == ["applied", "no-route", "applied"]
    apply(app.net, "not-forwarding")
    assert states(app, service) == ["not-forwarding", "no-route", "applied"]
    app.work.ip = "10.137.0.66"
    service.refresh()
    apply(app.work)
    for vm in (app.net, app.firewall):
        apply(vm, "no-route")
    assert states(app, service) == ["no-route", "applied", "restart-needed"], "sys-firewall itself has not moved"


def test_f8_another_port_does_not_shut_the_older_ones_while_an_agent_is_dead(app: FakeApp, service: Service) -> None:
    """Mistake: the new commit that sys-firewall does not answer makes all its forwards "not open yet"."""
    for vm in (app.net, app.firewall, app.work):
        apply(vm)
    report(app.work, {accept(app.work): AcceptReport(Listening.YES, 9, 4711, 1)})
    assert judged(app, service, app.work) == ["doors=open server=yes"]
    service.set(app.work, WEB + NEAR)
    service.refresh()
    for vm in (app.net, app.work):
        apply(vm)
    assert states(app, service) == ["applied", "unknown", "applied", "written", "applied"]
    old, new = judged(app, service, app.work)
    assert old.startswith("doors=unknown server=")
    assert old.endswith(" silent=sys-firewall")
    assert new.endswith(" silent=sys-firewall")
    anew = Service(app, "boot-1")
    anew.refresh()
    assert states(app, anew)[1] == "unknown", "also after a restart of qubesd"
    apply(app.firewall)
    assert [line.split()[0] for line in judged(app, service, app.work)] == ["doors=open"] * 2


def test_f8_a_rule_that_is_added_again_may_still_be_open_where_nobody_answers(app: FakeApp, service: Service) -> None:
    for vm in (app.net, app.firewall, app.work):
        apply(vm)
    for text in ("", WEB):
        service.set(app.work, text)
        service.refresh()
    assert states(app, service) == ["unknown"] * 3
    assert judged(app, service) == ["doors=unknown server=unknown silent=sys-net,sys-firewall,work"]


def test_f8_a_paused_rule_is_shut_only_where_all_hops_say_so(app: FakeApp, service: Service) -> None:
    for vm in (app.net, app.firewall, app.work):
        apply(vm)
    service.set(app.work, WEB.replace("\n", " enabled=no\n"))
    service.refresh()
    for vm in (app.net, app.work):
        apply(vm)
    assert judged(app, service) == ["doors=unknown server=unknown silent=sys-firewall"]
    app.firewall.database.rm(limits.STATUS)
    apply(app.firewall)
    assert judged(app, service) == ["doors=shut server=unknown"]
    service.set(app.personal, WEB.replace("443-443", "444-444"))
    service.refresh()
    assert judged(app, service, app.work) == ["doors=shut server=unknown"], "nobody opens it by silence"
    app.firewall.running = False
    assert judged(app, service, app.work) == ["doors=shut server=unknown"]


def test_f8_what_has_a_problem_now_may_still_be_open(app: FakeApp, service: Service) -> None:
    for vm in (app.net, app.firewall, app.work):
        apply(vm)
    app.firewall.features["port-forward.deny"] = "1"
    service.refresh()
    for vm in (app.net, app.work):
        apply(vm)
    assert judged(app, service) == ["doors=unknown server=unknown silent=sys-firewall"]


def test_f8_without_an_answer_of_the_target_it_is_not_known_whether_a_server_listens(
    app: FakeApp, service: Service
) -> None:
    for vm in (app.net, app.firewall, app.work):
        apply(vm)
    for listening in Listening:
        report(app.work, {accept(app.work): AcceptReport(listening, 9, 4711, 1)})
        assert judged(app, service) == [f"doors=open server={listening.value}"]
    app.work.services.clear()
    assert judged(app, service) == ["doors=open server=unknown"]
    (said,) = read_status("\n".join(status(app, service)))
    assert said.state is State.SERVER_UNKNOWN


def test_f8_a_database_that_cannot_be_read_leaves_it_open_whether_a_port_is(
    app: FakeApp, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    for vm in (app.net, app.firewall, app.work):
        apply(vm)

    def dead(*_: object) -> bytes:
        raise OSError("no daemon")

    for name in ("read", "multiread"):
        monkeypatch.setattr(app.firewall.database, name, dead)
    assert states(app, service) == ["applied", "unknown", "applied"]
    service.set(app.work, WEB + NEAR)
    service.refresh()
    assert states(app, service)[3:] == ["planned", "written"], "of the new one it has never been told"
