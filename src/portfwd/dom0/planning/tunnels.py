# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Which net qubes count as VPN qubes, by their agents' reports. PURE: words and a clock.

A tunnel counts at once. Its absence counts when it has been reported for a while: a word that flips opens nothing,
and costs a plan for the first tunnel only. When a qube reports nothing, its last report, if any, stays in force.
"""

import enum
from collections.abc import Callable, Mapping

from portfwd.wire.values import QubeName

ABSENT_SECONDS = 3.0
"""Seconds for which only "no tunnel" must have been reported. A VPN that restarts takes about as long."""


class WayReport(enum.Enum):
    """What was read of a way out. NONE: the agent works and does not report it; UNREAD: nothing could be read."""

    TUNNEL = enum.auto()
    UPLINK = enum.auto()
    NONE = enum.auto()
    UNREAD = enum.auto()


class Tunnels:
    """`clock` gives seconds, of a clock that cannot be set.

    `counted`: qubes that send into a tunnel; `unreported`: those whose agents work and never report their way out.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._absent: dict[QubeName, float] = {}
        self._reported: set[QubeName] = set()
        self.counted: frozenset[QubeName] = frozenset()
        self.unreported: frozenset[QubeName] = frozenset()

    def record(self, said: Mapping[QubeName, WayReport]) -> bool:
        """Take the reports just read; returns whether the plan may change."""
        now, before = self._clock(), (self.counted, self.unreported)
        for name, word in said.items():
            if word in (WayReport.TUNNEL, WayReport.UPLINK):
                self._reported.add(name)
                self.unreported -= {name}
            elif word is WayReport.NONE and name not in self._reported:
                self.unreported |= {name}
            if word is WayReport.TUNNEL:
                self._absent.pop(name, None)
                self.counted |= {name}
                continue
            absent = word is WayReport.UPLINK and name in self.counted
            if absent and now - self._absent.setdefault(name, now) >= ABSENT_SECONDS:
                self._absent.pop(name)
                self.counted -= {name}
        return (self.counted, self.unreported) != before

    def forget(self, name: QubeName) -> None:
        """Forget a qube that has stopped; its next run reports anew."""
        self._absent.pop(name, None)
        self._reported.discard(name)
        self.counted -= {name}
        self.unreported -= {name}

    def reported(self, name: QubeName) -> bool:
        """Whether the last report of a qube is a tunnel."""
        return name in self.counted and name not in self._absent

    def due(self) -> float | None:
        """Seconds until the next absence counts, if it is reported again then; None when there is none."""
        return max(0.0, min(self._absent.values()) + ABSENT_SECONDS - self._clock()) if self._absent else None
