# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Who calls the Admin API, as far as it matters what he is told of qubes other than the one that he calls about.

qubesd's policy has decided about the call itself, and so about that qube and its way out through its net qubes. Of any
other qube something is told only to who could have asked for it there.
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
"""Arguments of admin.vm.firewall.Get: what tells the forwards of a qube, how they fare, its ordinary rules."""
RESTORES_TAG = "backup-restore-mgmt"
"""Of the qube in which qvm-backup-restore --paranoid-mode runs (qubesadmin.backup.dispvm, qubesd's own policy)."""
_HIDDEN = "a forward that you may not see"


@dataclass(frozen=True, slots=True)
class Caller:
    """`may(qube, argument)`: whether he may see that qube and call Get with that argument there.

    `restores`: it is the qube in which a backup is restored that nobody trusts.
    """

    name: str
    may: Callable[[QubeName, str], bool]
    restores: bool = False

    def owner(self, seat: Seat, mine: QubeName) -> str:
        """The words for who holds a port that the qube `mine` wants."""
        return seat.describe() if seat.qube == mine or self.may(seat.qube, FORWARDS) else _HIDDEN

    @contextlib.contextmanager
    def naming(self) -> Iterator[None]:
        """Have an error about a port that is taken say by whom, as far as he may know."""
        try:
            yield
        except TakenError as error:
            raise WordedError(ErrorWord.TAKEN, f"{error.words} by {self.owner(error.owner, error.mine)}") from None

    def bringing(
        self, rules: tuple[ForwardRule, ...], mine: QubeName, opened: Container[RuleId]
    ) -> tuple[ForwardRule, ...]:
        """A list as it comes in from this caller: what is restored opens nothing that is not `opened` already."""
        if not self.restores:
            return rules
        return tuple(rule if rule.id(mine) in opened else replace(rule, enabled=False) for rule in rules)

    def told(self, planned: Plan) -> Plan:
        """A plan whose problems name nobody whom he may not see."""

        def problem(one: Problem) -> Problem:
            return one if one.owner is None else replace(one, text=taken(one.at, self.owner(one.owner, one.qube)))

        return replace(planned, problems=tuple(map(problem, planned.problems)))


DOM0 = Caller("dom0", lambda _qube, _argument: True)
"""Who may see everything."""
