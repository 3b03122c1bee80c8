# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Keeps the windows up to date: looks when an event reports a change, and repeatedly while traffic is shown."""

import time
from collections.abc import Callable

from PyQt6.QtCore import QObject, QTimer, pyqtSignal

from portfwd.api.status import Doors
from portfwd.client.adminapi import AdminClient
from portfwd.client.events import EventTransport
from portfwd.client.gathering import Gathered, gather, gather_each
from portfwd.client.network import NetworkQube, read_qubes
from portfwd.gui.shared.feed import Feed
from portfwd.gui.shared.tasks import Failure, Tasks
from portfwd.gui.state.overview import Changes, Overview
from portfwd.gui.state.traffic import Traffic
from portfwd.wire.values import QubeName

_REFRESH = 2000
"""Milliseconds between two looks at the traffic, while it is shown."""
_SOON, _AGAIN, _AGAIN_MAX = 60, 300, 20
"""Milliseconds: from an event to the look, so that a burst is one look; between looks while a forward is opening."""
_RETRY, _RETRY_MAX = 1000, 60_000
"""Milliseconds from a look that failed to the next one, growing."""
_MISSED_MAX = 3
"""Repeated looks for qubes that dom0 does not tell, at most, until an event comes."""
_NETWORK = (
    "domain-add",
    "domain-delete",
    "domain-start",
    "domain-shutdown",
    "property-set:label",
    "property-set:name",
    "property-set:netvm",
    "property-reset:netvm",
    "property-set:provides_network",
)
"""Events after which the picture of the network may be another one."""
_ALL = ("domain-paused", "domain-unpaused", "domain-feature-", "property-set:ip", "property-reset:ip", "domain-tag-")
"""Events after which the state of any forward may be another one."""


class Watch(QObject):
    """The present knowledge of all forwards. `known` turns true with the first successful look.

    `problem`: why the windows may be out of date, '' when all is well. `untold`: the qubes that dom0 does not tell,
    each with the reason; the others are shown nevertheless.
    """

    changed = pyqtSignal(object)
    """Changes, after each look, also where only counters changed."""
    network_changed = pyqtSignal(object)
    """The qubes."""
    trouble = pyqtSignal()
    """`problem` may have changed."""

    def __init__(self, client: AdminClient, transport: EventTransport, tasks: Tasks) -> None:
        super().__init__()
        self.client, self.tasks = client, tasks
        self.overview = Overview()
        self.traffic = Traffic()
        self.qubes: tuple[NetworkQube, ...] = ()
        self.untold: dict[QubeName, str] = {}
        self.known = False
        self._wanted: set[QubeName | None] = set()
        self._network_wanted = False
        self._looking = False
        self._again = self._missed = 0
        self._failures = 0
        self._no_news = self._no_look = ""
        self._shown: set[QObject] = set()
        self._closed = False
        self._soon = QTimer(self)
        self._soon.setSingleShot(True)
        self._soon.timeout.connect(self._look)
        self._later = QTimer(self)
        self._later.setSingleShot(True)
        self._later.timeout.connect(self.look)
        self._refresh = QTimer(self)
        self._refresh.setInterval(_REFRESH)
        self._refresh.timeout.connect(self.look)
        self._feed = Feed(transport, self)
        self._feed.established.connect(self._on_news)
        self._feed.happened.connect(self._on_event)
        self._feed.lost.connect(self._on_no_news)

    def start(self) -> None:
        """Start. The first look comes once events flow, or when they cannot: an earlier one could miss a change."""
        self._feed.start()

    @property
    def problem(self) -> str:
        return self._no_look or self._no_news

    def close(self) -> None:
        self._closed = True
        for timer in (self._soon, self._later, self._refresh):
            timer.stop()
        self._feed.close()

    def set_shown(self, viewer: QObject, shown: bool) -> None:
        """Note whether a viewer shows traffic now, which is looked at repeatedly."""
        if self._closed:
            # Windows are hidden again while the program ends, when Qt has destroyed the timers.
            return
        (self._shown.add if shown else self._shown.discard)(viewer)
        if self._shown and not self._refresh.isActive():
            self._refresh.start()
            self.look()
        elif not self._shown:
            self._refresh.stop()

    def look_at_all(self) -> None:
        self._network_wanted = True
        self.look()

    def look(self, qube: QubeName | None = None) -> None:
        """Look soon, at one qube or (None) at all; requests in the meantime make a single look."""
        self._wanted.add(qube)
        if not self._soon.isActive():
            self._soon.start(_SOON)

    def _on_news(self) -> None:
        self._no_news = ""
        self.look_at_all()

    def _on_no_news(self, reason: str) -> None:
        if not self._no_news:
            self.look_at_all()
        self._no_news = self.tr("No news from dom0: {0}").format(reason)
        self.trouble.emit()

    def _on_event(self, subject: str, name: str) -> None:
        if name.startswith(_NETWORK):
            self._network_wanted = True
        elif name != "firewall-changed" and not name.startswith(_ALL):
            return
        self._again = self._missed = 0
        self.look(QubeName(subject) if subject and name == "firewall-changed" else None)

    def _look(self) -> None:
        if self._looking:
            return
        wanted, self._wanted = self._wanted, set()
        network, self._network_wanted = self._network_wanted, False
        if not wanted:
            return
        scope = next(iter(wanted)) if len(wanted) == 1 else None
        self._looking = True
        client = self.client

        def work(_: Callable[[object], None]) -> tuple[Gathered, tuple[NetworkQube, ...] | None]:
            gathered = gather(client) if scope is None else gather_each(client, [scope], gone=True)
            return gathered, read_qubes(client) if network else None

        def done(result: tuple[Gathered, tuple[NetworkQube, ...] | None]) -> None:
            self._looking = False
            self._take(scope, *result)
            self._go_on()

        def failed(error: Failure) -> None:
            self._looking = False
            self._network_wanted = self._network_wanted or network
            self._no_look = str(error)
            self.trouble.emit()
            self._failures += 1
            self._later.start(min(_RETRY * self._failures, _RETRY_MAX))
            self._go_on()

        self.tasks.run(self, work, done, failed)

    def _take(self, scope: QubeName | None, gathered: Gathered, qubes: tuple[NetworkQube, ...] | None) -> None:
        statuses, untold = gathered
        changes: Changes = self.overview.update(statuses, scope, untold)
        self.untold = {qube: why for qube, why in self.untold.items() if scope not in (None, qube)} | dict(untold)
        self.traffic.look(self.overview.statuses, time.monotonic())
        if qubes is not None and qubes != self.qubes:
            self.qubes = qubes
            self.network_changed.emit(qubes)
        self.known = True
        self._failures, self._no_look = 0, ""
        self.trouble.emit()
        self.changed.emit(changes)
        if any(s.doors is Doors.UNKNOWN for s in statuses) and self._again < _AGAIN_MAX:
            # Agents answer in their own time, and no event reports it.
            self._again += 1
            self._later.start(_AGAIN)
        elif untold and self._missed < _MISSED_MAX:
            # The failure may be over in a moment; a refusal by policy is not, so the repetition ends.
            self._missed += 1
            self._later.start(_RETRY * self._missed)
        elif not self.untold:
            self._missed = 0

    def _go_on(self) -> None:
        if self._wanted and not self._soon.isActive():
            self._soon.start(_SOON)
