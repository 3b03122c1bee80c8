# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The dashboard: all forwards, live, with what a user can do there."""

import socket
from collections.abc import Callable, Iterator

import pytest
from PyQt6.QtCore import QPoint, Qt
from PyQt6.QtWidgets import QMessageBox
from pytestqt.qtbot import QtBot

from lab import probes
from lab.client import Lab
from lab.show.demo import SYS_NET, hold_connection
from portfwd.client.adminapi import AdminClient
from portfwd.client.forward_state import State
from portfwd.gui.dashboard.dashboard import Dashboard
from portfwd.gui.dashboard.tray import Tray
from portfwd.gui.forward.check_dialog import CheckDialog
from portfwd.gui.forward.rule_dialog import RuleDialog
from portfwd.gui.shared.watch import Watch
from portfwd.gui.state.overview import Column
from portfwd.model.forward import parse_forward
from portfwd.wire.values import QubeName

WORK, PERSONAL = QubeName("work"), QubeName("personal")
WEB = "action=forward forwardtype=external proto=tcp srcports=443-443 dstports=8443-8443 comment=web"
SSH = "action=forward forwardtype=external proto=tcp srcports=22-22"
Until = Callable[[Callable[[], bool]], None]
pytestmark = pytest.mark.usefixtures("server")


@pytest.fixture
def dashboard(qtbot: QtBot, watch: Watch) -> Iterator[Dashboard]:
    dashboard = Dashboard(watch)
    qtbot.addWidget(dashboard)
    dashboard.show()
    yield dashboard


def store(client: AdminClient, qube: QubeName, *rules: str) -> None:
    client.edit_forwards(qube, lambda _: tuple(parse_forward(rule) for rule in rules))


def cells(dashboard: Dashboard, column: Column) -> list[str]:
    table = dashboard.table
    at = table.forwards.column_of(column)
    return [str(table.sorted.index(row, at).data()) for row in range(table.sorted.rowCount())]


def test_what_is_stored_anywhere_shows_up_and_goes_by_itself(
    dashboard: Dashboard, client: AdminClient, until: Until
) -> None:
    store(client, WORK, WEB)
    store(client, PERSONAL, SSH.replace("22", "8080"))
    until(lambda: sorted(cells(dashboard, Column.QUBE)) == ["personal", "work"])
    until(lambda: "open" in cells(dashboard, Column.STATE) and "no-server" in cells(dashboard, Column.STATE))
    assert dashboard.status.text().startswith("2 forwards open: 2 to the LAN.")
    store(client, WORK)
    until(lambda: cells(dashboard, Column.QUBE) == ["personal"])
    texts = [item.text() for row in range(dashboard.log.count()) if (item := dashboard.log.item(row)) is not None]
    assert any("LAN hosts can" in text and "work's port 8443" in text for text in texts)
    assert texts[-1].endswith("work's port 8443 is no longer reachable: the forward is removed")


def test_a_change_of_the_network_shows_up(dashboard: Dashboard, client: AdminClient, lab: Lab, until: Until) -> None:
    store(client, WORK, WEB)
    until(lambda: cells(dashboard, Column.STATE) == ["open"])
    try:
        lab.api("work", "admin.vm.property.Set", "netvm", "")
        until(lambda: cells(dashboard, Column.STATE)[0].startswith("problem"))
    finally:
        lab.api("work", "admin.vm.property.Set", "netvm", "sys-firewall")
    until(lambda: cells(dashboard, Column.STATE) == ["open"])


def test_search_finds_words_anywhere(dashboard: Dashboard, client: AdminClient, qtbot: QtBot, until: Until) -> None:
    store(client, WORK, WEB, SSH)
    until(lambda: dashboard.table.sorted.rowCount() == 2)
    qtbot.keyClicks(dashboard.search, "WEB sys-firewall")
    assert cells(dashboard, Column.COMMENT) == ["web"]
    dashboard.search.clear()
    assert dashboard.table.sorted.rowCount() == 2


def test_sorting_takes_numbers_as_numbers(dashboard: Dashboard, client: AdminClient, until: Until) -> None:
    store(client, WORK, *(SSH.replace("22", port) for port in ("9", "1000", "80")))
    until(lambda: dashboard.table.sorted.rowCount() == 3)
    dashboard.table.sortByColumn(dashboard.table.forwards.column_of(Column.TARGET), Qt.SortOrder.AscendingOrder)
    assert cells(dashboard, Column.TARGET) == ["9", "80", "1000"]


def test_a_connection_is_listed_and_can_be_ended(
    dashboard: Dashboard, client: AdminClient, lab: Lab, qtbot: QtBot, until: Until
) -> None:
    store(client, WORK, SSH)
    until(lambda: cells(dashboard, Column.STATE) == ["open"])
    ours, theirs = socket.socketpair()
    with ours, ours.makefile("rw") as talk:
        holder = lab.start_call("laptop", hold_connection, theirs, SYS_NET, 22)
        theirs.close()
        talk.readline()
        dashboard.table.selectRow(0)
        until(lambda: dashboard.details.clients.count() == 1)
        item = dashboard.details.clients.item(0)
        assert item is not None
        assert item.text().startswith("192.168.1.20:")
        dashboard.details.clients.setCurrentRow(0)
        qtbot.mouseClick(dashboard.details.kill, Qt.MouseButton.LeftButton)
        until(lambda: dashboard.details.clients.count() == 0)
        ours.shutdown(socket.SHUT_RDWR)
        holder.wait()
    assert cells(dashboard, Column.STATE) == ["open"]


def test_the_picture_shows_paths_and_a_click_selects(
    dashboard: Dashboard, client: AdminClient, qtbot: QtBot, until: Until
) -> None:
    store(client, WORK, WEB)
    until(lambda: cells(dashboard, Column.STATE) == ["open"])
    dashboard.tabs.setCurrentWidget(dashboard.network)
    until(lambda: "1 forwards through 3 qubes" in dashboard.network.accessibleDescription())
    port = dashboard.network.viewport()
    assert port is not None
    picture = dashboard.network.picture
    work, firewall = (next(box for box in picture.boxes if box.name == name) for name in ("work", "sys-firewall"))
    middle = dashboard.network.mapFromScene((work.x + 150 + firewall.x) / 2, work.y + 17)
    spots = [QPoint(middle.x(), middle.y() + dy) for dy in range(-14, 15, 4)]
    for spot in spots:
        qtbot.mouseClick(port, Qt.MouseButton.LeftButton, pos=spot)
    assert [status.qube for status in dashboard.table.selected()] == ["work"]


def test_a_port_is_opened_from_the_menu_of_qubes(dashboard: Dashboard, lab: Lab, qtbot: QtBot, until: Until) -> None:
    menu = dashboard.add.menu()
    assert menu is not None
    (action,) = (action for action in menu.actions() if action.text() == "work...")
    action.trigger()
    (dialog,) = dashboard.findChildren(RuleDialog)
    qtbot.keyClicks(dialog.form.ports, "22")
    qtbot.mouseClick(dialog.ok, Qt.MouseButton.LeftButton)
    until(lambda: dialog.ok.text() == "&Close")
    assert lab.call("laptop", probes.ask_tcp, SYS_NET, 22) not in ("timeout", "refused")


def test_check_names_the_hop(dashboard: Dashboard, client: AdminClient, qtbot: QtBot, until: Until) -> None:
    store(client, WORK, SSH.replace("22", "2222"))
    until(lambda: cells(dashboard, Column.STATE) == ["no-server"])
    dashboard.table.selectRow(0)
    qtbot.mouseClick(dashboard.details.check, Qt.MouseButton.LeftButton)
    (dialog,) = dashboard.findChildren(CheckDialog)
    until(lambda: dialog.findings.text().startswith("work is where it ends (no-server)."))


def test_the_tray_counts_and_closes_all(
    dashboard: Dashboard, watch: Watch, client: AdminClient, lab: Lab, qtbot: QtBot, until: Until
) -> None:
    tray = Tray(watch, dashboard.doing, dashboard)
    store(client, WORK, WEB, f"{SSH} srchost=any")
    until(lambda: tray.icon.toolTip() == "2 forwards open: 1 to anyone, 1 to the LAN")
    box = tray.ask_to_close_all()
    yes = box.button(QMessageBox.StandardButton.Yes)
    assert yes is not None
    qtbot.mouseClick(yes, Qt.MouseButton.LeftButton)
    until(lambda: tray.icon.toolTip() == "No port is open")
    assert lab.call("laptop", probes.fetch, SYS_NET, 443) in ("timeout", "refused")
    assert [rule.enabled for rule in client.forwards(WORK).rules] == [False, False]


def test_nothing_is_asked_while_nothing_is_shown(
    dashboard: Dashboard, watch: Watch, client: AdminClient, qtbot: QtBot, until: Until
) -> None:
    store(client, WORK, WEB)
    until(lambda: cells(dashboard, Column.STATE) == ["open"])
    dashboard.hide()
    qtbot.wait(500)
    looks: list[object] = []
    watch.changed.connect(looks.append)
    qtbot.wait(4500)
    assert looks == []
    store(client, WORK)
    until(lambda: watch.overview.statuses == ())


def test_one_event_asks_about_one_qube_and_touches_one_row(
    dashboard: Dashboard, client: AdminClient, watch: Watch, until: Until
) -> None:
    store(client, WORK, WEB)
    store(client, PERSONAL, SSH)
    until(lambda: sorted(s.state for s in watch.overview.statuses) == [State.NO_SERVER, State.OPEN])
    reset: list[object] = []
    dashboard.table.forwards.modelReset.connect(lambda: reset.append(1))
    store(client, WORK, WEB.replace("comment=web", "comment=other"))
    until(lambda: "other" in cells(dashboard, Column.COMMENT))
    assert reset == []
