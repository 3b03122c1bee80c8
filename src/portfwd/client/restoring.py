# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""A backup's firewall.xml: its forwards are restored, too, and never cost an ordinary rule.

The stock restores no rule at all when a single one of the list is unknown to it, and a qube without rules may send
everything. So it gets the list without forwards.
"""

import functools
import io
import time
from typing import Any

from portfwd.model.errors import RuleError
from portfwd.model.forward import ForwardRule, Lifetime, format_forwards, parse_forward
from portfwd.wire.limits import API_REQUEST_MAX


def extend(module: Any) -> None:
    """Extend Core3VM of qubesadmin.backup.core3."""
    stock = module.Core3VM.handle_firewall_xml

    @functools.wraps(stock)
    def handle_firewall_xml(self: Any, vm: Any, stream: Any) -> None:
        data: bytes = stream.read()
        forwards: tuple[ForwardRule, ...] = ()
        try:
            data, forwards = divide(module.lxml.etree, data, time.time())
        except Exception:
            vm.log.exception("Failed to read the port forwards of the backup")
        stock(self, vm, io.BytesIO(data))
        if forwards:
            try:
                payload = format_forwards(forwards).encode()
                vm.qubesd_call(None, "admin.vm.firewall.Set", "forward", payload)
            except Exception:
                vm.log.exception("Failed to restore the port forwards")

    module.Core3VM.handle_firewall_xml = handle_firewall_xml


def divide(etree: Any, data: bytes, now: float) -> tuple[bytes, tuple[ForwardRule, ...]]:
    """The file without forwards, and those that still mean something at `now` (epoch seconds).

    A lifetime until a restart or a shutdown was over when the backup was made somewhere else. Raises for what is not
    XML; a forward that cannot be read is left out.
    """
    if len(data) > 16 * API_REQUEST_MAX:
        raise ValueError("the firewall file is too long")
    root = etree.fromstring(data, etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False))
    found: dict[str, ForwardRule] = {}
    for element in [*root.findall("./rules/rule"), *root.findall("./forwards/rule")]:
        words = {p.get("name", ""): p.text or "" for p in element.findall("./properties/property")}
        if words.get("action") != "forward":
            continue
        element.getparent().remove(element)
        comment = words.pop("comment", "")
        line = " ".join(f"{key}={value}" for key, value in words.items())
        try:
            rule = parse_forward(f"{line} comment={comment}" if comment else line)
        except RuleError:
            continue
        ended = isinstance(rule.expire, Lifetime) or (rule.expire is not None and rule.expire <= now)
        if not ended:
            found.setdefault(rule.does, rule)
    return etree.tostring(root), tuple(found.values())
