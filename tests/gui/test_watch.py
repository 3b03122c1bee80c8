# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""When dom0 is looked at, and what the windows say when it cannot be."""

import gc
import threading
from collections.abc import Callable

import pytest
from PyQt6 import sip
from PyQt6.QtCore import Qt
from PyQt6.QtWidgets import QWidget
from pytestqt.qtbot import QtBot

from portfwd.client.adminapi import AdminClient, CallError, EmptyAnswerError, SocketTransport
from portfwd.client.streams import Stream
from portfwd.gui.dashboard.dashboard import Dashboard
from portfwd.gui.dashboard.tray import Tray
from portfwd.gui.forward.rule_dialog import RuleDialog
from portfwd.gui.qube.panel import Panel
from portfwd.gui.qube.window import QubeWindow
from portfwd.gui.shared.feed import Feed
from portfwd.gui.shared.watch import Watch
from portfwd.gui.state.draft import Place
from portfwd.model.forward import parse_forward
from portfwd.wire.errors import RefusedError
from portfwd.wire.values import QubeName

WORK = QubeName("work")


class Through:
    """The laboratory's dom0, of which a part can be away."""

    def __init__(self, transport: SocketTransport, *, news: bool = True) -> None:
        self._transport = transport
        self.gone, self.news = False, news
        self.denied: dict[str, Exception] = {}
        """Whose forwards this client may not see, with what it gets instead."""
        self.calls: list[str] = []

    def call(self, dest: str, method: str, arg: str = "", payload: bytes = b"") -> bytes:
        self.calls.append(f"{method}+{arg} {dest}")
        if self.gone:
            raise RefusedError("qubesd is away")
        if dest in self.denied and method == "admin.vm.firewall.Get":
            raise self.denied[dest]
        return self._transport.call(dest, method, arg, payload)

    def stream(self, dest: str, method: str) -> Stream:
        if not self.news:
            raise CallError("events are not allowed")
        return self._transport.stream(dest, method)


def test_qubesd_that_goes_away_and_comes_back_is_met_calmly(
    client: AdminClient, transport: SocketTransport, watch: Watch, qtbot: QtBot, until: Callable[..., None]
) -> None:
    away = Through(transport)
    mine = Watch(AdminClient(away), away, watch.tasks)
    dashboard = Dashboard(mine)
    qtbot.addWidget(dashboard)
    dashboard.show()
    mine.start()
    until(lambda: mine.known)
    away.gone = True
    mine.look_at_all()
    until(lambda: dashboard.status.text() == "This may be out of date. qubesd is away")
    away.gone = False
    client.edit_forwards(WORK, lambda _: (parse_forward("action=forward forwardtype=external srcports=1"),))
    until(lambda: dashboard.status.text().startswith("1 forward open") and len(mine.overview.statuses) == 1)
    mine.close()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [(CallError("Request refused"), "Request refused"), (EmptyAnswerError(), "dom0 does not answer")],
    ids=["refused", "nothing"],
)
def test_f26_a_management_qube_that_is_denied_one_qube_sees_all_others(
    client: AdminClient,
    transport: SocketTransport,
    watch: Watch,
    qtbot: QtBot,
    until: Callable[..., None],
    answer: Exception,
    reason: str,
) -> None:
    """Policy lets it ask about some qubes, and about all at once neither."""
    for name, port in (("work", 1), ("personal", 2)):
        rule = parse_forward(f"action=forward forwardtype=external proto=tcp srcports={port}")
        client.edit_forwards(QubeName(name), lambda _, rule=rule: (rule,))  # type: ignore[misc]
    some = Through(transport)
    some.denied = {"dom0": answer, "personal": answer}
    mine = Watch(AdminClient(some), some, watch.tasks)
    dashboard, panel = Dashboard(mine), Panel(mine, QubeName("personal"))
    tray = Tray(mine, dashboard.doing, dashboard)
    for window in (dashboard, panel):
        qtbot.addWidget(window)
        window.show()
    mine.start()
    until(lambda: [status.qube for status in mine.overview.statuses] == ["work"])
    assert dashboard.table.forwards.rowCount() == 1
    assert f"Not told: personal ({reason})" in dashboard.status.text()
    assert "1 qube is not told" in tray.icon.toolTip()
    assert "out of date" not in dashboard.status.text() + tray.icon.toolTip()
    assert panel.line.text() == f"Not told: {reason}"
    # It may see it now, and later not any more.
    some.denied = {"dom0": answer}
    mine.look()
    until(lambda: dashboard.table.forwards.rowCount() == 2 and "told" not in dashboard.status.text())
    some.denied = {"dom0": answer, "work": answer}
    mine.look()
    until(lambda: [status.qube for status in mine.overview.statuses] == ["personal"])
    said = [dashboard.log.item(row).text() for row in range(dashboard.log.count())]  # type: ignore[union-attr]
    assert "work's port 1: not told any more, it may be open or not" in said[-1]
    assert not any("removed" in text for text in said)
    mine.close()


def test_windows_that_get_no_news_say_so_as_long_as_it_is_so(
    transport: SocketTransport, watch: Watch, qtbot: QtBot, until: Callable[..., None]
) -> None:
    deaf = Through(transport, news=False)
    mine = Watch(AdminClient(deaf), deaf, watch.tasks)
    dashboard, panel = Dashboard(mine), Panel(mine, WORK)
    for window in (dashboard, panel):
        qtbot.addWidget(window)
        window.show()
    tray = Tray(mine, dashboard.doing, dashboard)
    assert tray.icon.toolTip() == "Asking dom0..."
    mine.start()
    until(lambda: mine.known)
    looks: list[object] = []
    mine.changed.connect(looks.append)
    until(lambda: len(looks) >= 2)
    words = "This may be out of date. No news from dom0: events are not allowed"
    assert (dashboard.status.text(), panel.line.text()) == (words, words)
    assert tray.icon.toolTip() == "No port is open (may be out of date)"
    mine.close()


def test_a_window_that_goes_without_a_word_ends_its_events_quietly(
    client: AdminClient, transport: SocketTransport, qtbot: QtBot, capfd: pytest.CaptureFixture[str]
) -> None:
    """As programs of others may do with the window that our panel stands in."""
    heard = threading.Event()
    feed = Feed(transport)
    feed.established.connect(heard.set, Qt.ConnectionType.DirectConnection)
    feed.start()
    qtbot.waitUntil(heard.is_set)
    sip.delete(feed)
    client.edit_forwards(WORK, lambda _: (parse_forward("action=forward forwardtype=external srcports=1"),))
    qtbot.waitUntil(lambda: "events" not in [thread.name for thread in threading.enumerate()])
    assert capfd.readouterr().err == ""


MAKERS: dict[str, Callable[[Watch], QWidget]] = {
    "panel": lambda watch: Panel(watch, WORK),
    "dashboard": Dashboard,
    "window": lambda watch: QubeWindow(watch, WORK),
    "dialog": lambda watch: RuleDialog(watch.client, watch.tasks, Place(WORK)),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_a_window_that_python_collects_goes_without_an_exception(
    client: AdminClient, transport: SocketTransport, watch: Watch, qtbot: QtBot, make: Callable[[Watch], QWidget]
) -> None:
    """Mistake: a window's last events meet an object of ours whose attributes are gone, and Qt ends the program."""
    window = make(Watch(client, transport, watch.tasks))
    window.show()
    window.activateWindow()
    qtbot.waitUntil(window.isActiveWindow)
    qtbot.waitUntil(lambda: not watch.tasks.busy)
    del window
    gc.collect()


def test_the_start_looks_once(
    transport: SocketTransport, watch: Watch, qtbot: QtBot, until: Callable[..., None]
) -> None:
    counted = Through(transport)
    mine = Watch(AdminClient(counted), counted, watch.tasks)
    mine.start()
    until(lambda: mine.known)
    qtbot.wait(500)
    assert counted.calls.count("admin.vm.firewall.Get+forward.status dom0") == 1
    assert counted.calls.count("admin.vm.property.GetAll+ work") == 1
    mine.close()
