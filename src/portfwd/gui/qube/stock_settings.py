# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Our panel in the Firewall rules tab of the stock Qube Settings window (qubesmanager.settings.VMSettingsWindow).

Only three things of that window are relied on: `firewall_tab`, its layout, and `vm`. The upper half stays the stock's
own, with all that it does; OK and Cancel are about that half.
"""

from typing import Any

from PyQt6.QtCore import Qt, QThreadPool
from PyQt6.QtWidgets import QSplitter, QVBoxLayout, QWidget

from portfwd.client.adminapi import AdminClient, connect
from portfwd.client.events import EventTransport
from portfwd.gui.qube.panel import Panel
from portfwd.gui.shared.tasks import Tasks
from portfwd.gui.shared.watch import Watch
from portfwd.wire.values import QubeName


def embed(window: Any, transport: EventTransport | None = None) -> Panel:
    """Split the tab: what was there above, the forwards below. Raises whatever a changed window makes it raise."""
    qube = QubeName(str(window.vm.name))
    tab: QWidget = window.firewall_tab
    layout = tab.layout()
    if layout is None:
        raise RuntimeError("the tab has no layout")
    way = transport or connect()
    # Its window closes at once, whatever is still under way.
    tasks = Tasks(QThreadPool.globalInstance())
    watch = Watch(AdminClient(way), way, tasks)
    panel = Panel(watch, qube)
    upper = QWidget()
    # The layout moves with all its widgets, so widgets of the tab that are disabled or hidden later are the same.
    upper.setLayout(layout)
    splitter = QSplitter(Qt.Orientation.Vertical)
    splitter.setChildrenCollapsible(False)
    splitter.addWidget(upper)
    splitter.addWidget(panel)
    QVBoxLayout(tab).addWidget(splitter)

    def close() -> None:
        watch.close()
        tasks.close()

    window.finished.connect(lambda _: close())
    # Python would let go of them at the end of this function.
    window.port_forwarding = (watch, tasks)
    watch.start()
    return panel
