# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The edits of the tools: add, delete, reset. Takes rules and numbers, calls qubesd, prints nothing.

Ordinary rules are read and written as a whole list, as the stock tool does it. Forwards are edited under their token:
an edit that names a rule by its words may be retried on a newer list, one that names a number means the list as it was.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from portfwd.client.adminapi import AdminClient, ApiError, ListChange, NoExtensionError
from portfwd.model.command import Rule
from portfwd.model.forward import ForwardRule
from portfwd.model.ordinary import OrdinaryRule, parse_ordinary
from portfwd.wire.errors import RefusedError, shown
from portfwd.wire.values import QubeName

_ACCEPT_ALL = parse_ordinary("action=accept")
_DIGITS_MAX = 9

Rules = tuple[ForwardRule, ...]
Edit = Callable[[ForwardRule], ForwardRule | None]
"""An edit of one rule: rule -> new rule, None to remove it."""


class UsageError(RefusedError):
    """The command line makes no sense, or names a rule that does not exist; nothing has been changed."""


@dataclass(frozen=True, slots=True)
class Number:
    """The number of a rule in the list: 0, 1, ... of the ordinary ones, f0, f1, ... of the forwards."""

    index: int
    forward: bool

    @classmethod
    def parse(cls, text: str) -> Self:
        """N or fN. Ordinary rules can be counted from the end, as the stock tool allows: -1 is the last."""
        forward = text.startswith("f")
        digits = text.removeprefix("f" if forward else "-")
        if not (digits.isascii() and digits.isdigit() and len(digits) <= _DIGITS_MAX):
            raise UsageError(f"{shown(text)} is not a rule number (0, 1, ... or f0, f1, ...)")
        return cls(int(digits if forward else text), forward)

    def __str__(self) -> str:
        return f"f{self.index}" if self.forward else str(self.index)


def add_ordinary(client: AdminClient, qube: QubeName, rule: OrdinaryRule, before: Number | None) -> None:
    """Add a rule at the end, or before that number; a number past the end means the end, as in the stock tool."""
    if before is not None and before.forward:
        raise UsageError(f"{before} is a forward, and an ordinary rule cannot stand there")
    rules = list(client.rules(qube))
    rules.insert(len(rules) if before is None else before.index, rule)
    client.set_rules(qube, rules)


def add_forward(client: AdminClient, qube: QubeName, rule: ForwardRule, before: Number | None) -> None:
    """Add a forward at the end, or before that number (with or without its f)."""

    place = None if before is None else before.index
    _edit(client, qube, lambda present: added(present, rule, place), once=place is not None)


def delete(client: AdminClient, qube: QubeName, target: Rule | Number) -> Rules:
    """Remove the rule of that number, or the first one that is the same (a forward: that does the same).

    Returns the forwards that are gone: at most one.
    """
    if isinstance(target, Number):
        if target.forward:
            return _remove(client, qube, lambda present: removed(present, target.index), once=True)
    elif isinstance(target, ForwardRule):
        return _remove(client, qube, lambda present: removed(present, _find(present, target)), once=False)
    _delete_ordinary(client, qube, target)
    return ()


def reset(client: AdminClient, qube: QubeName, say: Callable[[str], None]) -> None:
    """Accept everything outbound. The forwards stay as they are.

    A file whose forwards cannot be read is kept under another name, which `say` is told.
    """
    try:
        client.forwards(qube)
    except ApiError:
        say(f"the forwards of {qube} cannot be read; their file is kept: {client.begin_anew(qube)}")
    except RefusedError:
        # dom0 has no forwards there, or words of a newer dom0.
        pass
    client.set_rules(qube, [_ACCEPT_ALL])


def remove_all(client: AdminClient, qube: QubeName) -> Rules:
    """Remove all forwards. Returns those that are gone, without any that dom0 could not read."""
    try:
        present = client.forwards(qube).rules
    except (NoExtensionError, ApiError):
        return ()
    return _remove(client, qube, lambda _: (), once=False) if present else ()


def _remove(client: AdminClient, qube: QubeName, change: ListChange, *, once: bool) -> Rules:
    """Apply a change; returns the forwards that it removes."""
    gone: Rules = ()

    def noted(present: Rules) -> Rules:
        nonlocal gone
        rest = tuple(change(present))
        gone = tuple(rule for rule in present if rule not in rest)
        return rest

    _edit(client, qube, noted, once=once)
    return gone


def _edit(client: AdminClient, qube: QubeName, change: ListChange, *, once: bool) -> None:
    if once:
        client.edit_forwards(qube, change, attempts=1)
    else:
        client.edit_forwards(qube, change)


def _delete_ordinary(client: AdminClient, qube: QubeName, target: OrdinaryRule | Number) -> None:
    rules = list(client.rules(qube))
    if isinstance(target, OrdinaryRule):
        lines = [rule.line() for rule in rules]
        if target.line() not in lines:
            raise UsageError(f"there is no rule {shown(target.line())}")
        del rules[lines.index(target.line())]
    elif -len(rules) <= target.index < len(rules):
        del rules[target.index]
    else:
        raise UsageError(f"there is no rule {target}")
    client.set_rules(qube, rules)


def _find(present: tuple[ForwardRule, ...], wanted: ForwardRule) -> int:
    for number, rule in enumerate(present):
        if rule.does == wanted.does:
            return number
    raise UsageError(f"there is no forward {shown(wanted.does)}")


def added(present: Rules, rule: ForwardRule, place: int | None = None) -> Rules:
    """The list with the rule added, at the end or at a place. Raises RefusedError when another does the same."""
    for number, other in enumerate(present):
        if other.does == rule.does:
            paused = "" if other.enabled else ", but is paused"
            raise RefusedError(f"forward f{number} does the same already{paused}: {other}")
    place = len(present) if place is None else place
    if not 0 <= place <= len(present):
        raise UsageError(f"there is no forward f{place}")
    return (*present[:place], rule, *present[place:])


def removed(present: Rules, number: int) -> Rules:
    """The list without that rule. Raises UsageError."""
    if number >= len(present):
        raise UsageError(f"there is no forward f{number}")
    return edited(present, number, lambda _: None)[0]


def edited(present: Rules, number: int, change: Edit) -> tuple[Rules, ForwardRule | None]:
    """The list with that rule changed or gone, and the changed rule."""
    before, after = present[:number], change(present[number])
    rest = present[number + 1 :]
    if after is None:
        return (*before, *rest), None
    if any(other.does == after.does for other in (*before, *rest)):
        raise RefusedError("another forward of this qube does the same already")
    return (*before, after, *rest), after
