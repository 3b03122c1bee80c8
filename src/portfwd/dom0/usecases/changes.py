# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Settles a new list of forwards for storing. Pure; a thread runs it, since it takes long for many rules."""

import dataclasses
import itertools
from collections.abc import Container, Iterable, Iterator
from types import MappingProxyType
from typing import Any

from portfwd.api.errors import ErrorWord, WordedError
from portfwd.dom0.planning.claims import Claim, Clash, Seat
from portfwd.dom0.planning.plan import claim_of, claims, doubtful, entrances_of, is_over, useless_for
from portfwd.dom0.planning.room import Room
from portfwd.dom0.planning.snapshot import Qube, Snapshot
from portfwd.dom0.storage.forwards import remedy
from portfwd.dom0.storage.origin import Origin
from portfwd.dom0.storage.store import StoredForward
from portfwd.model.errors import RuleError
from portfwd.model.forward import ForwardRule, Lifetime, too_wide
from portfwd.wire import limits
from portfwd.wire.errors import RefusedError
from portfwd.wire.values import QubeName, RuleId


class TakenError(WordedError):
    """A rule wants what another rule holds. By whom is said by who knows who asks (dom0/usecases/caller.py)."""

    def __init__(self, clash: Clash, mine: QubeName) -> None:
        self.owner, self.mine = clash.owner, mine
        self.words = f"{clash.word} is taken at '{clash.at}'"
        super().__init__(ErrorWord.TAKEN, self.words)


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """The list that a qube is to have, everything as it was when that was asked for, and who asks."""

    qube: Qube
    rules: tuple[ForwardRule, ...]
    snapshot: Snapshot
    origin: Origin

    def settled(self) -> tuple[StoredForward, ...]:
        """The list to store. Raises RefusedError for one that wants what is taken, or too much."""
        known = {stored.rule.id(self.qube.name): stored for stored in alive(self.qube, self.snapshot)}
        self._refuse_useless(known)
        self._refuse_wide(known)
        later = dates_after(self.snapshot)
        changed = tuple(self._stored(rule, known.get(rule.id(self.qube.name)), later) for rule in self.rules)
        self._refuse_clashes(changed, known)
        return changed

    def candidate(self) -> Snapshot:
        """The snapshot as it would be with that list. Raises RefusedError as settled() does."""
        changed = dataclasses.replace(self.qube, forwards=self.settled())
        qubes = MappingProxyType({**self.snapshot.qubes, self.qube.name: changed})
        return dataclasses.replace(self.snapshot, qubes=qubes)

    def _stored(self, rule: ForwardRule, known: StoredForward | None, later: Iterator[int]) -> StoredForward:
        session = ""
        if rule.expire is Lifetime.REBOOT:
            session = self.snapshot.boot_id
        elif rule.expire is Lifetime.SHUTDOWN:
            session = self.qube.session
        return StoredForward(rule, known.added if known else next(later), session)

    def _refuse_useless(self, known: Container[RuleId]) -> None:
        """Refuse a new rule that nobody could ever use. Stored ones stay as problems."""
        for line, rule in enumerate(self.rules, start=1):
            if rule.id(self.qube.name) in known:
                continue
            try:
                rule.check_clients()
            except RuleError as error:
                raise error.at(line) from None
            if useless := useless_for(self.qube, rule):
                raise RefusedError(useless[2])

    def _refuse_wide(self, known: dict[RuleId, StoredForward]) -> None:
        """Refuse a new or newly enabled rule that shifts too many ports. A stored one can be kept and edited."""
        for line, rule in enumerate(self.rules, start=1):
            before = known.get(rule.id(self.qube.name))
            stands = before is not None and (before.rule.enabled or not rule.enabled)
            if not stands and (reason := too_wide(rule)) is not None:
                raise RuleError(f"dstports={rule.dstports}", reason, line=line)

    def _refuse_clashes(self, changed: Iterable[StoredForward], known: dict[RuleId, StoredForward]) -> None:
        """Refuse a new or newly enabled rule whose port is taken, or for which there is no room.

        Clashes among rules that stood before are the planner's business.
        """
        fresh: set[Seat] = set()
        others = (claim for claim in claims(self.snapshot) if claim.qube != self.qube.name)
        wanted = [c for c in others if not useless_for(self.snapshot.qubes[c.qube], c.rule)]
        for stored in changed:
            if not stored.rule.enabled or useless_for(self.qube, stored.rule):
                continue
            before = known.get(stored.rule.id(self.qube.name))
            claim = claim_of(self.qube, stored, self.snapshot)
            wanted.append(claim)
            if before is None or not before.rule.enabled:
                fresh.add(claim.seat)
        if not fresh:
            return
        doubts = doubtful(self.snapshot) - {self.qube.name}
        taken, room = entrances_of(self.snapshot, doubts), Room(self.snapshot)

        def is_fresh(claim: Claim) -> bool:
            return claim.qube == self.qube.name and claim.seat in fresh

        def order(claim: Claim) -> tuple[int, bool, tuple[int, QubeName, RuleId]]:
            # The planner's order, so that of two that clash since the network changed the same one holds the port; but
            # a rule that is enabled again drives out nobody, however old it is.
            return (self.snapshot.held.rank(claim.seat), is_fresh(claim), claim.age)

        for claim in sorted(wanted, key=order):
            clash = None if claim.qube in doubts else taken.take(claim.seat)
            if clash is not None and is_fresh(claim):
                raise TakenError(clash, self.qube.name)
            full = room.take(claim.rule, claim.hops, claim.seat.families)
            if full is not None and is_fresh(claim):
                raise RefusedError(f"{full.word}: {full.text}")


def dates_after(snapshot: Snapshot) -> Iterator[int]:
    """Dates for new rules: strictly later than those of all rules, also after the clock was set back.

    A date that leaves no room above it (made in the file by hand) does not block the rules of other qubes.
    """
    room = limits.ADDED_MAX - limits.FORWARDS_MAX
    latest = max((s.added for q in snapshot.qubes.values() for s in q.forwards if s.added < room), default=0)
    return itertools.count(max(min(snapshot.now, room), latest + 1))


def qube_of(vm: Any, snapshot: Snapshot) -> Qube:
    """The snapshot's data of a qube. Raises RefusedError when the qube, or its forwards, could not be read."""
    qube = snapshot.qubes.get(str(vm.name))  # type: ignore[call-overload]
    if qube is None:
        raise WordedError(ErrorWord.UNREADABLE, f"forwards of '{vm.name}' cannot be read")
    found: Qube = qube
    if found.damage:
        text = f"forwards of '{vm.name}' cannot be read: {found.damage}; {remedy(found.name)}"
        raise WordedError(ErrorWord.UNREADABLE, text)
    return found


def alive(qube: Qube, snapshot: Snapshot) -> list[StoredForward]:
    """The rules of a qube that have not expired, in their order."""
    return [stored for stored in qube.forwards if not is_over(stored, qube, snapshot)]
