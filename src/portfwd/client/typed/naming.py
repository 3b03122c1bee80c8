# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Resolves what a user typed to one forward of a qube: by number, service, or id. Does no I/O."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from portfwd.client.edits import UsageError
from portfwd.client.typed.shorthand import Lookup, parse_service, service_text
from portfwd.model.errors import RuleError
from portfwd.model.forward import ForwardRule
from portfwd.wire.errors import shown
from portfwd.wire.values import QubeName

_ID = re.compile(r"[0-9a-f]{16}")
_NUMBER = re.compile(r"f?([0-9]{1,9})")


@dataclass(frozen=True, slots=True)
class Found:
    """The number of a forward in its list. `by_number`: the user typed the number, which means the list as it was."""

    number: int
    by_number: bool


def find(words: str, qube: QubeName, rules: Sequence[ForwardRule], lookup: Lookup) -> Found:
    """The forward that the words mean. Raises UsageError for none, and for more than one.

    f0, f1... is a number. A bare number is one, too, unless it is a port at the entrance of a forward.
    """
    if _ID.fullmatch(words):
        by_id = [number for number, rule in enumerate(rules) if rule.id(qube) == words]
        if by_id:
            return Found(by_id[0], by_number=False)
    number = _NUMBER.fullmatch(words)
    by_service = []
    if number is None or not words.startswith("f"):
        try:
            service = parse_service(words, lookup)
            by_service = [index for index, rule in enumerate(rules) if service.names(rule)]
        except RuleError as error:
            if number is None:
                raise UsageError(str(error)) from None
    index = int(number[1]) if number is not None and int(number[1]) < len(rules) else None
    meant = by_service + ([] if index is None or index in by_service else [index])
    if len(meant) == 1:
        return Found(meant[0], by_number=not by_service)
    if not meant:
        raise UsageError(f"{qube} has no forward {shown(words)}{_known(rules)}")
    choices = ", ".join(f"f{i} ({service_text(rules[i])})" for i in meant)
    raise UsageError(f"{shown(words)} can mean several forwards of {qube}: {choices}")


def _known(rules: Sequence[ForwardRule]) -> str:
    if not rules:
        return "; it has none at all"
    names = [f"f{number} ({service_text(rule)})" for number, rule in enumerate(rules[:8])]
    return f"; it has {', '.join(names)}{', ...' if len(rules) > 8 else ''}"
