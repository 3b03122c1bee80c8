# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Reads the kernel's notices of ruleset changes: whether another process made them, and whether they concern us. PURE.

Formats: linux/netfilter/nf_tables.h. Every message carries its table as attribute 1; a batch ends with NEWGEN, which
gives the new generation of the ruleset. The process id that it gives, too, is of no use inside a PID namespace.
"""

import struct
from collections.abc import Container

from portfwd.agent.rules.skeleton import BASE_TABLE, TABLE
from portfwd.kernel.netlink import Message, attributes

NFT_GROUP = 7
_SUBSYSTEM = 10
_NEWGEN, _GEN_ID, _TABLE_NAME = 15, 1, 1
_ELEMENT_MESSAGES = {12, 14}
"""NEWSETELEM, DELSETELEM: vifs come and go in the base table's sets all the time."""


class RulesetWatch:
    """Collects notices until their batch ends. `ours` holds the generations that we made."""

    def __init__(self, ours: Container[int]) -> None:
        self._ours = ours
        self._own = self._base = False

    def touched(self, messages: list[Message]) -> tuple[bool, bool]:
        """Whether another process changed (our table, the base table) in the batches that ended here."""
        own = base = False
        for message in messages:
            if message.kind >> 8 != _SUBSYSTEM:
                continue
            kind, fields = message.kind & 0xFF, attributes(message.body[4:])
            if kind == _NEWGEN:
                if struct.unpack(">I", fields.get(_GEN_ID, b"\0\0\0\0"))[0] not in self._ours:
                    own, base = own or self._own, base or self._base
                self._own = self._base = False
                continue
            name = fields.get(_TABLE_NAME, b"").rstrip(b"\0").decode(errors="replace")
            self._own = self._own or name == TABLE
            self._base = self._base or (name == BASE_TABLE and kind not in _ELEMENT_MESSAGES)
        return own, base
