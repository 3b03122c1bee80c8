# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The extension in a stock qubesd of each release: what a client sees, what stays as it was, what never gets out."""

import asyncio
import importlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from portfwd.api.forwards import token
from portfwd.dom0 import running
from portfwd.dom0.running import WATCHED
from tests.fakes.service import TheirOwn
from tests.stock.stand_in import RELEASES, make

WEB = "action=forward forwardtype=external proto=tcp srcports=443-443 dstports=8443-8443"
OURS = "/qubes-port-forward/"


class Qubesd:
    """One process of qubesd with the extension, and one application in it."""

    def __init__(self, modules: dict[str, ModuleType], folder: Path) -> None:
        self.modules, self.folder = modules, folder
        self.loop = asyncio.new_event_loop()
        asyncio.set_event_loop(self.loop)
        self.entry = importlib.import_module("portfwd.dom0.qubesd.entry_point")
        self.extension = self.entry.load()
        self._apps: list[Any] = []
        self.app = self.load()
        self.turn()

    def load(self) -> Any:
        """Another application of the same files, as after a restart."""
        self._apps.append(self.modules["qubes"].Qubes(self.folder))
        return self._apps[-1]

    def close(self) -> None:
        """The end of the process."""
        # What waits for the loop, as the start of what runs for an application, comes first.
        self.loop.run_until_complete(asyncio.sleep(0.01))
        for app in self._apps:
            app.fire_event("qubes-close")
        self.loop.run_until_complete(asyncio.sleep(0.01))
        self.loop.close()
        asyncio.set_event_loop(None)

    def turn(self) -> None:
        """Let the loop do what it has been asked for."""
        self.loop.run_until_complete(asyncio.sleep(0.01))
        found = importlib.import_module("portfwd.dom0.qubesd.extension").running_of(self.app)
        if found is not None:
            self.loop.run_until_complete(found.told())

    def call(self, method: str, arg: str = "", payload: str = "", dest: str = "work", src: str = "dom0") -> Any:
        api = self.modules["qubes.api.admin"].QubesAdminAPI(
            self.app, src.encode(), f"admin.vm.firewall.{method}".encode(), dest.encode(), arg.encode()
        )

        async def execute() -> Any:
            return await api.execute(untrusted_payload=payload.encode())

        answer = self.loop.run_until_complete(execute())
        self.turn()
        return answer

    def file(self, qube: str = "work") -> str:
        return (self.folder / qube / "firewall.xml").read_text()

    def entries(self, qube: str) -> list[str]:
        return sorted(
            key.decode() if isinstance(key, bytes) else key for key in self.app.domains[qube].database.list(OURS)
        )

    def error(self, name: str) -> type[Exception]:
        found: type[Exception] = getattr(self.modules["qubes.exc"], name, None) or getattr(
            self.modules["qubes.api"], name
        )
        return found


def forget_stock() -> None:
    for name in [name for name in sys.modules if name.startswith("portfwd.dom0.qubesd")]:
        del sys.modules[name]


@pytest.fixture(params=RELEASES)
def modules(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    made = make(request.param)
    for name, module in made.items():
        monkeypatch.setitem(sys.modules, name, module)
    forget_stock()
    yield made
    forget_stock()


@pytest.fixture
def qubesd(modules: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Qubesd]:
    extension = importlib.import_module("portfwd.dom0.qubesd.extension")
    monkeypatch.setattr(extension, "_RUN", tmp_path)
    # The stand-in's databases are objects in memory; real daemons are those of tests/qubesd and the laboratory.
    monkeypatch.setattr(running, "DatabaseConnections", lambda _run: TheirOwn())
    qubesd = Qubesd(modules, tmp_path)
    yield qubesd
    qubesd.close()


def test_a_forward_is_stored_told_and_written_to_each_qube_on_the_way(qubesd: Qubesd) -> None:
    assert type(qubesd.extension).__name__ == "PortForwardExtension"
    qubesd.call("Set", "forward", f"{WEB}\n")
    assert qubesd.call("Get", "forward") == f"{WEB}\n"
    assert "<forwards>" in qubesd.file()
    for qube in ("sys-net", "sys-firewall", "work"):
        assert qubesd.entries(qube)
    qubesd.call("Set", "forward")
    assert qubesd.call("Get", "forward") == ""
    for qube in ("sys-net", "sys-firewall", "work"):
        assert qubesd.entries(qube) == []


def test_every_view_is_made_of_the_stocks_own_objects(qubesd: Qubesd) -> None:
    """Mistake: an ordinary rule of the stock is taken for one of ours, and no status can be read any more."""
    qubesd.call("Set", "forward", f"{WEB}\n{WEB.replace('external', 'internal')}\n")
    qubesd.call("Set", payload="action=drop dst4=10.137.0.6 proto=tcp\naction=accept\n", dest="personal")
    status = qubesd.call("Get", "forward.status")
    assert status == qubesd.call("Get", "forward.status", dest="dom0")
    assert status.count("\nqube=work ") + status.startswith("qube=work ") == 2
    assert " sibling=personal outbound=refused\n" in status
    assert qubesd.call("Get", "forward.hops").count("confirmed=no") == 3
    assert qubesd.call("Get", "forward.plan").count("state=planned") == 5
    rule = status.split()[1].removeprefix("rule=")
    assert "hop=sys-net " in qubesd.call("Set", "forward.check", f"rule={rule}\n")
    with pytest.raises(qubesd.error("QubesValueError"), match="a check sends packets"):
        qubesd.call("Get", f"forward.check.{rule}")
    with pytest.raises(qubesd.error("QubesValueError"), match="does not answer"):
        qubesd.call("Get", "forward.connections")
    with pytest.raises(qubesd.error("QubesValueError"), match="does not answer"):
        qubesd.call("Set", "forward.kill", "family=4 proto=tcp client=192.168.1.20 port=1 to=8443\n")


def test_what_fails_in_a_call_is_told_and_logged(
    qubesd: Qubesd, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """qubesd ends the connection at an exception that it does not know, and clients took that for "not installed"."""

    def broken(*_: object) -> str:
        raise AttributeError("on purpose")

    found = importlib.import_module("portfwd.dom0.qubesd.extension").running_of(qubesd.app)
    monkeypatch.setattr(found.service, "get", broken)
    with pytest.raises(qubesd.error("QubesException"), match=r"failed \(AttributeError\); see the journal of qubesd"):
        qubesd.call("Get", "forward")
    assert "on purpose" in caplog.text


def test_calls_without_argument_are_the_stocks_and_keep_the_forwards(qubesd: Qubesd) -> None:
    qubesd.call("Set", "forward", f"{WEB}\n")
    assert qubesd.call("Get") == "action=accept\n"
    qubesd.call("Set", payload="action=drop dsthost=1.2.3.4 comment=mine\naction=accept\n")
    assert qubesd.call("Get") == "action=drop dst4=1.2.3.4/32 comment=mine\naction=accept\n"
    assert qubesd.call("Get", "forward") == f"{WEB}\n"
    text = qubesd.file()
    assert text.index("</rules>") < text.index("<forwards>")


def test_a_restart_of_qubesd_reads_both_lists(qubesd: Qubesd) -> None:
    qubesd.call("Set", "forward", f"{WEB}\n")
    qubesd.call("Set", payload="action=drop\n")
    again = qubesd.load()
    work = again.domains["work"].firewall
    assert [rule.api_rule for rule in work.rules] == ["action=drop"]
    assert [str(stored.rule) for stored in work.forwards] == [WEB]


def test_errors_reach_the_client_as_what_it_can_show(qubesd: Qubesd) -> None:
    shown = qubesd.error("QubesValueError")
    with pytest.raises(shown, match="65535"):
        qubesd.call("Set", "forward", WEB.replace("443-443", "80443-80443") + "\n")
    qubesd.call("Set", "forward", f"{WEB}\n")
    with pytest.raises(shown, match="someone else"):
        qubesd.call("Set", f"forward.{token('other')}", "")
    with pytest.raises(shown):
        qubesd.call("Set", "forward", "100% wrong\n")
    assert qubesd.call("Get", "forward") == f"{WEB}\n"


def test_what_is_not_ours_is_refused_as_by_the_release_itself(qubesd: Qubesd) -> None:
    protocol = qubesd.error("ProtocolError")
    for method, payload in (("Get", ""), ("Set", "action=accept")):
        with pytest.raises((protocol, qubesd.error("PermissionDenied"))):
            qubesd.call(method, "other", payload)
    with pytest.raises(protocol):
        qubesd.call("Get", "forward", "payload")
    with pytest.raises(protocol):
        qubesd.call("Get", "forward.nothing")
    with pytest.raises(protocol):
        qubesd.call("Get", payload="payload")
    with pytest.raises(protocol):
        qubesd.call("Set", "forward", dest="dom0")
    assert qubesd.call("Get", "forward.status", dest="dom0") == ""


def test_forwards_among_the_rules_are_read_and_moved(qubesd: Qubesd) -> None:
    words = "".join(
        f'<property name="{key}">{value}</property>' for key, _, value in (w.partition("=") for w in WEB.split())
    )
    (qubesd.folder / "work/firewall.xml").write_text(
        '<firewall version="2"><rules><!-- the proposal --><rule><properties>'
        f'{words}</properties></rule><rule><properties><property name="action">drop</property></properties></rule>'
        "</rules></firewall>"
    )
    again = qubesd.load()
    firewall = again.domains["work"].firewall
    assert [rule.api_rule for rule in firewall.rules] == ["action=drop"]
    assert [str(stored.rule) for stored in firewall.forwards] == [WEB]
    firewall.save()
    assert qubesd.file().index("</rules>") < qubesd.file().index('"action">forward')


def test_a_damaged_forward_opens_nothing_and_is_never_overwritten(qubesd: Qubesd) -> None:
    qubesd.call("Set", "forward", f"{WEB}\n")
    path = qubesd.folder / "work/firewall.xml"
    path.write_text(qubesd.file().replace(">443<", ">99999<", 1))
    before = path.read_text()
    again = qubesd.load()
    firewall = again.domains["work"].firewall
    assert [rule.api_rule for rule in firewall.rules] == ["action=accept"]
    with pytest.raises(qubesd.error("QubesException")):
        firewall.save()
    assert path.read_text() == before


def test_a_file_that_is_no_firewall_file_any_more_is_not_written_over(qubesd: Qubesd) -> None:
    qubesd.call("Set", "forward", f"{WEB}\n")
    path = qubesd.folder / "work/firewall.xml"
    path.write_text("half a fi")
    with pytest.raises(qubesd.error("QubesException")):
        qubesd.app.domains["work"].firewall.save()
    assert path.read_text() == "half a fi"


def test_what_a_handler_meets_never_reaches_qubesd(qubesd: Qubesd, caplog: pytest.LogCaptureFixture) -> None:
    running = importlib.import_module("portfwd.dom0.qubesd.extension").running_of(qubesd.app)

    def broken(*_: object) -> None:
        raise RuntimeError("on purpose")

    running.on_firewall = running.on_shutdown = running.ask = broken
    work = qubesd.app.domains["work"]
    for event in ("firewall-changed", "domain-shutdown", "domain-start", "net-domain-connect"):
        work.fire_event(event, vm=work)
    qubesd.app.fire_event("domain-add", vm=work)
    assert caplog.text.count("on purpose") >= 5
    work.firewall.save()


def test_a_handler_of_the_stock_that_fails_does_not_undo_what_is_stored(qubesd: Qubesd) -> None:
    def dead(*_: object, **__: object) -> None:
        raise OSError("QubesDB is gone")

    qubesd.modules["qubes.vm.qubesvm"].QubesVM.__handlers__["firewall-changed"].append(dead)
    qubesd.call("Set", "forward", f"{WEB}\n")
    assert qubesd.call("Get", "forward") == f"{WEB}\n"


def test_the_words_of_an_agent_are_watched(qubesd: Qubesd) -> None:
    assert qubesd.app.domains["sys-net"].watched == set(WATCHED)


def test_offline_nothing_runs_and_files_are_kept(modules: dict[str, ModuleType], tmp_path: Path) -> None:
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    importlib.import_module("portfwd.dom0.qubesd.entry_point").load()
    app = modules["qubes"].Qubes(tmp_path, offline=True)
    loop.run_until_complete(asyncio.sleep(0.01))
    assert importlib.import_module("portfwd.dom0.qubesd.extension").running_of(app) is None
    app.domains["work"].firewall.save()
    loop.close()
    asyncio.set_event_loop(None)


def test_an_application_of_another_class_starts_nothing(modules: dict[str, ModuleType], tmp_path: Path) -> None:
    """Upstream's tests have such, which nobody closes: what ran for them would stay in their loop."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    importlib.import_module("portfwd.dom0.qubesd.entry_point").load()
    app = modules["qubes"].Qubes(tmp_path, offline=True)
    other = SimpleNamespace(vmm=SimpleNamespace(offline_mode=False), domains=app.domains)
    app.domains["work"].app = other
    app.domains["work"].fire_event("domain-start")
    loop.run_until_complete(asyncio.sleep(0.01))
    assert importlib.import_module("portfwd.dom0.qubesd.extension").running_of(other) is None
    loop.close()
    asyncio.set_event_loop(None)


def test_without_its_own_parts_qubesd_starts_and_is_told_once(
    modules: dict[str, ModuleType], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    del modules["qubes.firewall"].Firewall
    entry = importlib.import_module("portfwd.dom0.qubesd.entry_point")
    with caplog.at_level(logging.ERROR):
        assert [type(entry.load()).__name__ for _ in range(3)] == ["Off"] * 3
    assert caplog.text.count("port forwarding is off") == 1
    assert tmp_path.exists()


@pytest.mark.parametrize("words", [("work", "sys-net")])
def test_a_shut_down_of_a_qube_ends_what_lasts_as_long(qubesd: Qubesd, words: tuple[str, str]) -> None:
    qubesd.call("Set", "forward", f"{WEB} expire=shutdown\n")
    work = qubesd.app.domains[words[0]]
    assert qubesd.entries(words[1])
    work.running = False
    work.fire_event("domain-shutdown")
    qubesd.turn()
    assert qubesd.call("Get", "forward") == ""
    assert qubesd.entries(words[1]) == []


def test_an_application_that_closes_lets_go_of_the_loop(qubesd: Qubesd) -> None:
    extension = importlib.import_module("portfwd.dom0.qubesd.extension")
    assert extension.running_of(qubesd.app) is not None
    qubesd.app.fire_event("qubes-close")
    assert extension.running_of(qubesd.app) is None
    # A call that comes after all starts it anew.
    assert qubesd.call("Get", "forward") == ""


def policy(qubesd: Qubesd, *names: str) -> None:
    """Let sys-net, which is a qube like any other here, list these and get and set all of theirs."""
    lines = ["admin.vm.firewall.Get +forward.status sys-net dom0 allow target=dom0"]
    for name in names:
        lines += [f"admin.vm.List * sys-net {name} allow target=dom0"]
        lines += [f"admin.vm.firewall.{method} * sys-net {name} allow target=dom0" for method in ("Get", "Set")]
    qubesd.modules["qubes.ext.admin"].AdminExtension.lines[:] = lines


def test_f21_a_qube_is_told_of_others_what_its_policy_allows(qubesd: Qubesd) -> None:
    qubesd.call("Set", "forward", f"{WEB} comment=secret\n", dest="personal")
    qubesd.call("Set", payload="action=drop\n", dest="personal")
    qubesd.call("Set", "forward", f"{WEB.replace('443-443 ', '80-80 ').replace('external', 'internal')}\n")
    policy(qubesd, "work")
    with pytest.raises(qubesd.error("QubesValueError"), match="at 'sys-net' by a forward that you may not see"):
        qubesd.call("Set", "forward", f"{WEB}\n", src="sys-net")
    told = qubesd.call("Get", "forward.status", dest="dom0", src="sys-net")
    assert told == qubesd.call("Get", "forward.status", src="sys-net")
    assert "hop=sys-firewall" in told
    assert "personal" not in told
    assert "sibling=personal outbound=refused" in qubesd.call("Get", "forward.status")
    assert "comment=secret" in qubesd.call("Get", "forward.status", dest="dom0")
    policy(qubesd, "work", "personal")
    assert qubesd.call("Get", "forward.status", dest="dom0", src="sys-net") == qubesd.call(
        "Get", "forward.status", dest="dom0"
    )
    with pytest.raises(qubesd.error("QubesValueError"), match="port 443 of 'personal'"):
        qubesd.call("Set", "forward", f"{WEB}\n", src="sys-net")


def test_programs_tell_errors_apart_by_their_class(qubesd: Qubesd) -> None:
    """Mistake: a tool searches the sentence, and a better wording breaks it."""
    qubesd.call("Set", "forward", f"{WEB}\n", dest="personal")
    for arg, word in (("forward", "ForwardsTakenError"), (f"forward.{'0' * 32}", "ForwardsChangedError")):
        with pytest.raises(qubesd.error("QubesException")) as caught:
            qubesd.call("Set", arg, f"{WEB}\n")
        assert type(caught.value).__name__ == word


def test_f21_what_another_extension_hides_is_not_told(qubesd: Qubesd) -> None:
    policy(qubesd, "work", "personal")
    qubesd.call("Set", "forward", f"{WEB}\n", dest="personal")
    handlers = qubesd.modules["qubes.vm.qubesvm"].QubesVM.__handlers__
    handlers["admin-permission:admin.vm.firewall.Get"].append(lambda *_, **__: [lambda vm: vm.name != "personal"])
    assert qubesd.call("Get", "forward.status", dest="dom0", src="sys-net") == ""


@pytest.mark.parametrize("lost", ["AdminExtension", "JustEvaluateAllowResolution"])
def test_f21_where_the_policy_cannot_be_asked_nothing_is_told_of_others(qubesd: Qubesd, lost: str) -> None:
    policy(qubesd, "work", "personal")
    qubesd.call("Set", "forward", f"{WEB}\n", dest="personal")
    delattr(qubesd.modules["qubes.ext.admin"], lost)
    assert qubesd.call("Get", "forward.status", dest="dom0", src="sys-net") == ""
    assert "port=" not in qubesd.call("Get", "forward", src="sys-net"), "what the call is about is told as ever"


def test_f21_what_the_restore_of_a_backup_brings_comes_in_paused(qubesd: Qubesd) -> None:
    qubesd.app.domains["sys-net"].tags.add("backup-restore-mgmt")
    qubesd.call("Set", "forward", f"{WEB}\n", src="sys-net")
    assert qubesd.call("Get", "forward") == f"{WEB} enabled=no\n"
    assert qubesd.entries("sys-firewall") == []
