# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""What dom0 answers on how forwards fare, with qubes that tell the truth, lie, or are silent; and steering them."""

import time

import pytest

from portfwd.dom0.views.queries import StatusService
from portfwd.model.ordinary import parse_ordinary
from portfwd.wire import limits
from portfwd.wire.answers import preview
from portfwd.wire.answers.connections import Ended, format_result
from portfwd.wire.answers.report import AcceptReport, EntryReport, Listening, RelayReport
from portfwd.wire.entry import Accept
from portfwd.wire.errors import RefusedError
from tests.dom0.asking import NEAR, WEB, accept, apply, confirmed, give, hops, plan, report, run, states, status
from tests.dom0.test_pull import HOSTILE
from tests.fakes.app import FakeApp
from tests.fakes.service import Service

PAUSED = "action=forward forwardtype=external srcports=80-80 dstports=80-80 enabled=no comment=not now\n"

STORED = WEB


def test_hops_confirm_that_what_is_removed_is_gone(
    app: FakeApp, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    no, yes = (
        [
            f"hop={name} internal={internal} confirmed={word}"
            for name, internal in (("sys-net", "no"), ("sys-firewall", "yes"), ("work", "yes"))
        ]
        for word in ("no", "yes")
    )
    assert confirmed(app, service) == no
    for vm in (app.net, app.firewall, app.work):
        apply(vm)
    assert confirmed(app, service) == yes
    service.set(app.work, "")
    assert confirmed(app, service) == no, "it is not even written"
    service.refresh()
    assert confirmed(app, service) == no
    apply(app.firewall)
    app.net.database.write(limits.STATUS_BASE, "version=1 generation=1 state=applied")
    assert confirmed(app, service) == [no[0], yes[1], no[2]]
    apply(app.net)
    app.net.database.write(limits.BASE, "spoilt by the qube")
    apply(app.work)
    failed = (app.work.database.read(limits.STATUS_BASE) or b"").replace(b"applied", b"failed")
    app.work.database.write(limits.STATUS_BASE, failed)
    assert confirmed(app, service) == [no[0], yes[1], no[2]]

    def dead(_: str) -> bytes:
        raise OSError("no daemon")

    monkeypatch.setattr(app.firewall.database, "read", dead)
    assert confirmed(app, service)[1] == no[1]
    app.work.running = False
    app.firewall.database = None  # type: ignore[assignment]
    assert confirmed(app, service) == no[:2]


def test_hops_that_never_held_anything_have_nothing_to_confirm(app: FakeApp) -> None:
    empty = Service(app, "boot-1")
    empty.refresh()
    assert confirmed(app, empty) == []


def test_a_forward_is_told_hop_by_hop_with_what_its_ends_tell(app: FakeApp, service: Service) -> None:
    service.set(app.work, WEB + PAUSED)
    service.refresh()
    for vm in (app.net, app.firewall, app.work):
        (entry,) = apply(vm)
    app.net.database.write(limits.STATUS + "uplinks", "192.168.1.10/24 2001:db8:1::a/64")
    report(app.net, {entry.key: RelayReport(12, 3)})
    report(app.work, {entry.key: AcceptReport(Listening.LOCAL, 9, 4711, 1)})
    rule, paused = entry.rule, PAUSED.strip()
    lines = status(app, service, app.work)
    assert lines[:4] == [
        f"qube=work rule={rule} number=0 {WEB.strip()}",
        f"rule={rule} hop=sys-net family=4 proto=tcp kind=relay side=uplink listen=443-443 source=neighbours"
        " to=10.137.0.5 ports=443-443 state=applied hits=12 last=3",
        f"rule={rule} hop=sys-firewall family=4 proto=tcp kind=relay side=inner listen=443-443 source=any"
        " to=10.137.0.6 ports=8443-8443 state=applied",
        f"rule={rule} hop=work family=4 proto=tcp kind=accept side=uplink listen=8443-8443 source=any"
        " state=applied listening=local packets=9 bytes=4711 connections=1",
    ]
    assert lines[4] == f"rule={rule} doors=open server=local"
    assert lines[5].startswith("qube=work rule=")
    assert lines[5].endswith(f" number=1 {paused}")
    assert lines[6].endswith(" hop=work state=paused")
    assert lines[7].endswith(" doors=shut server=unknown")
    assert lines[8:] == ["entrance=sys-net uplinks=192.168.1.10/24,2001:db8:1::a/64"]


def test_dom0_answers_for_all_qubes_as_each_for_itself(app: FakeApp, service: Service) -> None:
    service.set(app.personal, NEAR)
    service.refresh()
    for vm in app.domains:
        apply(vm)
    each = [status(app, service, vm) for vm in app.domains]
    every = status(app, service)
    assert sorted(every) == sorted({line for lines in each for line in lines})
    assert [line.split()[0] for line in every if line.startswith("qube=")] == ["qube=work", "qube=personal"]


def test_only_the_ends_of_an_applied_path_are_asked(app: FakeApp, service: Service) -> None:
    asking = StatusService(app, service)

    def asked() -> list[str]:
        return [vm.name for vm in asking.worth_asking(run(asking.survey(app.work)))]

    assert asked() == []
    apply(app.work)
    assert asked() == ["work"]
    apply(app.net)
    apply(app.firewall)
    assert asked() == ["sys-net", "work"]
    assert asking.worth_asking(run(asking.survey(app.personal))) == []


@pytest.mark.parametrize("name", [*HOSTILE, "a relay", "another rule"])
def test_a_hostile_qube_costs_its_own_words_only(app: FakeApp, service: Service, name: str) -> None:
    service.set(app.personal, WEB.replace("443-443", "22-22"))
    service.refresh()
    for vm in app.domains:
        apply(vm)
    good, bad = accept(app.work), accept(app.personal)
    report(app.work, {good: AcceptReport(Listening.YES, 9, 4711, 1)})
    if name in HOSTILE:
        app.personal.services[limits.REPORT_SERVICE] = HOSTILE[name]
    else:
        lie: dict[str, EntryReport] = {bad: RelayReport(1, 1), good: AcceptReport(Listening.NO, 1, 1, 1)}
        report(app.personal, lie if name == "a relay" else {good: AcceptReport(Listening.NO, 1, 1, 1)})
    begin = time.monotonic()
    lines = status(app, service)
    assert time.monotonic() - begin < 5
    assert [line.partition(" listening=")[2] for line in lines if " kind=accept" in line] == [
        "yes packets=9 bytes=4711 connections=1",
        "unknown packets=- bytes=- connections=-",
    ]
    assert all(line.isascii() and line.isprintable() for line in lines)


def test_what_else_a_qube_writes_beside_its_status_is_not_read(
    app: FakeApp, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    for vm in (app.net, app.firewall, app.work):
        apply(vm)
    for number in range(5000):
        app.work.database.write(f"{limits.STATUS}{number:016x}.4.tcp", "x" * 3000)
    read: list[str] = []
    real = app.work.database.read

    def counted(path: str) -> bytes | None:
        read.append(path)
        return real(path)

    def whole(*_: object) -> None:
        raise AssertionError("a subtree that a qube fills is not read as a whole")

    monkeypatch.setattr(app.work.database, "read", counted)
    monkeypatch.setattr(app.work.database, "multiread", whole)
    monkeypatch.setattr(app.work.database, "list", whole)
    assert [" state=applied" in line for line in hops(app, service, app.work)] == [True] * 3
    assert len(read) < 10


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (b"192.168.1.10/24", "192.168.1.10/24"),
        (b"fe80::1/64 10.0.0.1/32", "fe80::1/64,10.0.0.1/32"),
        (b"", "-"),
        (None, "-"),
        (b"192.168.1.10/24 evil", "-"),
        (b"192.168.1.10", "-"),
        (b"192.168.1.10/33", "-"),
        (b"192.168.1.10/255.255.255.0", "-"),
        (b"fe80::1%eth0/64", "-"),
        (b"10.0.0.1/24\nqube=work", "-"),
        (b"\x1b[2J", "-"),
        (b"10.0.0.1/24 " * 200, "-"),
    ],
)
def test_addresses_of_an_entrance_are_read_or_unknown(
    app: FakeApp, service: Service, said: bytes | None, told: str
) -> None:
    if said is not None:
        app.net.database.write(limits.STATUS + "uplinks", said)
    assert status(app, service, app.work)[-1] == f"entrance=sys-net uplinks={told}"


def test_a_qube_with_another_address_than_dom0_plans_has_to_restart(app: FakeApp, service: Service) -> None:
    service.set(app.work, WEB + NEAR)
    service.refresh()
    for vm in (app.net, app.firewall, app.work):
        vm.database.write("/qubes-ip", vm.ip)
        apply(vm)
    assert states(app, service) == ["applied"] * 5
    app.work.ip = "10.137.0.66"
    service.refresh()
    for vm in (app.net, app.firewall, app.work):
        apply(vm)
    assert states(app, service) == ["applied", "applied", "restart-needed", "applied", "restart-needed"]
    app.firewall.ip = "10.137.0.55"
    service.refresh()
    for vm in (app.net, app.firewall, app.work):
        apply(vm)
    found = ["applied", "restart-needed", "restart-needed", "applied", "restart-needed"]
    assert states(app, service) == found, "an internal forward is not for the address of sys-firewall"
    app.work.database.write("/qubes-ip", app.work.ip)
    assert states(app, service)[2:] == ["applied"] * 3
    for lie in (b"\x1b[2J", b"", b"10.137.0.66\n", b"x" * 3000):
        app.work.database.write("/qubes-ip", lie)
        assert states(app, service)[2:] == ["applied"] * 3


def test_a_result_of_the_agent_comes_before_a_restart(app: FakeApp, service: Service) -> None:
    app.work.database.write("/qubes-ip", "10.137.0.77")
    apply(app.work, "expired")
    assert states(app, service) == ["written", "written", "expired"]


def test_qubes_whose_own_rules_refuse_an_internal_forward_are_named(app: FakeApp, service: Service) -> None:
    service.set(app.work, WEB + NEAR)
    service.refresh()

    def siblings() -> list[str]:
        return [line.partition(" ")[2] for line in status(app, service, app.work) if " sibling=" in line]

    assert siblings() == []
    app.personal.firewall.set_rules(parse_ordinary("action=drop"))
    assert siblings() == ["sibling=personal outbound=refused"]
    app.personal.firewall.set_rules(parse_ordinary("action=accept dsthost=a.org"), parse_ordinary("action=drop"))
    assert siblings() == ["sibling=personal outbound=unknown"]
    app.personal.firewall.set_rules(parse_ordinary("action=accept dst4=10.137.0.6 proto=tcp dstports=8443"))
    assert siblings() == []
    app.personal.firewall.path.write_text("damaged")
    app.personal.running = False
    assert siblings() == []
    app.personal.running = True
    app.personal.firewall.path.unlink()
    app.personal.firewall.set_rules(parse_ordinary("action=drop"))
    service.set(app.work, NEAR.replace("\n", " srchost=10.137.0.99\n"))
    assert siblings() == [], "it is not among those who may connect anyway"


def test_a_dry_run_tells_what_would_stand_and_stores_nothing(app: FakeApp, service: Service) -> None:
    before = [dict(vm.database.multiread("/")) for vm in app.domains]
    give(app.work, limits.PREVIEW_SERVICE, str(preview.Preview(("ip in-port { tcp . 22 : goto anyone }",), 2)))
    app.firewall.services[limits.PREVIEW_SERVICE] = HOSTILE["garbage"]
    lines = plan(app, service, app.work, WEB.replace("443-443", "22-22"))
    assert [line.split(" hop=")[1].split()[0] for line in lines[:3]] == ["sys-net", "sys-firewall", "work"]
    assert all("listen=22-22" in line and line.endswith(" state=planned") for line in lines[:2])
    assert lines[3:] == [
        "hop=sys-net elements=unknown",
        "hop=sys-firewall elements=unknown",
        "hop=work element=ip in-port { tcp . 22 : goto anyone }",
        "hop=work element=... and 2 more",
    ]
    assert service.get(app.work) == WEB
    assert [dict(vm.database.multiread("/")) for vm in app.domains] == before
    assert "listen=443-443" in plan(app, service, app.work)[0]


def test_the_qubes_are_asked_about_the_entries_of_the_dry_run(app: FakeApp, service: Service) -> None:
    asked = app.work.firewall.path.parent / "asked"
    app.work.services[limits.PREVIEW_SERVICE] = f"cat >'{asked}'"
    plan(app, service, app.work, WEB.replace("443-443", "22-22"))
    (entry,) = preview.parse_request(asked.read_bytes())
    assert (type(entry), str(entry.listen)) == (Accept, "8443-8443")


def test_a_dry_run_is_refused_as_the_change_would_be(app: FakeApp, service: Service) -> None:
    for wrong in ("action=forward\n", WEB + WEB, WEB):
        with pytest.raises(RefusedError) as dry:
            plan(app, service, app.personal, wrong)
        with pytest.raises(RefusedError) as real:
            service.set(app.personal, wrong)
        assert str(dry.value) == str(real.value)


def test_connections_are_listed_for_the_rules_of_the_qube(app: FakeApp, service: Service) -> None:
    key = accept(app.work)
    other = f"{'f' * 16}.4.tcp"
    lines = [f"{which} client=192.168.1.20 port=50123 to=8443\n" for which in (key, other)]
    give(app.work, limits.CONNECTIONS_SERVICE, f"version=1 connections=2 more=5\n{''.join(lines)}")
    told = run(StatusService(app, service).connections(app.work))
    rule = key.partition(".")[0]
    assert told == f"rule={rule} family=4 proto=tcp client=192.168.1.20 port=50123 to=8443\nmore=6\n"
    assert run(StatusService(app, service).connections(app.personal)) == ""


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_qube_has_no_connections_to_tell(app: FakeApp, service: Service, name: str) -> None:
    app.work.services[limits.CONNECTIONS_SERVICE] = HOSTILE[name]
    app.work.services[limits.KILL_SERVICE] = HOSTILE[name]
    with pytest.raises(RefusedError, match="the agent of 'work' does not answer"):
        run(StatusService(app, service).connections(app.work))
    with pytest.raises(RefusedError, match="the agent of 'work' does not answer"):
        run(StatusService(app, service).kill(app.work, "family=4 proto=tcp client=192.168.1.20 port=50123 to=8443\n"))


LINE = "family=4 proto=tcp client=192.168.1.20 port=50123 to=8443"


@pytest.mark.parametrize("result", list(Ended))
def test_one_connection_is_ended(app: FakeApp, service: Service, result: Ended) -> None:
    asked = app.work.firewall.path.parent / "asked"
    give(app.work, "answer", format_result(result))
    app.work.services[limits.KILL_SERVICE] = f"cat >'{asked}'; {app.work.services['answer']}"
    killing = StatusService(app, service)
    if result is Ended.ENDED:
        run(killing.kill(app.work, LINE + "\n"))
    else:
        with pytest.raises(RefusedError, match=r"no such connection|of 'work'"):
            run(killing.kill(app.work, LINE))
    assert asked.read_text() == LINE + "\n"


@pytest.mark.parametrize(
    "line",
    [
        "",
        "\n",
        LINE + " more=1",
        LINE + "\n\n",
        LINE.replace("tcp", "icmp"),
        LINE.replace("=4 ", "=6 "),
        LINE.replace("50123", "70000"),
        LINE.replace("50123", "-1"),
        LINE.replace("192.168.1.20", "evil.example"),
        LINE.replace("192.168.1.20", "fe80::1%eth0").replace("=4 ", "=6 "),
        LINE + "\n" + LINE,
    ],
)
def test_what_is_no_connection_is_refused_before_a_qube_is_asked(app: FakeApp, service: Service, line: str) -> None:
    asked = app.work.firewall.path.parent / "asked"
    app.work.services[limits.KILL_SERVICE] = f"cat >'{asked}'"
    with pytest.raises(RefusedError):
        run(StatusService(app, service).kill(app.work, line))
    assert not asked.exists()
