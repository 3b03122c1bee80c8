# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Has qubes.firewall.Firewall keep the forwards beside the ordinary rules, in the same file and the same write.

The ordinary rules stay the stock's own: it reads them, and gives their XML. What it saves is written by dom0/store.py,
so that one rename holds both lists.
"""

import asyncio
import datetime
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import qubes.exc
import qubes.firewall

from portfwd.dom0.store import StoredForward, StoreError, read_forwards, save_stock
from portfwd.model.ordinary import OrdinaryRule, parse_ordinary

_EXTENDED = "port_forward_extended"


def extend() -> None:
    """Extend the class, once."""
    stock = qubes.firewall.Firewall
    if hasattr(stock, _EXTENDED):
        return
    stock_load = stock.load

    def load(self: Any) -> None:
        """Load firewall settings from a file, forwards included."""
        found = read_forwards(_path(self))
        self.port_forwards, self.port_forward_damage = found.forwards, found.damage
        if found.rules_alone is None:
            stock_load(self)
        else:
            # Forwards stand among the rules, where the stock cannot read them. The next save moves them.
            self.rules = []
            self.load_v2(found.rules_alone)

    # Of a Firewall that was made without loading, such as that of a disposable: forwards are not inherited.
    stock.port_forwards = ()
    stock.port_forward_damage = ""
    stock.load = load
    stock.save = _save
    stock.forwards = property(_forwards)
    stock.save_forwards = _save_forwards
    stock.ordinary = property(_ordinary)
    setattr(stock, _EXTENDED, True)


def _path(firewall: Any) -> Path:
    return Path(firewall.vm.dir_path) / str(firewall.vm.firewall_conf)


def _forwards(self: Any) -> tuple[StoredForward, ...]:
    """The forwards; StoreError when the file holds some that cannot be read."""
    if self.port_forward_damage:
        raise StoreError(self.port_forward_damage)
    forwards: tuple[StoredForward, ...] = self.port_forwards
    return forwards


def _ordinary(self: Any) -> tuple[OrdinaryRule, ...]:
    """The live ordinary rules as values of ours. Raises RefusedError for one that we do not know."""
    lines = (rule.api_rule for rule in self.rules)
    return tuple(parse_ordinary(line) for line in lines if line is not None)


def _save(self: Any) -> None:
    """Save firewall rules to a file, and the forwards as they are."""
    try:
        _write(self, self.forwards)
    except StoreError as error:
        message = f"firewall save error: {error}"
        self.vm.log.error(message)
        raise qubes.exc.QubesException(message) from None
    self.vm.fire_event("firewall-changed")
    _arm(self)


def _save_forwards(self: Any, forwards: Iterable[StoredForward]) -> None:
    """Replace the forwards. Raises StoreError, with nothing changed."""
    _write(self, tuple(forwards))
    try:
        self.vm.fire_event("firewall-changed")
    except Exception as error:
        # They are stored. Some handler of the stock could not reach a QubesDB, which is no reason to say they are not.
        self.vm.log.warning("port forwarding: firewall-changed: %s", error)
    _arm(self)


def _write(firewall: Any, forwards: tuple[StoredForward, ...]) -> None:
    if firewall.port_forward_damage:
        raise StoreError(firewall.port_forward_damage)
    live = [rule for rule in firewall.rules if not (rule.expire and rule.expire.expired)]
    save_stock(_path(firewall), [rule.xml_properties() for rule in live], forwards)
    firewall.port_forwards = forwards


def _arm(firewall: Any) -> None:
    """Wake up when the next ordinary rule ends, as the stock does after each save."""
    ends = [rule.expire.datetime for rule in firewall.rules if rule.expire and not rule.expire.expired]
    if ends and not firewall.vm.app.vmm.offline_mode:
        delay = (min(ends) - datetime.datetime.now()).total_seconds()
        asyncio.get_event_loop().call_later(delay, firewall._expire_rules)
