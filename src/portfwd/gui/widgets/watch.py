# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Keeps what the windows show true: looks when an event says that something changed, and while traffic is on show."""

import time
from collections.abc import Callable
from typing import TypeVar

from PyQt6.QtCore import QObject, QTimer, pyqtSignal

from portfwd.client.adminapi import AdminClient
from portfwd.client.events import EventTransport
from portfwd.client.gathering import gather, gather_each
from portfwd.client.network import Qube, read_qubes
from portfwd.client.status import RuleStatus, State
from portfwd.gui.state.overview import Changes, Overview
from portfwd.gui.state.traffic import Traffic
from portfwd.gui.widgets.feed import Feed
from portfwd.gui.widgets.tasks import Tasks
from portfwd.wire.errors import RefusedError
from portfwd.wire.values import QubeName

T = TypeVar("T")
_REFRESH = 2000
"""Milliseconds between two looks at the traffic, while it is shown."""
_SOON, _AGAIN, _AGAIN_MAX = 60, 300, 20
"""Milliseconds: from an event to the look, so that a burst is one look; between looks while a forward is opening."""
_RETRY, _RETRY_MAX = 1000, 60_000
"""Milliseconds from a look that failed to the next one, growing."""
_NETWORK = ("property-set:netvm", "property-reset:netvm", "property-set:label", "property-set:name", "domain-add")
_NETWORK_TOO = ("domain-delete", "domain-start", "domain-shutdown", "property-set:provides_network")
_ALL = ("domain-paused", "domain-unpaused", "domain-feature-", "property-set:ip", "property-reset:ip", "domain-tag-")


class Watch(QObject):
    """What is known of one qube's forwards, or of all. `known` turns true with the first look that succeeded."""

    changed = pyqtSignal(object)
    """Changes, after each look; counters alone change, too."""
    network_changed = pyqtSignal(object)
    """The qubes."""
    trouble = pyqtSignal(str)
    """Why a look failed; empty when all is well again."""

    def __init__(
        self, client: AdminClient, transport: EventTransport, tasks: Tasks, qube: QubeName | None = None
    ) -> None:
        super().__init__()
        self.client, self.tasks, self.qube = client, tasks, qube
        self.overview = Overview()
        self.traffic = Traffic()
        self.qubes: tuple[Qube, ...] = ()
        self.known = False
        self._wanted: set[QubeName | None] = set()
        self._network_wanted = False
        self._looking = False
        self._again = 0
        self._failures = 0
        self._no_news = ""
        self._shown: set[QObject] = set()
        self._closed = False
        self._soon = QTimer(self)
        self._soon.setSingleShot(True)
        self._soon.timeout.connect(self._look)
        self._later = QTimer(self)
        self._later.setSingleShot(True)
        self._later.timeout.connect(lambda: self.look(self.qube))
        self._refresh = QTimer(self)
        self._refresh.setInterval(_REFRESH)
        self._refresh.timeout.connect(lambda: self.look(self.qube))
        self._feed = Feed(transport, self)
        self._feed.established.connect(self._on_news)
        self._feed.happened.connect(self._on_event)
        self._feed.lost.connect(self._on_no_news)

    def start(self) -> None:
        """Begin; the first look follows at once."""
        self._feed.start()
        self.look_at_all()

    def close(self) -> None:
        self._closed = True
        for timer in (self._soon, self._later, self._refresh):
            timer.stop()
        self._feed.close()

    def set_shown(self, viewer: QObject, shown: bool) -> None:
        """Tell whether a viewer shows traffic now: only then is there anything to look at again and again."""
        if self._closed:
            # Windows are hidden once more while the program ends, when Qt has taken the timers away.
            return
        (self._shown.add if shown else self._shown.discard)(viewer)
        if self._shown and not self._refresh.isActive():
            self._refresh.start()
            self.look(self.qube)
        elif not self._shown:
            self._refresh.stop()

    def look_at_all(self) -> None:
        self._network_wanted = True
        self.look(self.qube)

    def look(self, qube: QubeName | None) -> None:
        """Look soon, at one qube or (None) at all; what is asked for meanwhile is one look."""
        self._wanted.add(qube)
        if not self._soon.isActive():
            self._soon.start(_SOON)

    def _on_news(self) -> None:
        self._no_news = ""
        self.look_at_all()

    def _on_no_news(self, reason: str) -> None:
        self._no_news = self.tr("No news from dom0: {0}").format(reason)
        self.trouble.emit(self._no_news)

    def _on_event(self, subject: str, name: str) -> None:
        if name.startswith((*_NETWORK, *_NETWORK_TOO)):
            self._again = 0
            self.look_at_all()
        elif name == "firewall-changed":
            if self.qube in (None, subject):
                self._again = 0
                self.look(QubeName(subject) if subject else None)
        elif name.startswith(_ALL):
            self._again = 0
            self.look(self.qube)

    def _look(self) -> None:
        if self._looking:
            return
        wanted, self._wanted = self._wanted, set()
        network, self._network_wanted = self._network_wanted, False
        if not wanted:
            return
        scope = next(iter(wanted)) if len(wanted) == 1 else self.qube
        self._looking = True
        client = self.client

        def work(_: Callable[[object], None]) -> tuple[list[RuleStatus], tuple[Qube, ...] | None]:
            statuses, failed = gather(client) if scope is None else gather_each(client, [scope])
            if failed:
                raise RefusedError("; ".join(failed))
            return statuses, read_qubes(client) if network else None

        def done(result: tuple[list[RuleStatus], tuple[Qube, ...] | None]) -> None:
            self._looking = False
            self._take(scope, *result)
            self._go_on()

        def failed(error: RefusedError) -> None:
            self._looking = False
            self._network_wanted = self._network_wanted or network
            self.trouble.emit(str(error))
            self._failures += 1
            self._later.start(min(_RETRY * self._failures, _RETRY_MAX))
            self._go_on()

        self.tasks.run(self, work, done, failed)

    def _take(self, scope: QubeName | None, statuses: list[RuleStatus], qubes: tuple[Qube, ...] | None) -> None:
        changes: Changes = self.overview.update(statuses, scope)
        self.traffic.look(self.overview.statuses, time.monotonic())
        if qubes is not None and qubes != self.qubes:
            self.qubes = qubes
            self.network_changed.emit(qubes)
        self.known = True
        self._failures = 0
        # Without events this look may be the last one for long.
        self.trouble.emit(self._no_news)
        self.changed.emit(changes)
        if any(s.state in (State.PENDING, State.UNCLEAR) for s in statuses) and self._again < _AGAIN_MAX:
            # Agents answer in their own time, and no event tells of it.
            self._again += 1
            self._later.start(_AGAIN)

    def _go_on(self) -> None:
        if self._wanted and not self._soon.isActive():
            self._soon.start(_SOON)
