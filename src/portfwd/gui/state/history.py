# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The log of openings and endings since the program started."""

import collections
from collections.abc import Iterator
from dataclasses import dataclass

from portfwd.client.text.sentences import opened, target, told
from portfwd.gui.state.overview import Changes

_REMEMBERED = 1000


@dataclass(frozen=True, slots=True)
class Line:
    """`moment` is in epoch seconds."""

    moment: float
    text: str


class History:
    """The latest lines of the log, the newest last."""

    def __init__(self) -> None:
        self.lines: collections.deque[Line] = collections.deque(maxlen=_REMEMBERED)

    def note(self, changes: Changes, now: float) -> list[Line]:
        """Record the changes of a look; returns the new lines."""
        new = [Line(now, text) for text in _told(changes, now)]
        self.lines.extend(new)
        return new


def _told(changes: Changes, now: float) -> Iterator[str]:
    for status in changes.removed:
        ended = isinstance(status.rule.expire, int) and status.rule.expire <= now + 1
        why = "its time is over" if ended else "the forward is removed"
        yield f"{target(status.qube, status.rule)} is no longer reachable: {why}"
    for status in changes.untold:
        yield f"{target(status.qube, status.rule)}: not told any more, it may be open or not"
    for status in changes.added:
        yield told(status, now, "can reach")
    for before, after in changes.changed:
        if before.state is not after.state or before.fault != after.fault:
            yield opened(after, now) if after.state.passes and not before.state.passes else told(after, now)
