# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Changes of a qube's forwards. Each applies to the list as it is at that moment, whoever changed it meanwhile.

The id names a forward, so changes of another editor are neither lost nor taken for ours. All raise
what edit_forwards raises, and GoneError when the forward is no longer what was shown.
"""

import dataclasses
from collections.abc import Callable

from portfwd.client.adminapi import AdminClient
from portfwd.client.edits import Rules, added, edited
from portfwd.model.forward import ForwardRule
from portfwd.wire.errors import RefusedError
from portfwd.wire.values import QubeName, RuleId


class GoneError(RefusedError):
    """Another editor has removed or changed the forward meanwhile."""

    def __init__(self) -> None:
        super().__init__("this forward was removed or changed by someone else meanwhile")


def add(client: AdminClient, qube: QubeName, rule: ForwardRule) -> None:
    """Add a forward."""
    client.edit_forwards(qube, lambda present: added(present, rule))


def replace(client: AdminClient, qube: QubeName, shown: ForwardRule, rule: ForwardRule) -> None:
    """Store `rule` in place of the forward that was shown. Raises GoneError if another editor has touched it."""

    def change(present: Rules) -> Rules:
        if shown not in present:
            raise GoneError
        return edited(present, present.index(shown), lambda _: rule)[0]

    client.edit_forwards(qube, change)


def undo(client: AdminClient, qube: QubeName, before: ForwardRule | None, rule: ForwardRule) -> None:
    """Undo an addition (`before` is None) or a change, unless another editor has touched the forward since."""

    def change(present: Rules) -> Rules:
        if rule in present:
            return edited(present, present.index(rule), lambda _: before)[0]
        meddled = any(other.id(qube) == rule.id(qube) for other in present)
        # An addition that is gone, or a forward that was never changed, is as it was before.
        if meddled or (before is not None and before not in present):
            raise GoneError
        return present

    client.edit_forwards(qube, change)


def remove(client: AdminClient, qube: QubeName, rules: set[RuleId]) -> None:
    """Remove these forwards; those that are gone already are no error."""
    client.edit_forwards(qube, lambda present: tuple(rule for rule in present if rule.id(qube) not in rules))


def pause(client: AdminClient, qube: QubeName, rules: set[RuleId], *, enabled: bool) -> None:
    """Shut the ports of these forwards and keep them, or open them again."""
    client.edit_forwards(qube, _enabling(qube, rules, enabled))


def _enabling(qube: QubeName, rules: set[RuleId], enabled: bool) -> Callable[[Rules], Rules]:
    def change(present: Rules) -> Rules:
        return tuple(dataclasses.replace(r, enabled=enabled) if r.id(qube) in rules else r for r in present)

    return change
