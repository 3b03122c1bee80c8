# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Restores the forwards of a backup's firewall.xml, which never costs an ordinary rule.

The stock restores no rule at all when a single one of the list is unknown to it, and a qube without rules may send
everything. So it gets the list without forwards. Each forward is restored by itself: one that another qube has taken
meanwhile costs no other, and each that is not restored is a line with the reason.
"""

import functools
import importlib
import io
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from portfwd.api.errors import ErrorWord
from portfwd.api.forwards import format_forwards
from portfwd.model.errors import RuleError
from portfwd.model.forward import ForwardRule, Lifetime, parse_forward
from portfwd.wire.errors import shown
from portfwd.wire.limits import API_REQUEST_MAX


def extend(module: Any) -> None:
    """Extend Core3VM of qubesadmin.backup.core3."""
    _name_refusals(importlib.import_module("qubesadmin.exc"))
    stock = module.Core3VM.handle_firewall_xml

    @functools.wraps(stock)
    def handle_firewall_xml(self: Any, vm: Any, stream: Any) -> None:
        data: bytes = stream.read()
        divided = Divided(data)
        try:
            divided = divide(module.lxml.etree, data, time.time())
        except Exception as error:
            vm.log.error("The port forwards of the backup cannot be read, and are not restored: %s", error)
        stock(self, vm, io.BytesIO(divided.data))
        for lost in [*divided.lost, *store(divided.forwards, functools.partial(_set, vm))]:
            vm.log.error("A port forward of the backup is not restored: %s: %s", lost.line, lost.reason)

    module.Core3VM.handle_firewall_xml = handle_firewall_xml


def _name_refusals(exceptions: Any) -> None:
    """Have the stock's client raise dom0's refusals as ValueErrors, which it does with classes that it has only.

    Source: _parse_qubesd_response of qubesadmin.base.
    """
    for word in ErrorWord:
        if word is not ErrorWord.UNSTORED:
            setattr(exceptions, word, type(word.value, (exceptions.QubesValueError,), {}))


class Lost(NamedTuple):
    """A forward that is not restored, and why."""

    line: str
    reason: str


class Divided(NamedTuple):
    """The file without forwards; those that still mean something; those that do not, or cannot be read."""

    data: bytes
    forwards: tuple[ForwardRule, ...] = ()
    lost: tuple[Lost, ...] = ()


def divide(etree: Any, data: bytes, now: float) -> Divided:
    """Take the forwards out of a file, at `now` (epoch seconds). Raises for what is not XML.

    A lifetime until a restart or a shutdown is over: it belonged to the run in which the backup was made.
    """
    if len(data) > 16 * API_REQUEST_MAX:
        raise ValueError("the firewall file is too long")
    root = etree.fromstring(data, etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False))
    found: dict[str, ForwardRule] = {}
    lost = []
    for element in [*root.findall("./rules/rule"), *root.findall("./forwards/rule")]:
        words = {p.get("name", ""): p.text or "" for p in element.findall("./properties/property")}
        if words.get("action") != "forward":
            continue
        element.getparent().remove(element)
        comment = words.pop("comment", "")
        line = " ".join(f"{key}={value}" for key, value in words.items())
        try:
            rule = parse_forward(f"{line} comment={comment}" if comment else line)
        except RuleError as error:
            lost.append(Lost(shown(line), str(error)))
            continue
        if isinstance(rule.expire, Lifetime):
            lost.append(Lost(str(rule), f"it was to end with the next {rule.expire}"))
        elif rule.expire is not None and rule.expire <= now:
            lost.append(Lost(str(rule), "its time is over"))
        else:
            found.setdefault(rule.does, rule)
    return Divided(etree.tostring(root), tuple(found.values()), tuple(lost))


def store(forwards: Sequence[ForwardRule], save: Callable[[Sequence[ForwardRule]], None]) -> Iterator[Lost]:
    """Store, by save(list), as many of the forwards as dom0 takes, in order; yields the others with the reason.

    A ValueError means that dom0 refuses something in the list, which is then halved until it is known which forward.
    Any other error concerns all of them alike, and dom0 is not called again.
    """
    kept: tuple[ForwardRule, ...] = ()
    parts = [tuple(forwards)] if forwards else []
    while parts:
        part = parts.pop()
        try:
            save((*kept, *part))
        except ValueError as error:
            if len(part) == 1:
                yield Lost(str(part[0]), str(error))
            else:
                half = len(part) // 2
                parts += [part[half:], part[:half]]
        except Exception as error:
            for rule in (rule for rest in (part, *reversed(parts)) for rule in rest):
                yield Lost(str(rule), f"dom0 has not confirmed it: {error}")
            return
        else:
            kept += part


def _set(vm: Any, rules: Sequence[ForwardRule]) -> None:
    vm.qubesd_call(None, "admin.vm.firewall.Set", "forward", format_forwards(rules).encode())
