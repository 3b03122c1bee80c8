# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""What the pictures of the windows show, each set up by the clicks and keys of a user."""

from PyQt6.QtWidgets import QWidget

from lab.show.photographer import Photographer, Scene
from portfwd.gui.dashboard.dashboard import Dashboard
from portfwd.gui.forward.rule_dialog import RuleDialog
from portfwd.gui.qube.window import QubeWindow
from portfwd.gui.state import saving
from portfwd.gui.state.draft import Lasting
from portfwd.gui.state.overview import key_of
from portfwd.wire.values import QubeName

WORK = QubeName("work")


def scenes() -> dict[str, Scene]:
    """By the name of the picture."""
    return {
        "dashboard": dashboard,
        "network": network,
        "firewall": firewall,
        "open-a-port": open_a_port,
        "reachable": reachable,
    }


def dashboard(photographer: Photographer) -> QWidget:
    """The list of all forwards, one of them closely."""
    window = Dashboard(photographer.watch)
    window.show()
    photographer.wait(lambda: window.table.sorted.rowCount() > 0)
    # The one that somebody uses, for as long as a line of its traffic takes.
    for status in photographer.watch.overview.statuses:
        if status.rule.srcports.first == 22:
            window.select(key_of(status))
    photographer.settle(25.0)
    return window


def network(photographer: Photographer) -> QWidget:
    """The picture of the network."""
    window = Dashboard(photographer.watch)
    window.show()
    window.tabs.setCurrentWidget(window.network)
    photographer.settle(0.5)
    return window


def firewall(photographer: Photographer) -> QWidget:
    """One qube's Firewall tab."""
    window = QubeWindow(photographer.watch, WORK)
    window.show()
    photographer.wait(window.outbound.isEnabled)
    window.panel.table.selectRow(0)
    return window


def open_a_port(photographer: Photographer) -> QWidget:
    """The dialog, filled in."""
    window = photographer.keep(QubeWindow(photographer.watch, WORK))
    window.show()
    window.panel.add.click()
    (dialog,) = window.panel.findChildren(RuleDialog)
    dialog.form.ports.setText("443")
    dialog.form.entrance.setText("8444")
    dialog.form.comment.setText("notes for the family")
    dialog.form.lasting.setCurrentIndex(dialog.form.lasting.findData(Lasting.HOURS_2))
    return dialog


def reachable(photographer: Photographer) -> QWidget:
    """After OK: where it can be reached."""
    window = photographer.keep(QubeWindow(photographer.watch, WORK))
    window.show()
    window.panel.add.click()
    dialog = window.panel.findChildren(RuleDialog)[-1]
    dialog.form.ports.setText("8443")
    rule = dialog.form.state.rule
    dialog.ok.click()
    photographer.wait(lambda: dialog.ok.text() == "&Close" or dialog.refusal.isVisible())
    if dialog.refusal.isVisible() or rule is None:
        raise RuntimeError(dialog.refusal.text() or str(dialog.form.state.errors))
    if dialog.outcome.show_qr.isVisible():
        dialog.outcome.show_qr.click()
    # The next pictures begin as these did.
    saving.remove(photographer.watch.client, WORK, {rule.id(WORK)})
    return dialog
