# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Restores as the stock does: all rules of the list, or none when one of them is unknown."""

import lxml.etree


class Core3VM:
    def handle_firewall_xml(self, vm, stream):  # type: ignore[no-untyped-def]
        try:
            rules = []
            for node in lxml.etree.parse(stream).getroot().findall("./rules/rule"):
                words = {p.get("name"): p.text for p in node.findall("./properties/property")}
                if words["action"] not in ("accept", "drop"):
                    raise ValueError(words["action"])
                rules.append(words)
            vm.rules = rules
        except Exception:
            vm.log.exception("Failed to set firewall")
