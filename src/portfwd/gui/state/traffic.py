# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The traffic of forwards lately: rates between looks, for the sparkline and the live line."""

import collections
from collections.abc import Iterable

from portfwd.client.forward_state import RuleStatus
from portfwd.client.text.tables import amount
from portfwd.gui.state.overview import Key, key_of

_LOOKS = 90


class Traffic:
    """Bytes per second of each forward, at the latest looks."""

    def __init__(self) -> None:
        self._last: dict[Key, tuple[float, int]] = {}
        self._rates: dict[Key, collections.deque[float]] = {}

    def look(self, statuses: Iterable[RuleStatus], now: float) -> None:
        """Take the counters at `now` (monotonic seconds). A forward that is not listed any more is forgotten."""
        seen = set()
        for status in statuses:
            key, size = key_of(status), status.total("bytes")
            seen.add(key)
            if size is None:
                continue
            rates = self._rates.setdefault(key, collections.deque(maxlen=_LOOKS))
            before = self._last.get(key)
            if before is not None and now > before[0]:
                # A counter that went back was reset by a restart of the qube.
                rates.append(max(0, size - before[1]) / (now - before[0]))
            self._last[key] = (now, size)
        for key in self._last.keys() - seen:
            del self._last[key]
            self._rates.pop(key, None)

    def rates(self, key: Key) -> tuple[float, ...]:
        """Bytes per second, the newest last."""
        return tuple(self._rates.get(key, ()))

    def total(self) -> tuple[float, ...]:
        """The sum over all forwards, the newest last."""
        longest = max((len(rates) for rates in self._rates.values()), default=0)
        sums = [0.0] * longest
        for rates in self._rates.values():
            for place, rate in enumerate(rates, longest - len(rates)):
                sums[place] += rate
        return tuple(sums)


def line(statuses: Iterable[RuleStatus], rates: tuple[float, ...]) -> str:
    """The live line below a table: '3 connections open, 1.2MB so far, 34kB/s'."""
    told = tuple(statuses)
    connections = [number for status in told if (number := status.total("connections")) is not None]
    sizes = [size for status in told if (size := status.total("bytes")) is not None]
    if not connections and not sizes:
        return "Traffic is not known"
    number = sum(connections)
    words = [f"{number} connection{'' if number == 1 else 's'} open", f"{amount(sum(sizes))} so far"]
    if rates:
        words.append(f"{amount(round(rates[-1]))}/s")
    return ", ".join(words)
