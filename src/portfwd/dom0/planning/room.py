# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Bounds what the forwards of all qubes cost each qube on their way. PURE: asks nobody anything, changes nothing.

Two things grow with forwards and have an end: the entries in a qube's database, which is read as a whole (limits.py,
SUBTREE_MAX), and ranges that lead to other ports. nftables cannot shift a range, so the net qube next to the target
holds an element for each of its ports. As with ports, a halted qube keeps its room, and the first comer keeps it.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

from portfwd.base.qubesdb import HEADER_SIZE
from portfwd.dom0.planning.snapshot import Snapshot
from portfwd.model.forward import ForwardRule, too_wide
from portfwd.wire import limits
from portfwd.wire.values import Family, QubeName, format_source

_WORDS = len("kind=relay side=downstream listen= source= to= ports=")
_EXPIRE = len(f" expire={limits.EXPIRE_MAX}")


class Full(NamedTuple):
    """The reason why there is no room for a claim: the qube, the word of the rule, and the sentence for the user.

    `wide`: the rule alone is too much for any qube.
    """

    at: QubeName
    word: str
    text: str
    wide: bool


class Need(NamedTuple):
    """The room that one claim takes in one qube: bytes of its database, elements of shifted ranges."""

    size: int
    elements: int


class Room:
    """The room that is taken in each qube."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._taken: dict[QubeName, Need] = {}
        self._lengths: dict[QubeName, dict[Family, int]] = {}

    def take(self, rule: ForwardRule, hops: Sequence[QubeName], families: Collection[Family]) -> Full | None:
        """Take the room that a rule needs, or take none and return where there is too little.

        `hops`: its qube and the net qubes up to its entrance; the qube alone where it leads nowhere.
        """
        if (reason := too_wide(rule)) is not None:
            return Full(hops[1 % len(hops)], f"dstports '{rule.dstports.short}'", reason, wide=True)
        after: dict[QubeName, Need] = {}
        for name, need in self._needs(rule, hops, families).items():
            before = self._taken.get(name, Need(0, 0))
            after[name] = then = Need(before.size + need.size, before.elements + need.elements)
            if then.size > limits.SUBTREE_MAX:
                text = f"no room for more forwards in the database of '{name}' ({limits.SUBTREE_MAX} bytes)"
                return Full(name, f"srcports '{rule.srcports.short}'", text, wide=False)
            if need.elements and then.elements > limits.SHIFTED_ELEMENTS_MAX:
                text = f"no room in '{name}' for more ports of ranges that lead to other ports"
                text += f" ({limits.SHIFTED_ELEMENTS_MAX} of them, for each protocol and IP version)"
                return Full(name, f"dstports '{rule.dstports.short}'", text, wide=False)
        self._taken |= after
        return None

    def _needs(self, rule: ForwardRule, hops: Sequence[QubeName], families: Collection[Family]) -> dict[QubeName, Need]:
        """The room that a rule needs in each qube; none where a qube on the way has no address."""
        lengths = [self._addresses(name) for name in hops[:-1]]
        having = [family for family in families if all(family in found for found in lengths)]
        constant = HEADER_SIZE + _WORDS + len(format_source(rule.srchost)) + len(str(rule.srcports))
        constant += len(str(rule.dstports)) + (_EXPIRE if isinstance(rule.expire, int) else 0)
        entries = len(rule.protos) * len(having)
        needs = {hops[0]: Need(entries * constant, 0)} if lengths else {}
        for place, name in enumerate(hops[1:]):
            size = entries * constant + len(rule.protos) * sum(lengths[place][family] for family in having)
            needs[name] = Need(size, 0 if place else entries * rule.shifted)
        return needs

    def _addresses(self, name: QubeName) -> dict[Family, int]:
        """The lengths of a qube's addresses as text."""
        if name not in self._lengths:
            qube = self._snapshot.qubes[name]
            found = {family: qube.address(family) for family in Family}
            self._lengths[name] = {family: len(str(address)) for family, address in found.items() if address}
        return self._lengths[name]
