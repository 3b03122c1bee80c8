# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The firewall of one qube: its ordinary rules and its forwards, as qubesd with the extension holds them.

The file is read once, at the first use. Every save writes both lists and then fires firewall-changed.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from lab.qubesd.base.firewall_file import properties_of, read_rules
from portfwd.dom0.storage.forwards import Forwards, UnstoredError, remedy
from portfwd.dom0.storage.store import DamageError, StoredForward, StoreError
from portfwd.model.ordinary import OrdinaryRule


class Firewall:
    """`rules` are the ordinary ones. `name` is that of the qube, `changed` is called after every save."""

    def __init__(
        self, name: str, path: Path, notes: Path | None, changed: Callable[[], None], log: logging.Logger
    ) -> None:
        self._name = name
        self._path = path
        self._told, self._log = changed, log
        self._kept = Forwards(path, lambda: properties_of(self.live_rules()), notes)
        self._kept.read()
        self._timer: asyncio.TimerHandle | None = None
        self._saving = False
        self.rules: list[OrdinaryRule] = list(read_rules(path))

    @property
    def forwards(self) -> tuple[StoredForward, ...]:
        """The forwards; StoreError when the file holds some that cannot be read."""
        return self._kept.present

    @property
    def unstored(self) -> str:
        """Why the file does not hold the forwards that are in force, or ''."""
        return self._kept.unstored

    @property
    def ordinary(self) -> tuple[OrdinaryRule, ...]:
        """The live ordinary rules, as the extension gives them."""
        return tuple(self.live_rules())

    def set_rules(self, rules: Iterable[OrdinaryRule]) -> None:
        """Replace the ordinary rules; when they cannot be saved, the old ones stay."""
        before, self.rules = self.rules, list(rules)
        try:
            self.save()
        except StoreError:
            self.rules = before
            raise

    def save(self) -> None:
        """Write the present rules with the forwards as they are."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._kept.save()
        except DamageError as error:
            raise DamageError(f"{error}; {remedy(self._name)}") from None
        self._changed()

    def save_forwards(self, forwards: Iterable[StoredForward]) -> None:
        """Replace the forwards. Raises StoreError, with nothing changed, and UnstoredError."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._kept.save(forwards)
        except UnstoredError:
            self._changed()
            raise
        self._changed()

    def begin_anew(self, forwards: Iterable[StoredForward]) -> Path | None:
        """Replace forwards that cannot be read; where the file is kept."""
        kept = self._kept.begin_anew(forwards)
        self._changed()
        return kept

    def write_again(self) -> None:
        """Have the file follow what is in force. Raises StoreError."""
        self._kept.write_again()

    def reread(self) -> None:
        """Take the forwards that somebody has written into the file by hand."""
        if not self._saving:
            self._kept.reread()

    def clone(self, other: Firewall) -> None:
        """Take over the ordinary rules of another qube, without saving. Forwards are not inherited."""
        self.rules = list(other.rules)

    def live_rules(self) -> list[OrdinaryRule]:
        """The rules that have not expired."""
        now = time.time()
        return [rule for rule in self.rules if not rule.expired(now)]

    def qdb_entries(self, family: int) -> dict[str, str]:
        """The keys below /qubes-firewall/ADDRESS/ for one family: the policy, then rules by their place in the list."""
        entries = {"policy": "drop"}
        other = "dst4" if family == 6 else "dst6"
        now = time.time()
        for place, rule in enumerate(self.rules):
            if not rule.expired(now) and (rule.dsthost is None or rule.dsthost.key != other):
                entries[f"{place:04}"] = dataclasses.replace(rule, expire=None, comment=None).api_line()
        return entries

    def close(self) -> None:
        """End the timer."""
        if self._timer is not None:
            self._timer.cancel()

    def _changed(self) -> None:
        self._saving = True
        try:
            self._told()
        finally:
            self._saving = False
        self._arm()

    def _arm(self) -> None:
        """Wake up at the next expiry. As in qubesd, a qubesd that has just started has no such timer."""
        self.close()
        ends = [rule.expire.seconds for rule in self.live_rules() if rule.expire is not None]
        if ends:
            delay = max(0.0, min(ends) + 1 - time.time())
            self._timer = asyncio.get_running_loop().call_later(min(delay, 86400.0), self._expired)

    def _expired(self) -> None:
        self.rules = self.live_rules()
        try:
            self.save()
        except StoreError as error:
            self._log.error("firewall save error: %s", error)
