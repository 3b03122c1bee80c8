# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The one way to store a qube's forwards; each change carries who made it and why."""

import enum
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from portfwd.dom0.storage.forwards import UnstoredError
from portfwd.dom0.storage.store import DamageError, StoredForward

log = logging.getLogger(__name__)


class Reason(enum.StrEnum):
    """The reason of a change of forwards."""

    ASKED = "asked for"
    ANEW = "begun anew"
    """A call, in place of forwards that cannot be read."""
    OVER = "their time is over"
    SHUTDOWN = "the qube has shut down"
    BEGUN = "their time has begun"


class Origin(NamedTuple):
    """The origin of one change: the caller's name (dom0 for its timers), and the reason."""

    who: str
    reason: Reason


def save(vm: Any, forwards: tuple[StoredForward, ...], origin: Origin) -> Path | None:
    """Replace the stored forwards of a qube, and log it; returns where a replaced damaged file is kept, else None.

    Raises StoreError, with nothing changed, and UnstoredError (forwards.py).
    """
    try:
        before = _by_effect(vm.firewall.forwards)
    except DamageError:
        before = {}
    told = "port forwarding: forwards of %s: %s (%s, by %s)"
    words = (vm.name, _difference(before, _by_effect(forwards)), origin.reason, origin.who)
    kept: Path | None = None
    try:
        if origin.reason is Reason.ANEW:
            kept = vm.firewall.begin_anew(forwards)
        else:
            vm.firewall.save_forwards(forwards)
    except UnstoredError:
        log.info(f"{told}; not stored yet", *words)
        raise
    log.info(told, *words)
    return kept


def _by_effect(forwards: tuple[StoredForward, ...]) -> Mapping[str, StoredForward]:
    return {stored.rule.does: stored for stored in forwards}


def _difference(before: Mapping[str, StoredForward], after: Mapping[str, StoredForward]) -> str:
    counts = {
        "added": len(after.keys() - before.keys()),
        "removed": len(before.keys() - after.keys()),
        "changed": sum(before[does] != after[does] for does in before.keys() & after.keys()),
    }
    return ", ".join(f"{number} {word}" for word, number in counts.items() if number) or "in another order"
