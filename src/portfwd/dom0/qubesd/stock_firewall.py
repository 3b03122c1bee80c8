# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Has qubes.firewall.Firewall keep the forwards beside the ordinary rules, in the same file and the same write.

The ordinary rules stay the stock's own: it reads them, and gives their XML. Its saves are written by
dom0/storage/forwards.py, so that one rename holds both lists. A list of ordinary rules that is refused does not stay in
memory: the stock sets it before it saves.
"""

import asyncio
import datetime
import functools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import qubes.exc
import qubes.firewall
from lxml import etree

from portfwd.dom0.storage.forwards import Forwards, UnstoredError, remedy
from portfwd.dom0.storage.store import DamageError, StoredForward, StoreError, read_forwards
from portfwd.model.ordinary import OrdinaryRule, parse_ordinary

_EXTENDED = "port_forward_extended"
_KEPT = "port_forward_kept"
_SAVED = "port_forward_saved_rules"
_SAVING = "port_forward_saving"


def extend(notes: Path) -> None:
    """Extend the class, once. `notes` is the folder for what a full disk does not take (dom0/storage/forwards.py)."""
    stock = qubes.firewall.Firewall
    if hasattr(stock, _EXTENDED):
        return
    stock_load, stock_clone = stock.load, stock.clone

    def load(self: Any) -> None:
        """Load firewall settings from a file, forwards included."""
        kept = _kept(self)
        before = self.rules
        try:
            # A list that is in force and not in the file yet must not be overwritten by the file's.
            alone = (read_forwards(_path(self)) if kept.unstored else kept.read()).rules_alone
            if alone is None:
                stock_load(self)
            else:
                # Forwards are among the rules, where the stock cannot read them. The next save moves them.
                self.rules = []
                self.load_v2(alone)
        except BaseException:
            self.rules = before
            raise
        _note_rules(self)

    def clone(self: Any, other: Any) -> None:
        """Clone firewall settings from other instance; forwards are not inherited."""
        stock_clone(self, other)
        _note_rules(self)

    stock.load = load
    stock.clone = clone
    stock.save = _save
    stock.forwards = property(lambda self: _kept(self).present)
    stock.unstored = property(lambda self: _kept(self).unstored)
    stock.ordinary = property(_ordinary)
    stock.save_forwards = _save_forwards
    stock.begin_anew = _begin_anew
    stock.reread = _reread
    stock.write_again = lambda self: _kept(self).write_again()
    stock.port_forward_notes = notes
    setattr(stock, _EXTENDED, True)


def _kept(firewall: Any) -> Forwards:
    """The forwards of a Firewall; one made without loading, such as a disposable's, has none."""
    kept: Forwards | None = firewall.__dict__.get(_KEPT)
    if kept is None:
        kept = Forwards(_path(firewall), functools.partial(_properties, firewall), firewall.port_forward_notes)
        setattr(firewall, _KEPT, kept)
    return kept


def _path(firewall: Any) -> Path:
    return Path(firewall.vm.dir_path) / str(firewall.vm.firewall_conf)


def _properties(firewall: Any) -> Iterator[etree._Element]:
    for rule in firewall.rules:
        if not (rule.expire and rule.expire.expired):
            yield rule.xml_properties()


def _note_rules(firewall: Any) -> None:
    setattr(firewall, _SAVED, list(firewall.rules))


def _ordinary(self: Any) -> tuple[OrdinaryRule, ...]:
    """The live ordinary rules as our own values. Raises RefusedError for an unknown one."""
    lines = (rule.api_rule for rule in self.rules)
    return tuple(parse_ordinary(line) for line in lines if line is not None)


def _save(self: Any) -> None:
    """Save the ordinary rules with the present forwards. When that fails, the previous rules are restored."""
    try:
        _kept(self).save()
    except BaseException as error:
        self.rules = list(getattr(self, _SAVED, self.rules))
        if not isinstance(error, StoreError):
            raise
        message = f"firewall save error: {error}"
        if isinstance(error, DamageError):
            message += f"; {remedy(self.vm.name)}"
        self.vm.log.error(message)
        raise qubes.exc.QubesException(message) from None
    _note_rules(self)
    _changed(self)
    _arm(self)


def _save_forwards(self: Any, forwards: Iterable[StoredForward]) -> None:
    """Replace the forwards. Raises StoreError, with nothing changed, and UnstoredError (dom0/storage/forwards.py)."""
    try:
        _kept(self).save(forwards)
    except UnstoredError:
        _told(self)
        raise
    _told(self)
    _arm(self)


def _begin_anew(self: Any, forwards: Iterable[StoredForward]) -> Path | None:
    """Replace forwards that cannot be read; returns where the file is kept. Raises StoreError, with nothing changed."""
    kept = _kept(self).begin_anew(forwards)
    _told(self)
    _arm(self)
    return kept


def _reread(self: Any) -> None:
    """Load forwards that were written into the file by hand; a file of our own save is not read again."""
    if not getattr(self, _SAVING, False):
        _kept(self).reread()


def _told(firewall: Any) -> None:
    try:
        _changed(firewall)
    except Exception as error:
        # They are in force. A handler of the stock failed to reach a QubesDB, which does not change that.
        firewall.vm.log.warning("port forwarding: firewall-changed: %s", error)


def _changed(firewall: Any) -> None:
    setattr(firewall, _SAVING, True)
    try:
        firewall.vm.fire_event("firewall-changed")
    finally:
        setattr(firewall, _SAVING, False)


def _arm(firewall: Any) -> None:
    """Set the timer for the next ordinary rule that expires, as the stock does after each save."""
    ends = [rule.expire.datetime for rule in firewall.rules if rule.expire and not rule.expire.expired]
    if ends and not firewall.vm.app.vmm.offline_mode:
        delay = (min(ends) - datetime.datetime.now()).total_seconds()
        asyncio.get_event_loop().call_later(delay, firewall._expire_rules)
