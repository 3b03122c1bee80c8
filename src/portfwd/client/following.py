# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Follows a forward that was just stored, hop by hop, until it is open or clearly will not be.

Likewise a forward that was just removed, until it is shut.
"""

import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from portfwd.api.status import HopState
from portfwd.client.adminapi import AdminClient
from portfwd.client.forward_state import RuleStatus, State, judged, unconfirmed
from portfwd.model.forward import ForwardRule
from portfwd.wire.errors import RefusedError
from portfwd.wire.values import QubeName, RuleId

_PAUSE_FIRST, _PAUSE_MAX = 0.02, 0.2
"""Seconds between two looks at the status."""
_LASTING = (HopState.OCCUPIED, HopState.CLASH, HopState.REFUSED, HopState.EXPIRED, HopState.RESTART)
"""States that no waiting changes."""


class Followed(NamedTuple):
    """The last status that was read, and why no newer one can be read. Without either, the forward is gone."""

    status: RuleStatus | None
    error: str


def follow(
    client: AdminClient,
    qube: QubeName,
    rule: RuleId,
    seconds: float,
    told: Callable[[RuleStatus], None] = lambda _: None,
    given_up: Callable[[], bool] = lambda: False,
) -> Followed:
    """Read the status until every hop has answered, for at most `seconds`, or until it is given up. Never raises.

    `told` is called with each status on the way.
    """
    deadline = time.monotonic() + seconds
    pause = _PAUSE_FIRST
    asked_again = False
    while True:
        status, error = _look(client, qube, rule)
        if status is not None:
            told(status)
        left = deadline - time.monotonic()
        if left <= 0 or given_up():
            return Followed(status, error)
        if status is not None and settled(status):
            # dom0 may have asked the qube just before it had the forward, so ask again, but once only.
            if asked_again or status.state is not State.SERVER_UNKNOWN:
                return Followed(status, "")
            asked_again = True
            continue
        time.sleep(min(pause, left))
        pause = min(pause * 1.5, _PAUSE_MAX)


class Shut(NamedTuple):
    """Whether every running qube that could still have a removed or paused forward open has confirmed that it is shut.

    `silent`: the qubes that have not confirmed. `error`: why that cannot be read.
    """

    silent: tuple[QubeName, ...] = ()
    error: str = ""

    @property
    def certain(self) -> bool:
        """Whether it is certain. One net qube's word is not enough: the others must refuse what it passes on anyway."""
        return not self.silent and not self.error

    @property
    def doubt(self) -> str:
        """Why it is not certain that the port is shut, in words; empty when it is."""
        if self.certain:
            return ""
        if self.error:
            return f"it is not known whether the port is shut: {self.error}"
        return unconfirmed(self.silent)


def shut(client: AdminClient, qube: QubeName, rules: Iterable[ForwardRule], seconds: float) -> Shut:
    """Ask until every hop of these rules has confirmed that they are gone, for at most `seconds`. Never raises."""
    kinds = {rule.forwardtype for rule in rules}
    deadline = time.monotonic() + seconds
    pause = _PAUSE_FIRST
    while True:
        try:
            hops = client.hops(qube)
        except RefusedError as error:
            return Shut(error=str(error))
        silent = tuple(hop.hop for hop in hops if not hop.confirmed and any(hop.passes(kind) for kind in kinds))
        left = deadline - time.monotonic()
        if not silent or left <= 0:
            return Shut(silent)
        time.sleep(min(pause, left))
        pause = min(pause * 1.5, _PAUSE_MAX)


def _look(client: AdminClient, qube: QubeName, rule: RuleId) -> tuple[RuleStatus | None, str]:
    """The status, or why it cannot be read."""
    try:
        return next((s for s in judged(client.status(qube)) if s.id == rule), None), ""
    except RefusedError as error:
        return None, str(error)


def settled(status: RuleStatus) -> bool:
    """Whether waiting will change nothing."""
    if status.state in (State.PROBLEM, State.PARTLY):
        # Without hops dom0 itself says so; a state that an agent reports may change in a moment.
        return not status.hops or (status.fault is not None and status.fault.reason in _LASTING)
    return status.state.passes or status.state is State.PAUSED
