# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The ordinary rules of a firewall.xml of version 2, read and given as XML as qubesd itself does it."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from lxml import etree

from portfwd.dom0.storage.store import StoreError
from portfwd.model.ordinary import OrdinaryRule, parse_ordinary
from portfwd.wire.errors import RefusedError

_ORDER = ("action", "comment", "expire", "dsthost", "proto", "specialtarget", "dstports", "icmptype")
"""The order in which qubesd writes the properties of a rule (qubes.property: order, then name)."""


def read_rules(path: Path) -> tuple[OrdinaryRule, ...]:
    """One `action=accept` where there is no file. Raises StoreError, which names the file and the rule."""
    place = ""
    try:
        rules = []
        for number, properties in enumerate(etree.fromstring(path.read_bytes()).iterfind("rules/rule/properties")):
            place = f", rule {number}"
            words = {p.get("name", ""): p.get("ref") or p.text or "" for p in properties}
            if words.get("action") != "forward":
                comment = words.pop("comment", "")
                line = " ".join(f"{key}={value}" for key, value in words.items())
                rules.append(parse_ordinary(f"{line} comment={comment}" if comment else line))
        return tuple(rules)
    except FileNotFoundError:
        return (parse_ordinary("action=accept"),)
    except OSError as error:
        raise StoreError(f"firewall file {path} cannot be read: {error.strerror}") from None
    except (etree.XMLSyntaxError, RefusedError) as error:
        raise StoreError(f"firewall file {path}{place}: {error}") from None


def properties_of(rules: Iterable[OrdinaryRule]) -> Iterator[etree._Element]:
    """The <properties> of rules."""
    for rule in rules:
        options, _, comment = rule.api_line().partition("comment=")
        words = dict(word.split("=", 1) for word in options.split()) | ({"comment": comment} if comment else {})
        # qubesd keeps every kind of destination in one property, and a single port as one number.
        for key in words.keys() & {"dst4", "dst6", "dstname"}:
            words["dsthost"] = words.pop(key)
        if rule.dstports is not None:
            words["dstports"] = rule.dstports.short
        properties = etree.Element("properties")
        for key in sorted(words, key=_ORDER.index):
            etree.SubElement(properties, "property", name=key).text = words[key]
        yield properties
