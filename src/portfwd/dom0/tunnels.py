# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Which net qubes count as sending into a tunnel, by what their agents say. PURE: words and a clock.

A tunnel counts at once. That there is none counts when it has been said for a while: a word that flips opens nothing,
and costs a plan for the first tunnel only.
"""

from collections.abc import Callable, Mapping

from portfwd.wire.values import QubeName

ABSENT_SECONDS = 3.0
"""For so long "no tunnel" must have been all that was heard. A VPN that starts anew takes about as long."""


class Tunnels:
    """`clock` gives seconds, of a clock that cannot be set."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._absent: dict[QubeName, float] = {}
        self.counted: frozenset[QubeName] = frozenset()

    def hear(self, said: Mapping[QubeName, bool | None]) -> bool:
        """What was just said. Whether another plan may be right now.

        Of those that said nothing (None) the last word counts on.
        """
        now, before = self._clock(), self.counted
        for name, tunnel in said.items():
            if tunnel:
                self._absent.pop(name, None)
                self.counted |= {name}
                continue
            heard = tunnel is False and name in self.counted
            if heard and now - self._absent.setdefault(name, now) >= ABSENT_SECONDS:
                self.forget(name)
        return self.counted != before

    def forget(self, name: QubeName) -> None:
        """A qube has ended; its next run says anew what it does."""
        self._absent.pop(name, None)
        self.counted -= {name}

    def said(self, name: QubeName) -> bool:
        """Whether a tunnel is the last that was heard of a qube."""
        return name in self.counted and name not in self._absent

    def due(self) -> float | None:
        """In how many seconds the next absence counts, if it is said again then; None when there is none."""
        return max(0.0, min(self._absent.values()) + ABSENT_SECONDS - self._clock()) if self._absent else None
