# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""A backup's firewall.xml: its forwards are restored, too, and never cost an ordinary rule.

The stock restores no rule at all when a single one of the list is unknown to it, and a qube without rules may send
everything. So it gets the list without forwards.
"""

import functools
import io
import time
from typing import Any, NamedTuple

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
            data, forwards, refused = divide(module.lxml.etree, data, time.time())
            for reason in refused:
                vm.log.error("A port forward of the backup is not restored: %s", reason)
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


class Divided(NamedTuple):
    """The file without forwards; those that still mean something; what is wrong with those that cannot be read."""

    data: bytes
    forwards: tuple[ForwardRule, ...]
    refused: tuple[str, ...]


def divide(etree: Any, data: bytes, now: float) -> Divided:
    """Take the forwards out of a file, as it is at `now` (epoch seconds). Raises for what is not XML.

    A lifetime until a restart or a shutdown was over when the backup was made somewhere else.
    """
    if len(data) > 16 * API_REQUEST_MAX:
        raise ValueError("the firewall file is too long")
    root = etree.fromstring(data, etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False))
    found: dict[str, ForwardRule] = {}
    refused = []
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
            refused.append(str(error))
            continue
        ended = isinstance(rule.expire, Lifetime) or (rule.expire is not None and rule.expire <= now)
        if not ended:
            found.setdefault(rule.does, rule)
    return Divided(etree.tostring(root), tuple(found.values()), tuple(refused))
