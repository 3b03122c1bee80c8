# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Who calls the Admin API, and what may be told to the caller of other qubes than the one called about.

qubesd's policy has decided about the call itself, and so about that qube and its way out through its net qubes. Any
other qube is told of only to a caller who could have asked there.
"""

import contextlib
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, replace

from portfwd.api.errors import ErrorWord, WordedError
from portfwd.dom0.planning.claims import Seat
from portfwd.dom0.planning.plan import Plan, Problem, taken
from portfwd.dom0.usecases.changes import TakenError
from portfwd.model.forward import ForwardRule
from portfwd.wire.values import QubeName, RuleId

FORWARDS, STATUS, ORDINARY = "forward", "forward.status", ""
"""Arguments of admin.vm.firewall.Get for a qube's forwards, their status, and its ordinary rules."""
RESTORES_TAG = "backup-restore-mgmt"
"""Tag of the qube in which qvm-backup-restore --paranoid-mode runs (qubesadmin.backup.dispvm, qubesd's own policy)."""
_HIDDEN = "a forward that you may not see"


@dataclass(frozen=True, slots=True)
class Caller:
    """`may(qube, argument)`: whether the caller may see that qube and call Get with that argument there.

    `restores`: the caller is a qube in which an untrusted backup is restored.
    """

    name: str
    may: Callable[[QubeName, str], bool]
    restores: bool = False

    def owner(self, seat: Seat, mine: QubeName) -> str:
        """Who holds a port that the qube `mine` wants, in words that the caller may read."""
        return seat.describe() if seat.qube == mine or self.may(seat.qube, FORWARDS) else _HIDDEN

    @contextlib.contextmanager
    def naming(self) -> Iterator[None]:
        """Complete an error about a taken port with its owner, as far as the caller may know."""
        try:
            yield
        except TakenError as error:
            raise WordedError(ErrorWord.TAKEN, f"{error.words} by {self.owner(error.owner, error.mine)}") from None

    def bringing(
        self, rules: tuple[ForwardRule, ...], mine: QubeName, opened: Container[RuleId]
    ) -> tuple[ForwardRule, ...]:
        """The list as stored for this caller: a restored forward comes in paused unless it is in `opened`."""
        if not self.restores:
            return rules
        return tuple(rule if rule.id(mine) in opened else replace(rule, enabled=False) for rule in rules)

    def told(self, planned: Plan) -> Plan:
        """The plan with every problem that names a qube which the caller may not see reworded."""

        def problem(one: Problem) -> Problem:
            return one if one.owner is None else replace(one, text=taken(one.at, self.owner(one.owner, one.qube)))

        return replace(planned, problems=tuple(map(problem, planned.problems)))


DOM0 = Caller("dom0", lambda _qube, _argument: True)
"""The caller who may see everything."""
