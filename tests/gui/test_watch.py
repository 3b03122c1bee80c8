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

from portfwd.client.adminapi import AdminClient, CallError, SocketTransport
from portfwd.client.streams import Stream
from portfwd.gui.state.draft import Place
from portfwd.gui.widgets.dashboard import Dashboard
from portfwd.gui.widgets.feed import Feed
from portfwd.gui.widgets.panel import Panel
from portfwd.gui.widgets.rule_dialog import RuleDialog
from portfwd.gui.widgets.tray import Tray
from portfwd.gui.widgets.watch import Watch
from portfwd.gui.widgets.window import QubeWindow
from portfwd.model.forward import parse_forward
from portfwd.wire.errors import RefusedError
from portfwd.wire.values import QubeName

WORK = QubeName("work")


class Through:
    """The laboratory's dom0, of which a part can be away."""

    def __init__(self, transport: SocketTransport, *, news: bool = True) -> None:
        self._transport = transport
        self.gone, self.news = False, news
        self.calls: list[str] = []

    def call(self, dest: str, method: str, arg: str = "", payload: bytes = b"") -> bytes:
        self.calls.append(f"{method}+{arg} {dest}")
        if self.gone:
            raise RefusedError("qubesd is away")
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
