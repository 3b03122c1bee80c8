# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Expiry that clock steps and suspend cannot extend.

An expiry is anchored when it is first seen: as so many seconds from then by CLOCK_BOOTTIME. The earlier of wall clock
and anchor counts, and what is over stays over.

A file keeps the anchors over a restart of the program: the id of this run of the machine, then `KEY EXPIRE UNTIL` lines
(EXPIRE in epoch seconds, UNTIL in seconds of CLOCK_BOOTTIME). It belongs on a tmpfs; one that cannot be read counts
as empty, since all that it can do is to end things earlier.
"""

import contextlib
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path

from portfwd.base.clock import Moment

log = logging.getLogger(__name__)

_Anchors = dict[tuple[str, int], float]


class Ends:
    """The anchors of one program. `boot_id` names this boot; without a path nothing outlives the program."""

    def __init__(self, path: Path | None = None, boot_id: str = "") -> None:
        self._path = path
        self._boot_id = boot_id
        self._anchors: _Anchors = _load(path, boot_id) if path is not None else {}

    def left(
        self, expires: Mapping[str, int], moment: Moment, unread: Callable[[str], bool] = lambda _key: False
    ) -> dict[str, float]:
        """Seconds until each expiry, 0 or less once it is over. `expires` holds every key and its end in epoch seconds.

        A key has no space. Keys that are missing are forgotten, but for those of which `unread` says that they
        could not be read: a lost anchor would be made anew by a clock that may have been set meanwhile.
        """
        anchors = {known: until for known, until in self._anchors.items() if unread(known[0])}
        left: dict[str, float] = {}
        for key, expire in expires.items():
            by_wall = expire - moment.wall
            until = self._anchors.get((key, expire), moment.boot + by_wall)
            left[key] = min(by_wall, until - moment.boot)
            anchors[key, expire] = until if left[key] > 0 else min(until, moment.boot)
        if anchors != self._anchors:
            self._anchors = anchors
            self._save()
        return left

    def _save(self) -> None:
        if self._path is None:
            return
        lines = [self._boot_id, *(f"{key} {expire} {until!r}" for (key, expire), until in self._anchors.items())]
        new = self._path.with_name(self._path.name + ".new")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            new.write_text("\n".join(lines) + "\n")
            new.replace(self._path)
        except OSError as error:
            log.warning("the ends of rules cannot be kept over a restart: %s", error)


def _load(path: Path, boot_id: str) -> _Anchors:
    anchors: _Anchors = {}
    with contextlib.suppress(OSError, ValueError):
        found, *lines = path.read_text().splitlines() or [""]
        if found != boot_id:
            return {}
        for line in lines:
            key, expire, until = line.split(" ")
            if math.isfinite(float(until)):
                anchors[key, int(expire)] = float(until)
    return anchors
