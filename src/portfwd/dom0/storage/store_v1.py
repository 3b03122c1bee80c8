# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""firewall.xml in version 1 (Qubes before 4.0) -> today's lines of ordinary rules. Does no I/O."""

import re
from collections.abc import Iterator

from lxml import etree

from portfwd.wire.errors import RefusedError, shown


def lines_v1(root: etree._Element) -> Iterator[tuple[int, str]]:
    """Version 1 in today's words: rules of the opposite action between the two special ones and the policy.

    Each with its number. Raises RefusedError.
    """
    policy = root.get("policy")
    if policy not in ("allow", "deny"):
        raise RefusedError(f"policy {shown(policy)} is not known")
    accepts = {key: root.get(key, policy) == "allow" for key in ("dns", "icmp")}
    yield 0, f"action={'accept' if accepts['dns'] else 'drop'} specialtarget=dns"
    yield 1, f"action={'accept' if accepts['icmp'] else 'drop'} proto=icmp"
    number = 1
    for number, element in enumerate((e for e in root if isinstance(e.tag, str)), start=2):
        yield number, " ".join(_words(element, "drop" if policy == "allow" else "accept"))
    if policy == "allow":
        yield number + 1, "action=accept"


def _words(element: etree._Element, action: str) -> Iterator[str]:
    yield f"action={action}"
    attributes = {str(key): str(value) for key, value in element.attrib.items()}
    address, netmask = attributes.get("address", ""), attributes.get("netmask", "32")
    if address:
        is_host = not re.fullmatch(r"[0-9.]+|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*", address)
        yield f"dsthost={address}" if is_host or "/" in address else f"dsthost={address}/{netmask}"
    port, toport = attributes.get("port", ""), attributes.get("toport", "")
    proto = attributes.get("proto") or ("tcp" if port else "any")
    if proto != "any":
        yield f"proto={proto}"
    if port:
        yield f"dstports={port}-{toport}" if toport else f"dstports={port}"
    if attributes.get("expire"):
        yield f"expire={attributes['expire']}"
