# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The panel inside the settings window of Qubes Manager; here a stand-in with the stock's names and layout."""

import importlib
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PyQt6.QtCore import Qt
from pytestqt.qtbot import QtBot

from lab import probes
from lab.client import Lab
from lab.show.demo import SYS_NET
from portfwd.client.adminapi import AdminClient, SocketTransport
from portfwd.gui import stock_hook
from portfwd.gui.forward.rule_dialog import RuleDialog
from portfwd.gui.qube import stock_settings
from portfwd.gui.qube.panel import Panel
from portfwd.wire.values import QubeName

Until = Callable[[Callable[[], bool]], None]
pytestmark = pytest.mark.usefixtures("server")


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module, imported after our .pth file was read."""
    monkeypatch.syspath_prepend(str(Path(__file__).with_name("stand_in")))
    stock_hook.install()
    yield importlib.import_module("qubesmanager.settings")
    for name in ("qubesmanager.settings", "qubesmanager"):
        sys.modules.pop(name, None)


@pytest.fixture
def window(
    settings: ModuleType, transport: SocketTransport, monkeypatch: pytest.MonkeyPatch, qtbot: QtBot, until: Until
) -> Iterator[Any]:
    monkeypatch.setattr(stock_settings, "connect", lambda: transport)
    window = settings.VMSettingsWindow("work", init_page="firewall")
    qtbot.addWidget(window)
    window.resize(800, 700)
    window.show()
    watch, _ = window.port_forwarding
    until(lambda: watch.known)
    yield window
    window.reject()
    AdminClient(transport).edit_forwards(QubeName("work"), lambda _: ())


def test_a_port_is_opened_from_the_stock_window(window: Any, lab: Lab, qtbot: QtBot, until: Until) -> None:
    (panel,) = window.findChildren(Panel)
    qtbot.mouseClick(panel.add, Qt.MouseButton.LeftButton)
    (dialog,) = panel.findChildren(RuleDialog)
    qtbot.keyClicks(dialog.form.ports, "8443")
    qtbot.mouseClick(dialog.ok, Qt.MouseButton.LeftButton)
    until(lambda: dialog.ok.text() == "&Close")
    assert lab.call("laptop", probes.fetch, SYS_NET, 8443).startswith("Hello from work.")


def test_both_halves_can_be_used_and_the_stock_half_keeps_its_widgets(window: Any) -> None:
    (panel,) = window.findChildren(Panel)
    assert window.init_page == "firewall"
    assert window.gridLayout_8.rowCount() == 11
    for widget in (window.policy_deny_radio_button, window.rulesTreeView, panel.table):
        assert widget.isVisible()
        assert widget.height() > 10
    window.rulesTreeView.setEnabled(False)
    assert panel.table.isEnabled()


def test_a_window_that_has_changed_opens_without_the_panel(
    settings: ModuleType, qtbot: QtBot, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        window = settings.VMSettingsWindow("work", tab=False)
    qtbot.addWidget(window)
    window.show()
    assert window.isVisible()
    assert "the panel cannot be shown" in caplog.text


def test_a_window_of_another_qt_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class VMSettingsWindow:
        """As of R4.2, with PyQt5."""

    module = ModuleType("qubesmanager.settings")
    monkeypatch.setattr(module, "VMSettingsWindow", VMSettingsWindow, raising=False)
    stock_hook.wrap(module)
    assert VMSettingsWindow.__init__ is object.__init__


def test_a_dom0_without_forwards_says_so_in_the_panel_only(
    settings: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, qtbot: QtBot, until: Until
) -> None:
    monkeypatch.setattr(stock_settings, "connect", lambda: SocketTransport(tmp_path / "nobody"))
    window = settings.VMSettingsWindow("work")
    qtbot.addWidget(window)
    window.show()
    (panel,) = window.findChildren(Panel)
    until(lambda: "Failed to connect to qubesd" in panel.line.text())
    assert window.rulesTreeView.isVisible()
    window.reject()
