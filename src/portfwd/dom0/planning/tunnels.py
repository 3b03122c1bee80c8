# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Which net qubes count as sending into a tunnel, by what their agents say. PURE: words and a clock.

A tunnel counts at once. That there is none counts when it has been said for a while: a word that flips opens nothing,
and costs a plan for the first tunnel only. Of one that says nothing the last word counts on; there may be none.
"""

import enum
from collections.abc import Callable, Mapping

from portfwd.wire.values import QubeName

ABSENT_SECONDS = 3.0
"""For so long "no tunnel" must have been all that was heard. A VPN that starts anew takes about as long."""


class Said(enum.Enum):
    """What was heard of a way out. UNTOLD: its agent is at work and does not tell; UNHEARD: that is not known."""

    TUNNEL = enum.auto()
    UPLINK = enum.auto()
    UNTOLD = enum.auto()
    UNHEARD = enum.auto()


class Tunnels:
    """`clock` gives seconds, of a clock that cannot be set.

    `counted` send into a tunnel; of those in `untold` that has never been known, though their agents are at work.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._absent: dict[QubeName, float] = {}
        self._heard: set[QubeName] = set()
        self.counted: frozenset[QubeName] = frozenset()
        self.untold: frozenset[QubeName] = frozenset()

    def hear(self, said: Mapping[QubeName, Said]) -> bool:
        """What was just said. Whether another plan may be right now."""
        now, before = self._clock(), (self.counted, self.untold)
        for name, word in said.items():
            if word in (Said.TUNNEL, Said.UPLINK):
                self._heard.add(name)
                self.untold -= {name}
            elif word is Said.UNTOLD and name not in self._heard:
                self.untold |= {name}
            if word is Said.TUNNEL:
                self._absent.pop(name, None)
                self.counted |= {name}
                continue
            absent = word is Said.UPLINK and name in self.counted
            if absent and now - self._absent.setdefault(name, now) >= ABSENT_SECONDS:
                self._absent.pop(name)
                self.counted -= {name}
        return (self.counted, self.untold) != before

    def forget(self, name: QubeName) -> None:
        """A qube has ended; its next run says anew what it does."""
        self._absent.pop(name, None)
        self._heard.discard(name)
        self.counted -= {name}
        self.untold -= {name}

    def said(self, name: QubeName) -> bool:
        """Whether a tunnel is the last that was heard of a qube."""
        return name in self.counted and name not in self._absent

    def due(self) -> float | None:
        """In how many seconds the next absence counts, if it is said again then; None when there is none."""
        return max(0.0, min(self._absent.values()) + ABSENT_SECONDS - self._clock()) if self._absent else None
