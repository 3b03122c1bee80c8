# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Keeps qubesd's loop responsive while our threads compute.

Python runs one thread at a time. A computing thread lets the loop in every 5 ms only, and a garbage collection stops
all threads while it walks every object: 40 to 90 ms while thousands of entries are being planned. So
while we compute, turns are 0.5 ms and garbage is not collected. Reference counting frees what we make.
"""

import gc
import sys
import time
from collections.abc import Callable

_TURN = 0.0005
"""Seconds for which a thread keeps the interpreter while another one wants it."""
_UNCOLLECTED_MAX = 10.0
"""Seconds without a collection, at most: after that qubesd's own garbage comes first."""


class Turns:
    """A context, entered by the loop's thread alone, as often as there is work under way."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._depth = 0
        self._since = 0.0
        self._turn = sys.getswitchinterval()
        self._collects = False

    def __enter__(self) -> None:
        if not self._depth:
            self._since, self._turn, self._collects = self._now(), sys.getswitchinterval(), gc.isenabled()
            sys.setswitchinterval(min(_TURN, self._turn))
            gc.disable()
        self._depth += 1
        self._collect_after_all()

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if not self._depth:
            sys.setswitchinterval(self._turn)
            if self._collects:
                gc.enable()
        self._collect_after_all()

    def _collect_after_all(self) -> None:
        if self._depth and self._collects and self._now() - self._since > _UNCOLLECTED_MAX:
            gc.enable()
