# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The answer of Get+forward.hops: which hops have confirmed what dom0 wants of them. Its printer and parser; no I/O.

    hop=QUBE internal=yes|no confirmed=yes|no

It tells whether a rule that is no longer listed is shut: it is when no hop says no.
"""

from collections.abc import Iterable
from typing import NamedTuple

from portfwd.api.lines import join, lines_of, need, said, split, text_of, yes_or_no
from portfwd.model.forward import ForwardType
from portfwd.wire.errors import RefusedError, shown
from portfwd.wire.values import QubeName


class Confirmation(NamedTuple):
    """A qube that may hold entries of a forward, and whether it has confirmed what dom0 wants of it."""

    hop: QubeName
    confirmed: bool
    internal: bool
    """Whether internal forwards pass it, too, which begin at the qube's own net qube."""

    def passes(self, kind: ForwardType) -> bool:
        """Whether forwards of that kind pass it."""
        return self.internal or kind is ForwardType.EXTERNAL


def format_hops(hops: Iterable[Confirmation]) -> str:
    """The text of the answer."""
    return text_of(
        join({"hop": one.hop, "internal": said(one.internal), "confirmed": said(one.confirmed)}) for one in hops
    )


def parse_hops(text: str) -> tuple[Confirmation, ...]:
    """The inverse of format_hops; an unknown word means the worse. Raises RefusedError."""
    found: dict[QubeName, Confirmation] = {}
    for words in map(split, lines_of(text)):
        if "hop" not in words:
            continue
        name = QubeName(words["hop"])
        if name in found:
            raise RefusedError(f"{shown(name)} is told twice")
        found[name] = Confirmation(
            name,
            confirmed=yes_or_no(need(words, "confirmed"), otherwise=False),
            internal=yes_or_no(need(words, "internal"), otherwise=True),
        )
    return tuple(found.values())
