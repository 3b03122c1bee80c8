# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""In dom0 of a laboratory: opens the dashboard as its user does, and tells in JSON how long each thing took.

python -m bench.gui_window START EXPECTED QUBE       START: monotonic seconds at which the program was called
"""

import json
import sys
import time
from collections.abc import Callable

from PyQt6.QtWidgets import QApplication

from portfwd.api.status import Status
from portfwd.client.adminapi import AdminClient, SocketTransport
from portfwd.gui.forward.forwards_table import ForwardsTable
from portfwd.gui.program import Program, make_application
from portfwd.gui.state.overview import Column
from portfwd.model.forward import parse_forward
from portfwd.wire.values import QubeName

_STEPS = 200
_WAIT = 60.0


class Asked(AdminClient):
    """Remembers which qubes it was asked about; None stands for all."""

    def __init__(self, transport: SocketTransport, asked: list[object]) -> None:
        super().__init__(transport)
        self._asked = asked

    def status(self, qube: QubeName | None) -> Status:
        self._asked.append(qube)
        return super().status(qube)


def pump(application: QApplication, good: Callable[[], bool]) -> float:
    """Let the window work until something is so: how long that took, in seconds. Raises TimeoutError."""
    begin = time.monotonic()
    while not good():
        application.processEvents()
        if time.monotonic() > begin + _WAIT:
            raise TimeoutError
    return time.monotonic() - begin


def main() -> int:
    """Print the figures."""
    start, expected, qube = float(sys.argv[1]), int(sys.argv[2]), QubeName(sys.argv[3])
    application = make_application(sys.argv[:1])
    transport = SocketTransport()
    program = Program(application, transport, None, hidden=False)
    dashboard = program.dashboard
    if dashboard is None:
        return 1
    window = dashboard.windowHandle()
    pump(application, lambda: window is not None and window.isExposed())
    found: dict[str, object] = {"shown": time.monotonic() - start}
    pump(application, lambda: dashboard.table.sorted.rowCount() == expected)
    application.processEvents()
    found["filled"] = time.monotonic() - start
    pump(application, lambda: not program.tasks.busy)
    found["scroll"] = scroll(application, dashboard.table)
    dashboard.tabs.setCurrentWidget(dashboard.network)
    begin = time.monotonic()
    application.processEvents()
    found["picture"] = time.monotonic() - begin
    dashboard.tabs.setCurrentWidget(dashboard.table)
    touched: list[int] = []
    model = dashboard.table.forwards
    model.dataChanged.connect(lambda first, last: touched.append(last.row() - first.row() + 1))
    asked: list[object] = []
    program.watch.client = Asked(transport, asked)
    program.watch.set_shown(dashboard, False)
    pump(application, lambda: not program.tasks.busy)
    touched.clear()
    asked.clear()
    client = AdminClient(transport)
    at = model.column_of(Column.COMMENT)
    change = parse_forward(f"{str(client.forwards(qube).rules[0]).partition(' comment=')[0]} comment=changed")
    begin = time.monotonic()
    client.edit_forwards(qube, lambda rules: (change, *rules[1:]))
    stored = time.monotonic()
    rows = [row for row in range(model.rowCount()) if model.at(row).qube == qube]
    pump(application, lambda: any(model.index(row, at).data() == "changed" for row in rows))
    found["event"] = {"call": stored - begin, "row": time.monotonic() - stored, "touched": touched, "asked": asked}
    print(json.dumps(found, default=str))
    program.close()
    return 0


def scroll(application: QApplication, table: ForwardsTable) -> dict[str, float]:
    """Scroll from the top to the bottom, a few rows at a time: milliseconds of each step, painting included."""
    bar, port = table.verticalScrollBar(), table.viewport()
    if bar is None or port is None:
        raise RuntimeError("the table cannot scroll")
    took = []
    for step in range(_STEPS):
        begin = time.monotonic()
        bar.setValue(round(bar.maximum() * step / (_STEPS - 1)))
        port.repaint()
        application.processEvents()
        took.append((time.monotonic() - begin) * 1000)
    took.sort()
    return {"p50": took[len(took) // 2], "p99": took[int(len(took) * 0.99)], "max": took[-1]}


if __name__ == "__main__":
    sys.exit(main())
