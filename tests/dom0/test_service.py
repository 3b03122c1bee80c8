# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The use cases of dom0 over real files and a QubesDB per qube: what a user's edit leads to."""

import pytest

from portfwd.api.forwards import token
from portfwd.wire import limits
from portfwd.wire.entry import Commit
from portfwd.wire.errors import RefusedError
from tests.dom0.asking import SSH, WEB, Clock, entries, hops, plan
from tests.fakes.app import FakeApp
from tests.fakes.service import Service


def test_a_rule_reaches_every_qube_on_the_way(app: FakeApp, service: Service) -> None:
    service.set(app.work, WEB)
    service.refresh()
    assert service.get(app.work) == WEB
    assert [len(entries(vm)) for vm in app.domains] == [1, 1, 1, 0]
    assert app.personal.database.read(limits.BASE) is None, "a qube without forwards is left alone"


def test_deleting_leaves_nothing(app: FakeApp, service: Service) -> None:
    service.set(app.work, WEB + SSH)
    service.refresh()
    service.set(app.work, "")
    service.refresh()
    assert [entries(vm) for vm in app.domains] == [[], [], [], []]


def test_refresh_writes_nothing_when_nothing_changed(app: FakeApp, service: Service) -> None:
    service.set(app.work, WEB)
    service.refresh()
    before = app.net.database.read(limits.BASE)
    service.refresh()
    assert app.net.database.read(limits.BASE) == before


def test_reload_has_names_resolved_again(app: FakeApp, service: Service) -> None:
    service.set(app.work, WEB.replace("\n", " srchost=home.example.org\n"))
    service.set(app.personal, SSH)
    service.refresh()
    before = [vm.database.read(limits.BASE) for vm in app.domains]
    service.reload(app.work)
    service.refresh()
    after = [vm.database.read(limits.BASE) for vm in app.domains]
    assert [old != new for old, new in zip(before, after, strict=True)] == [True, True, True, False]


def test_c30_a_second_qube_cannot_take_the_port(app: FakeApp, service: Service) -> None:
    service.set(app.work, WEB)
    with pytest.raises(RefusedError, match=r"srcports '443' is taken at 'sys-net' by external tcp port 443 of 'work'"):
        service.set(app.personal, WEB)
    assert service.get(app.personal) == ""


def test_one_edit_cannot_take_a_port_twice(app: FakeApp, service: Service) -> None:
    both = WEB + "action=forward forwardtype=external proto=tcp srcports=440-450 dstports=9000-9000\n"
    with pytest.raises(RefusedError, match="taken"):
        service.set(app.work, both)
    assert service.get(app.work) == ""


def test_a_paused_rule_gives_its_port_away_and_asks_again(app: FakeApp, service: Service) -> None:
    service.set(app.work, WEB.replace("\n", " enabled=no\n"))
    service.set(app.personal, WEB)
    with pytest.raises(RefusedError, match="taken"):
        service.set(app.work, WEB)


def test_an_old_conflict_does_not_block_other_edits(app: FakeApp, service: Service) -> None:
    app.personal.netvm = None
    service.set(app.work, WEB)
    service.set(app.personal, WEB)
    app.personal.netvm = app.firewall
    service.set(app.personal, WEB + SSH)
    service.refresh()
    assert {e.listen.first for e in entries(app.net)} == {443, 22}
    assert "reason=conflict" in plan(app, service, app.personal)[0]


def test_two_editors_cannot_overwrite_each_other(app: FakeApp, service: Service) -> None:
    seen = token(service.get(app.work))
    service.set(app.work, WEB, seen)
    with pytest.raises(RefusedError, match="changed by someone else"):
        service.set(app.work, SSH, seen)
    assert service.get(app.work) == WEB


@pytest.mark.parametrize("text", ["garbage\n", WEB + "\n", WEB + WEB, "action=accept\n", WEB.replace("443-443", "0")])
def test_u16_a_bad_payload_changes_nothing(app: FakeApp, service: Service, text: str) -> None:
    service.set(app.work, SSH)
    with pytest.raises(RefusedError):
        service.set(app.work, text)
    assert service.get(app.work) == SSH


def test_a_halted_hop_closes_and_its_start_opens(app: FakeApp, service: Service) -> None:
    service.set(app.work, WEB)
    app.net.running = False
    service.refresh()
    assert entries(app.firewall) == []
    app.net.running = True
    service.refresh()
    assert [len(entries(vm)) for vm in (app.net, app.firewall, app.work)] == [1, 1, 1]


def test_c18_netvm_switch_leaves_nothing_behind(app: FakeApp, service: Service) -> None:
    service.set(app.work, WEB)
    service.refresh()
    app.work.netvm = app.net
    service.refresh()
    assert entries(app.firewall) == []
    assert [str(e.to) for e in entries(app.net)] == ["10.137.0.6"]


def test_an_expired_rule_leaves_the_file(app: FakeApp, service: Service, clock: Clock) -> None:
    service.set(app.work, WEB.replace("\n", " expire=1000010\n") + SSH)
    service.refresh()
    assert service.next_deadline() == 1_000_010
    clock.now += 11
    assert service.get(app.work) == SSH, "hidden at once"
    service.expire()
    service.refresh()
    assert [s.rule.srcports.first for s in app.work.firewall.forwards] == [22]
    assert service.next_deadline() is None


def test_until_reboot_and_until_shutdown(app: FakeApp, service: Service, clock: Clock) -> None:
    service.set(app.work, WEB.replace("\n", " expire=reboot\n") + SSH.replace("\n", " expire=shutdown\n"))
    assert "expire=reboot" in Service(app, "boot-1", clock).get(app.work), "a restart of qubesd keeps it"
    service.stopped(app.work)
    assert service.get(app.work).count("\n") == 1
    assert Service(app, "boot-2", clock).get(app.work) == ""


def test_until_shutdown_begins_with_the_next_run_of_a_halted_qube(app: FakeApp, service: Service) -> None:
    app.work.running = False
    service.set(app.work, SSH.replace("\n", " expire=shutdown\n"))
    app.work.running, app.work.xid = True, 7
    service.refresh()
    assert len(entries(app.work)) == 1
    app.work.xid = 8
    service.refresh()
    assert entries(app.work) == [], "qubesd was away when the qube stopped"


def test_what_a_qube_writes_under_our_subtree_is_overwritten(app: FakeApp, service: Service) -> None:
    service.set(app.work, WEB)
    service.refresh()
    app.net.database.write(limits.ENTRIES + "evil", "kind=relay")
    app.net.database.write(limits.BASE, "version=1 generation=99999999999999999999 entries=0 digest=x")
    service.refresh()
    assert len(entries(app.net)) == 1


def test_a_dead_database_stops_nobody_else(app: FakeApp, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_args: object) -> None:
        raise RuntimeError("gone")

    monkeypatch.setattr(app.net.database, "multiread", broken)
    service.set(app.work, WEB)
    service.refresh()
    assert len(entries(app.firewall)) == 1
    (first, *_) = hops(app, service, app.work)
    assert "hop=sys-net family=4 proto=tcp" in first
    assert "state=planned" in first


def test_a_qube_that_cannot_be_read_any_more_is_shut(app: FakeApp, service: Service) -> None:
    service.set(app.work, WEB)
    service.refresh()
    app.work.ip = "nonsense"
    service.refresh()
    assert [entries(vm) for vm in (app.net, app.firewall, app.work)] == [[], [], []]


def test_an_unreadable_qube_is_left_out(app: FakeApp, service: Service) -> None:
    service.set(app.work, WEB)
    app.personal.ip = "nonsense"
    service.refresh()
    assert len(entries(app.net)) == 1
    with pytest.raises(RefusedError, match="cannot be read"):
        service.get(app.personal)


@pytest.mark.parametrize("said", [b"ok", b"\x1b[2J", b"", b"x" * 3000])
def test_status_passes_on_only_known_words(app: FakeApp, service: Service, said: bytes) -> None:
    service.set(app.work, WEB)
    service.refresh()
    for vm in (app.net, app.firewall, app.work):
        commit = Commit.parse((vm.database.read(limits.BASE) or b"").decode())
        vm.database.write(limits.STATUS_BASE, f"version=1 generation={commit.generation} state=applied")
        vm.database.write(limits.STATUS + entries(vm)[0].key, said)
    lines = hops(app, service, app.work)
    states = [line.rpartition("state=")[2].split()[0] for line in lines]
    assert states == ["applied" if said == b"ok" else "unclear"] * 3


def test_status_of_an_older_generation_is_only_written(app: FakeApp, service: Service) -> None:
    service.set(app.work, WEB)
    service.refresh()
    app.net.database.write(limits.STATUS_BASE, "version=1 generation=1 state=applied")
    assert hops(app, service, app.work)[0].endswith("state=written hits=- last=-")
