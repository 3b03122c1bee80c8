# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The panel of one qube: what is clicked there is what packets meet."""

from collections.abc import Callable, Iterator

import pytest
from PyQt6.QtCore import Qt
from PyQt6.QtWidgets import QApplication
from pytestqt.qtbot import QtBot

from lab import probes
from lab.client import Lab
from lab.show.demo import SYS_NET
from portfwd.client.adminapi import AdminClient
from portfwd.client.forward_state import State
from portfwd.gui.forward.rule_dialog import RuleDialog
from portfwd.gui.qube.panel import Panel
from portfwd.gui.shared.watch import Watch
from portfwd.gui.state.draft import Field, Lasting, Reach
from portfwd.gui.state.places import place_of
from portfwd.model.forward import parse_forward
from portfwd.wire.values import QubeName
from tests.chain.world import agents_stopped

WORK = QubeName("work")
WEB = "action=forward forwardtype=external proto=tcp srcports=443-443 dstports=8443-8443"
Until = Callable[[Callable[[], bool]], None]


pytestmark = pytest.mark.usefixtures("server")


@pytest.fixture
def panel(qtbot: QtBot, watch: Watch) -> Iterator[Panel]:
    panel = Panel(watch, WORK)
    qtbot.addWidget(panel)
    panel.resize(900, 400)
    panel.show()
    yield panel


def page(lab: Lab) -> str:
    return lab.call("laptop", probes.fetch, SYS_NET, 443)


def dialog_of(panel: Panel) -> RuleDialog:
    found = panel.findChildren(RuleDialog)
    assert found
    return found[-1]


def add_web(panel: Panel, qtbot: QtBot, until: Until) -> RuleDialog:
    qtbot.mouseClick(panel.add, Qt.MouseButton.LeftButton)
    dialog = dialog_of(panel)
    qtbot.keyClicks(dialog.form.ports, "8443")
    qtbot.keyClicks(dialog.form.entrance, "443")
    assert dialog.form.sentence.text().startswith("LAN hosts will reach work's port 8443 at tcp ")
    qtbot.mouseClick(dialog.ok, Qt.MouseButton.LeftButton)
    until(lambda: dialog.ok.text() == "&Close")
    return dialog


def rows(panel: Panel) -> list[State]:
    model = panel.table.forwards
    return [model.at(row).state for row in range(model.rowCount())]


def test_a_port_is_opened_by_the_dialog_and_shut_by_a_button(
    panel: Panel, lab: Lab, qtbot: QtBot, until: Until
) -> None:
    assert page(lab) in ("timeout", "refused")
    dialog = add_web(panel, qtbot, until)
    assert dialog.outcome.sentence.text().startswith("LAN hosts can now reach work's port 8443 at tcp 192.168.1.10:443")
    assert page(lab).startswith("Hello from work.")
    qtbot.mouseClick(dialog.outcome.copy, Qt.MouseButton.LeftButton)
    clipboard = QApplication.clipboard()
    assert clipboard is not None
    assert clipboard.text() == "https://192.168.1.10:443/"
    qtbot.mouseClick(dialog.ok, Qt.MouseButton.LeftButton)
    until(lambda: rows(panel) == [State.OPEN])
    panel.table.selectRow(0)
    qtbot.mouseClick(panel.remove, Qt.MouseButton.LeftButton)
    until(lambda: "no longer reachable" in panel.message.text())
    assert page(lab) in ("timeout", "refused")
    until(lambda: rows(panel) == [])


def test_a_removal_that_no_hop_has_confirmed_is_told(
    panel: Panel, lab: Lab, qtbot: QtBot, until: Until, client: AdminClient
) -> None:
    client.edit_forwards(WORK, lambda _: (parse_forward(WEB),))
    until(lambda: rows(panel) == [State.OPEN])
    with agents_stopped(lab, "sys-net", "sys-firewall", "work"):
        panel.table.selectRow(0)
        qtbot.mouseClick(panel.remove, Qt.MouseButton.LeftButton)
        until(lambda: "sys-net, sys-firewall and work have not confirmed it" in panel.message.text())
        assert page(lab).startswith("Hello from work.")
    qtbot.waitUntil(lambda: page(lab) in ("timeout", "refused"), timeout=10_000)


def test_what_the_entrance_leaves_out_of_account_is_told(
    panel: Panel, lab: Lab, until: Until, client: AdminClient
) -> None:
    """Hosts of such a network cannot connect, and the row says open."""
    address = ["198.51.100.1/8", "dev", "ens6"]
    lab.run("sys-net", ["ip", "address", "add", *address], check=True)
    try:
        client.edit_forwards(WORK, lambda _: (parse_forward(WEB),))
        until(lambda: rows(panel) == [State.OPEN])
        fares, note = panel.line.text().split("\n")
        assert note.startswith("Note: sys-net says that ")
        assert "198.0.0.0/8" in note
        panel.table.selectRow(0)
        assert panel.line.text().split("\n") == [fares, note]
    finally:
        lab.run("sys-net", ["ip", "address", "delete", *address], check=True)


def test_the_outcome_can_be_closed_whatever_the_forwards_become(panel: Panel, qtbot: QtBot, until: Until) -> None:
    dialog = add_web(panel, qtbot, until)
    until(lambda: rows(panel) == [State.OPEN])
    # The stored forward now holds the very port that the fields ask for.
    dialog.form.show_place(place_of(WORK, panel.watch.qubes, panel.watch.overview.statuses))
    assert dialog.form.state.rule is None
    assert dialog.ok.isEnabled()


def test_a_removal_can_be_undone(panel: Panel, lab: Lab, qtbot: QtBot, until: Until) -> None:
    qtbot.mouseClick(add_web(panel, qtbot, until).ok, Qt.MouseButton.LeftButton)
    until(lambda: rows(panel) == [State.OPEN])
    panel.table.selectRow(0)
    qtbot.keyClick(panel.table, Qt.Key.Key_Delete)
    until(lambda: panel.undo.isVisible() and rows(panel) == [])
    qtbot.mouseClick(panel.undo, Qt.MouseButton.LeftButton)
    until(lambda: rows(panel) == [State.OPEN])
    assert page(lab).startswith("Hello from work.")


def test_pause_shuts_and_resume_opens(panel: Panel, lab: Lab, qtbot: QtBot, until: Until) -> None:
    qtbot.mouseClick(add_web(panel, qtbot, until).ok, Qt.MouseButton.LeftButton)
    until(lambda: rows(panel) == [State.OPEN])
    panel.table.selectRow(0)
    qtbot.mouseClick(panel.pause, Qt.MouseButton.LeftButton)
    until(lambda: rows(panel) == [State.PAUSED])
    assert page(lab) in ("timeout", "refused")
    assert panel.pause.text() == "Res&ume"
    qtbot.mouseClick(panel.pause, Qt.MouseButton.LeftButton)
    until(lambda: rows(panel) == [State.OPEN])
    assert page(lab).startswith("Hello from work.")


def test_an_edit_changes_who_may_connect(
    panel: Panel, lab: Lab, qtbot: QtBot, until: Until, client: AdminClient
) -> None:
    client.edit_forwards(WORK, lambda _: (parse_forward(WEB),))
    until(lambda: rows(panel) == [State.OPEN])
    panel.table.selectRow(0)
    qtbot.mouseClick(panel.edit, Qt.MouseButton.LeftButton)
    dialog = dialog_of(panel)
    assert (dialog.form.ports.text(), dialog.form.entrance.text()) == ("8443", "443")
    dialog.form.reach.setCurrentIndex(dialog.form.reach.findData(Reach.ADDRESS))
    assert not dialog.ok.isEnabled()
    qtbot.keyClicks(dialog.form.address, "192.168.1.99")
    dialog.form.lasting.setCurrentIndex(dialog.form.lasting.findData(Lasting.HOURS_2))
    qtbot.keyClick(dialog, Qt.Key.Key_Return)
    until(lambda: dialog.ok.text() == "&Close")
    (rule,) = client.forwards(WORK).rules
    assert "srchost=192.168.1.99/32" in str(rule)
    assert "expire=" in str(rule)
    assert page(lab) in ("timeout", "refused")


def test_nothing_is_applied_before_ok(panel: Panel, qtbot: QtBot, client: AdminClient) -> None:
    qtbot.mouseClick(panel.add, Qt.MouseButton.LeftButton)
    dialog = dialog_of(panel)
    qtbot.keyClicks(dialog.form.ports, "22")
    qtbot.keyClick(dialog, Qt.Key.Key_Escape)
    assert client.forwards(WORK).rules == ()


def test_an_error_stands_beside_its_field(panel: Panel, qtbot: QtBot) -> None:
    qtbot.mouseClick(panel.add, Qt.MouseButton.LeftButton)
    form = dialog_of(panel).form
    assert not form.errors[Field.PORTS].isVisible()
    qtbot.keyClicks(form.ports, "80443")
    assert form.errors[Field.PORTS].isVisible()
    assert "65535" in form.errors[Field.PORTS].text()
    assert not dialog_of(panel).ok.isEnabled()


def test_a_taken_port_is_named_with_its_owner_and_another_is_offered(
    panel: Panel, qtbot: QtBot, until: Until, client: AdminClient
) -> None:
    client.edit_forwards(QubeName("personal"), lambda _: (parse_forward(WEB),))
    until(lambda: len(panel.watch.overview.statuses) == 1)
    qtbot.mouseClick(panel.add, Qt.MouseButton.LeftButton)
    form = dialog_of(panel).form
    qtbot.keyClicks(form.ports, "443")
    assert form.errors[Field.ENTRANCE].text() == "443 is taken by a forward of personal"
    assert form.suggest.isVisible()
    qtbot.mouseClick(form.suggest, Qt.MouseButton.LeftButton)
    assert form.entrance.text() == "1024"
    assert dialog_of(panel).ok.isEnabled()


def test_what_someone_else_does_shows_up_and_a_dialog_on_a_gone_rule_ends_calmly(
    panel: Panel, qtbot: QtBot, until: Until, client: AdminClient
) -> None:
    client.edit_forwards(WORK, lambda _: (parse_forward(WEB),))
    until(lambda: rows(panel) == [State.OPEN])
    panel.table.selectRow(0)
    qtbot.mouseClick(panel.edit, Qt.MouseButton.LeftButton)
    dialog = dialog_of(panel)
    client.edit_forwards(WORK, lambda _: ())
    until(lambda: rows(panel) == [])
    qtbot.keyClicks(dialog.form.comment, "mine")
    qtbot.mouseClick(dialog.ok, Qt.MouseButton.LeftButton)
    until(dialog.refusal.isVisible)
    assert "someone else" in dialog.refusal.text()
    assert dialog.form.comment.text() == "mine"
    assert client.forwards(WORK).rules == ()


def test_a_broken_hop_is_named_with_what_to_do(panel: Panel, until: Until, client: AdminClient) -> None:
    client.edit_forwards(WORK, lambda _: (parse_forward(WEB.replace("8443", "8444")),))
    until(lambda: rows(panel) == [State.NO_SERVER])
    panel.table.selectRow(0)
    until(lambda: panel.line.text() == "nothing listens on port 8444 in work; start the server in work")


def test_the_check_button_tells_where_packets_end(panel: Panel, qtbot: QtBot, until: Until) -> None:
    qtbot.mouseClick(panel.add, Qt.MouseButton.LeftButton)
    dialog = dialog_of(panel)
    qtbot.keyClicks(dialog.form.ports, "8444")
    qtbot.mouseClick(dialog.ok, Qt.MouseButton.LeftButton)
    until(dialog.outcome.check.isVisible)
    qtbot.mouseClick(dialog.outcome.check, Qt.MouseButton.LeftButton)
    until(lambda: "\N{BALLOT X}  work:" in dialog.outcome.findings.text())


def test_the_live_line_counts(panel: Panel, lab: Lab, until: Until, client: AdminClient) -> None:
    client.edit_forwards(WORK, lambda _: (parse_forward(WEB),))
    until(lambda: rows(panel) == [State.OPEN])
    assert page(lab).startswith("Hello")
    until(lambda: "so far" in panel.line.text() and not panel.line.text().startswith("0 connections open, 0B"))
