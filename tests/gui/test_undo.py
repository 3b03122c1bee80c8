# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Who cancels while a port is being opened has all as it was before, or is told what is not."""

from collections.abc import Callable, Iterator

import pytest
from PyQt6.QtCore import Qt
from pytestqt.qtbot import QtBot

from lab import probes
from lab.client import Lab
from lab.show.demo import SYS_NET
from portfwd.client.adminapi import AdminClient, CallError, SocketTransport
from portfwd.gui.forward import outcome
from portfwd.gui.forward.rule_dialog import RuleDialog
from portfwd.gui.shared.tasks import Tasks
from portfwd.gui.state.draft import Draft, Place
from portfwd.model.forward import ForwardRule, parse_forward
from portfwd.wire.values import QubeName
from tests.chain.world import agents_stopped
from tests.gui.conftest import forget
from tests.gui.test_watch import Through

WORK = QubeName("work")
WEB = parse_forward("action=forward forwardtype=external proto=tcp srcports=443-443 dstports=8443-8443")
OTHERS = parse_forward(f"{WEB} srchost=192.168.1.99/32")
Until = Callable[[Callable[[], bool]], None]
pytestmark = pytest.mark.usefixtures("server")


@pytest.fixture(autouse=True)
def clean(client: AdminClient) -> Iterator[None]:
    forget(client)
    yield
    forget(client)


def opening(
    client: AdminClient, tasks: Tasks, qtbot: QtBot, until: Until, edited: ForwardRule | None = None
) -> RuleDialog:
    """A dialog that says "Opening..." of WEB, or of OTHERS in the place of a forward."""
    dialog = RuleDialog(client, tasks, Place(WORK), edited)
    dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose, False)
    qtbot.addWidget(dialog)
    dialog.show()
    if edited is None:
        qtbot.keyClicks(dialog.form.ports, "8443")
        qtbot.keyClicks(dialog.form.entrance, "443")
    else:
        dialog.form.reach.setCurrentIndex(1)
        qtbot.keyClicks(dialog.form.address, "192.168.1.99")
    assert dialog.form.state.rule == (WEB if edited is None else OTHERS)
    qtbot.mouseClick(dialog.ok, Qt.MouseButton.LeftButton)
    until(lambda: dialog.outcome.sentence.text() == "Opening...")
    return dialog


def given_up(dialog: RuleDialog) -> bool:
    """It has closed, or says that it is taken back and who has not confirmed that."""
    return not dialog.isVisible() or dialog.outcome.sentence.text().startswith("The forward was taken back, but ")


def page(lab: Lab) -> str:
    return lab.call("laptop", probes.fetch, SYS_NET, 443)


WAYS: dict[str, Callable[[QtBot, RuleDialog], object]] = {
    "cancel": lambda qtbot, dialog: qtbot.mouseClick(dialog.cancel, Qt.MouseButton.LeftButton),
    "escape": lambda qtbot, dialog: qtbot.keyClick(dialog, Qt.Key.Key_Escape),
    "close": lambda _, dialog: dialog.close(),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_f7_a_port_that_is_cancelled_while_it_opens_stays_shut_when_the_agent_comes(
    client: AdminClient, tasks: Tasks, lab: Lab, qtbot: QtBot, until: Until, way: Callable[[QtBot, RuleDialog], object]
) -> None:
    with agents_stopped(lab, "sys-net"):
        dialog = opening(client, tasks, qtbot, until)
        said = dialog.cancel.text()
        assert client.forwards(WORK).rules == (WEB,)
        way(qtbot, dialog)
        until(lambda: given_up(dialog))
        assert client.forwards(WORK).rules == ()
    lab.converge()
    assert page(lab) in ("timeout", "refused")
    assert "undo" in said


def test_f7_a_change_that_is_cancelled_leaves_the_forward_as_it_was(
    client: AdminClient, tasks: Tasks, lab: Lab, qtbot: QtBot, until: Until
) -> None:
    client.edit_forwards(WORK, lambda _: (parse_forward(f"{WEB} comment=mine"),))
    (before,) = client.forwards(WORK).rules
    lab.converge()
    with agents_stopped(lab, "sys-net"):
        dialog = RuleDialog(client, tasks, Place(WORK), before)
        dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose, False)
        qtbot.addWidget(dialog)
        dialog.show()
        dialog.form.reach.setCurrentIndex(1)
        qtbot.keyClicks(dialog.form.address, "192.168.1.99")
        qtbot.mouseClick(dialog.ok, Qt.MouseButton.LeftButton)
        until(lambda: dialog.outcome.sentence.text() == "Opening...")
        assert client.forwards(WORK).rules != (before,)
        qtbot.keyClick(dialog, Qt.Key.Key_Escape)
        until(lambda: given_up(dialog))
        assert client.forwards(WORK).rules == (before,)
    lab.converge()
    assert page(lab).startswith("Hello from work.")


def test_f7_what_someone_else_has_changed_meanwhile_is_not_undone_and_that_is_told(
    client: AdminClient, tasks: Tasks, lab: Lab, qtbot: QtBot, until: Until
) -> None:
    theirs = parse_forward(f"{WEB} comment=theirs")
    with agents_stopped(lab, "sys-net"):
        dialog = opening(client, tasks, qtbot, until)
        client.edit_forwards(WORK, lambda _: (theirs,))
        qtbot.keyClick(dialog, Qt.Key.Key_Escape)
        until(lambda: "could not be taken back, and stands" in dialog.outcome.sentence.text())
        assert "someone else" in dialog.outcome.sentence.text()
        assert client.forwards(WORK).rules == (theirs,)
        # Nothing is left but to read it.
        assert (dialog.ok.text(), dialog.ok.isEnabled(), dialog.cancel.isVisible()) == ("&Close", True, False)
        qtbot.keyClick(dialog, Qt.Key.Key_Escape)
        assert not dialog.isVisible()


def test_f7_an_undo_that_fails_is_told(
    client: AdminClient, transport: SocketTransport, tasks: Tasks, lab: Lab, qtbot: QtBot, until: Until
) -> None:
    away = Through(transport)
    with agents_stopped(lab, "sys-net"):
        dialog = opening(AdminClient(away), tasks, qtbot, until)
        away.gone = True
        qtbot.mouseClick(dialog.cancel, Qt.MouseButton.LeftButton)
        until(lambda: "could not be taken back, and stands: qubesd is away" in dialog.outcome.sentence.text())
        assert dialog.isVisible()
        assert client.forwards(WORK).rules == (WEB,)


def test_f7_a_program_that_ends_takes_back_what_is_not_open_yet(
    client: AdminClient, lab: Lab, qtbot: QtBot, until: Until
) -> None:
    tasks = Tasks()
    with agents_stopped(lab, "sys-net"):
        opening(client, tasks, qtbot, until)
        tasks.close()
        assert client.forwards(WORK).rules == ()


def test_f7_a_program_that_ends_says_what_it_could_not_take_back(
    transport: SocketTransport,
    lab: Lab,
    qtbot: QtBot,
    until: Until,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tasks, away = Tasks(), Through(transport)
    with agents_stopped(lab, "sys-net"):
        opening(AdminClient(away), tasks, qtbot, until)
        away.gone = True
        tasks.close()
        assert "work's port 8443: the forward could not be taken back, and stands: qubesd is away" in (
            capsys.readouterr().err
        )


def test_f7_what_is_stored_and_not_open_says_so_and_can_still_be_undone(
    client: AdminClient, tasks: Tasks, lab: Lab, qtbot: QtBot, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outcome, "_WAIT", 0.5)
    with agents_stopped(lab, "sys-net"):
        dialog = opening(client, tasks, qtbot, until)
        until(lambda: dialog.ok.text() == "&Close")
        assert dialog.outcome.sentence.text().startswith("Stored, but work's port 8443 is not open")
        assert dialog.cancel.isVisible()
        assert dialog.cancel.text() == "&Undo"
        qtbot.mouseClick(dialog.cancel, Qt.MouseButton.LeftButton)
        until(lambda: given_up(dialog))
        assert client.forwards(WORK).rules == ()


class Lossy(Through):
    """dom0 stores, and its answer gets lost."""

    def call(self, dest: str, method: str, arg: str = "", payload: bytes = b"") -> bytes:
        answer = super().call(dest, method, arg, payload)
        if method == "admin.vm.firewall.Set" and self.gone is False and not self.denied:
            self.denied = {"nobody": CallError("")}
            raise CallError("no answer")
        return answer


def test_f7_what_may_have_been_stored_is_told_and_can_be_undone(
    client: AdminClient, transport: SocketTransport, tasks: Tasks, qtbot: QtBot, until: Until
) -> None:
    dialog = RuleDialog(AdminClient(Lossy(transport)), tasks, Place(WORK))
    dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose, False)
    qtbot.addWidget(dialog)
    dialog.show()
    dialog.form.ports.setText("8443")
    assert dialog.form.draft() == Draft(ports="8443")
    dialog.ok.click()
    until(lambda: dialog.outcome.sentence.text().startswith("It is not known whether the forward is stored"))
    assert len(client.forwards(WORK).rules) == 1
    dialog.cancel.click()
    until(lambda: not dialog.isVisible())
    assert client.forwards(WORK).rules == ()
