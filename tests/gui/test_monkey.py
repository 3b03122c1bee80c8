# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Random clicks and keys for two minutes, while others change forwards and the network: nothing breaks or is lost.

Exceptions in slots and warnings of Qt fail the test (pytest-qt).
"""

import itertools
import os
import random
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from PyQt6 import sip
from PyQt6.QtCore import QPoint, Qt, QTimer
from PyQt6.QtWidgets import (
    QAbstractButton,
    QAbstractItemView,
    QApplication,
    QComboBox,
    QGraphicsView,
    QLineEdit,
    QTabBar,
    QWidget,
)
from pytestqt.qtbot import QtBot

from portfwd.client.adminapi import AdminClient, SocketTransport
from portfwd.gui.dashboard.dashboard import Dashboard
from portfwd.gui.qube.window import QubeWindow
from portfwd.gui.shared.watch import Watch
from portfwd.gui.state import saving
from portfwd.model.forward import ForwardRule, parse_forward
from portfwd.model.ordinary import Action, OrdinaryRule
from portfwd.wire.values import QubeName, RuleId

SECONDS = float(os.environ.get("MONKEY_SECONDS", "120"))
STEP = 15
"""Milliseconds."""
WORK, PERSONAL = QubeName("work"), QubeName("personal")
KINDS = (QAbstractButton, QAbstractItemView, QComboBox, QGraphicsView, QLineEdit, QTabBar)
TEXTS = ("443", "ssh", "5000-5010", "any", "192.168.1.0/24", "x\N{SNOWMAN}", "2026-12-31 10:00", "-", "example.com")
KEYS = (
    Qt.Key.Key_Tab,
    Qt.Key.Key_Backtab,
    Qt.Key.Key_Return,
    Qt.Key.Key_Escape,
    Qt.Key.Key_Space,
    Qt.Key.Key_Up,
    Qt.Key.Key_Down,
    Qt.Key.Key_Delete,
    Qt.Key.Key_Backspace,
    Qt.Key.Key_PageDown,
)


class Others:
    """Somebody else at another client: adds forwards to personal, never removes any, and rebuilds the network."""

    def __init__(self, transport: SocketTransport) -> None:
        self._client = AdminClient(transport)
        self._transport = transport
        self._over = threading.Event()
        self.added: list[ForwardRule] = []
        self.failed: list[BaseException] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            for number in itertools.count():
                rule = parse_forward(f"action=forward forwardtype=external proto=udp srcports={20000 + number}")
                self._client.edit_forwards(PERSONAL, lambda present, rule=rule: (*present, rule))
                self.added.append(rule)
                if number % 5 == 4:
                    netvm = b"sys-firewall" if number % 2 else b"sys-net"
                    self._transport.call(PERSONAL, "admin.vm.property.Set", "netvm", netvm)
                if self._over.wait(0.7):
                    return
        except BaseException as error:
            self.failed.append(error)


@pytest.fixture
def others(transport: SocketTransport) -> Iterator[Others]:
    others = Others(transport)
    yield others
    others.stop()
    transport.call(PERSONAL, "admin.vm.property.Set", "netvm", b"sys-firewall")


@pytest.fixture
def meant(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """What the monkey has removed or changed: by what the forward did."""
    meant: set[str] = set()
    remove, replace = saving.remove, saving.replace

    def removing(client: AdminClient, qube: QubeName, rules: set[RuleId]) -> None:
        meant.update(rule.does for rule in client.forwards(qube).rules if rule.id(qube) in rules)
        remove(client, qube, rules)

    def replacing(client: AdminClient, qube: QubeName, shown: ForwardRule, rule: ForwardRule) -> None:
        meant.add(shown.does)
        replace(client, qube, shown, rule)

    monkeypatch.setattr(saving, "remove", removing)
    monkeypatch.setattr(saving, "replace", replacing)
    return meant


class Monkey:
    def __init__(self, watch: Watch, qtbot: QtBot, dice: random.Random) -> None:
        self._watch, self._qtbot, self._dice = watch, qtbot, dice
        self._windows: list[QWidget] = []
        self.steps = 0
        self._busy = False
        self._timer = QTimer()
        self._timer.setInterval(STEP)
        self._timer.timeout.connect(self._step)
        self._open()
        self._timer.start()

    def stop(self) -> None:
        self._timer.stop()
        for widget in QApplication.topLevelWidgets():
            widget.close()

    def _open(self) -> None:
        for make in (lambda: Dashboard(self._watch), lambda: QubeWindow(self._watch, WORK)):
            window: QWidget = make()
            self._windows.append(window)
            window.show()

    def _step(self) -> None:
        popup = QApplication.activePopupWidget()
        if popup is not None:
            # A menu has a loop of its own, in which the click that opened it is still under way.
            self._key(popup)
        elif not self._busy:
            self._busy = True
            try:
                self._act()
            finally:
                self._busy = False

    def _act(self) -> None:
        self.steps += 1
        if not any(window.isVisible() for window in self._windows):
            for window in self._windows:
                window.deleteLater()
            self._windows.clear()
            self._open()
        window = QApplication.activeModalWidget() or self._dice.choice([w for w in self._windows if w.isVisible()])
        targets = [w for w in window.findChildren(QWidget) if isinstance(w, KINDS) and w.isVisible() and w.isEnabled()]
        target = self._dice.choice(targets or [window])
        self._dice.choice((self._click, self._click, self._key, self._type))(target)

    def _click(self, target: QWidget) -> None:
        inner = target.viewport() if isinstance(target, QAbstractItemView | QGraphicsView) else target
        if inner is None:
            return
        spot = QPoint(
            self._dice.randrange(max(1, inner.width())), self._dice.randrange(max(1, min(160, inner.height())))
        )
        press = self._qtbot.mouseDClick if self._dice.random() < 0.1 else self._qtbot.mouseClick
        press(inner, Qt.MouseButton.LeftButton, pos=spot)

    def _key(self, target: QWidget) -> None:
        modifier = self._dice.choice((Qt.KeyboardModifier.NoModifier,) * 4 + (Qt.KeyboardModifier.AltModifier,))
        key = self._dice.choice(KEYS) if modifier == Qt.KeyboardModifier.NoModifier else Qt.Key.Key_A
        self._qtbot.keyClick(target, key, modifier)

    def _type(self, target: QWidget) -> None:
        text = self._dice.choice(TEXTS)
        if isinstance(target, QLineEdit):
            # As a paste does; keys of a test are ASCII.
            target.insert(text)
            return
        for letter in text.encode("ascii", "ignore").decode():
            # A letter may close the window that the widget is in.
            if sip.isdeleted(target):
                return
            self._qtbot.keyClicks(target, letter)


def test_a_monkey_breaks_nothing_and_loses_nothing(
    watch: Watch, client: AdminClient, others: Others, meant: set[str], qtbot: QtBot, until: Callable[..., None]
) -> None:
    seed = int(os.environ.get("MONKEY_SEED", time.time()))
    print(f"MONKEY_SEED={seed}")
    mine = parse_forward("action=forward forwardtype=external proto=tcp srcports=443-443 dstports=8443-8443")
    client.edit_forwards(WORK, lambda _: (mine,))
    monkey = Monkey(watch, qtbot, random.Random(seed))
    qtbot.wait(round(SECONDS * 1000))
    monkey.stop()
    others.stop()
    until(lambda: not watch.tasks.busy)
    client.set_rules(WORK, [OrdinaryRule(Action.ACCEPT)])
    assert others.failed == []
    assert monkey.steps > SECONDS
    present = {rule.does for rule in client.forwards(PERSONAL).rules}
    assert {rule.does for rule in others.added} <= present | meant
    assert mine.does in {rule.does for rule in client.forwards(WORK).rules} | meant
    # The windows know the truth in the end.
    watch.look_at_all()
    until(lambda: {s.rule.does for s in watch.overview.statuses if s.qube == PERSONAL} == present)
