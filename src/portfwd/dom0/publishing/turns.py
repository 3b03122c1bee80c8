# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Lets qubesd's loop have its turn while threads of ours compute beside it.

Python runs one thread at a time. One that computes lets the loop in every 5 ms only, and a collection of garbage stops
all of them for as long as it takes to walk every object: 40 to 90 ms while thousands of entries are being planned. So
while we work turns are 0.5 ms, and garbage is not collected. What we make is freed without a collection, by counting.
"""

import gc
import sys
import time
from collections.abc import Callable

_TURN = 0.0005
"""Seconds for which a thread keeps the interpreter while another one wants it."""
_UNCOLLECTED_MAX = 10.0
"""Seconds without a collection: beyond that qubesd's own garbage comes first, however long calls take that we serve."""


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
