# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The use cases of dom0, on top of store, plan and publish; what qubesd's extension calls.

get and set answer the Admin API; what is only looked at is in status.py. The world is made equal to the rules in steps
(running.py), after any event, as often as one likes: hear what net qubes say, prepare, publish. QubesDB is read and
written beside qubesd's loop; all else here touches only dom0's files.
"""

import dataclasses
import functools
import itertools
import logging
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from portfwd.dom0.plan import Claim, Entrances, Plan, claim_of, claims, is_over, plan
from portfwd.dom0.publish import Publisher
from portfwd.dom0.snapshot import Qube, Snapshot, may_run, speaks, take_snapshot
from portfwd.dom0.store import StoredForward
from portfwd.dom0.tunnels import Tunnels
from portfwd.model.forward import ForwardRule, Lifetime, format_forwards, parse_forwards, token
from portfwd.wire import limits
from portfwd.wire.clock import Moment
from portfwd.wire.ends import Ends
from portfwd.wire.errors import RefusedError
from portfwd.wire.qdb_client import Store
from portfwd.wire.values import HostName, QubeName, RuleId

log = logging.getLogger(__name__)


DatabasesOf = Callable[[Iterable[Any]], Mapping[QubeName, Store]]


@dataclasses.dataclass(frozen=True, slots=True)
class Work:
    """A plan, and the databases of all running qubes, which are to be brought to it."""

    planned: Plan
    databases: Mapping[QubeName, Store]
    again: Container[QubeName]
    publisher: Publisher

    def publish(self, name: QubeName, database: Store) -> str:
        """Bring one of them; why that failed, or ''. Uses nothing of qubesd, so that a thread can do it."""
        entries = self.planned.entries.get(name, ())
        return self.publisher.publish(name, database, entries, again=name in self.again)


class ForwardService:
    """One per qubesd. `boot_id` names this run of the host.

    `now` gives epoch seconds, `boot` the seconds of a clock that cannot be set; `kept` is a file for what must outlive
    a restart of qubesd, but not of the host.
    """

    def __init__(
        self,
        app: Any,
        boot_id: str,
        now: Callable[[], float] = time.time,
        boot: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_BOOTTIME),
        kept: Path | None = None,
        *,
        databases_of: DatabasesOf,
    ) -> None:
        self._app = app
        self._boot_id = boot_id
        self._now, self._boot = now, boot
        self._ends = Ends(kept, boot_id)
        self._publisher = Publisher(now)
        self._databases_of = databases_of
        self._tunnels = Tunnels(boot)
        self._unwritten: dict[QubeName, str] = {}
        self._reloaded: set[str] = set()

    def get(self, vm: Any) -> str:
        """The live forward rules of a qube, a line each (Get+forward)."""
        snapshot = self.snapshot()
        return format_forwards(stored.rule for stored in alive(qube_of(vm, snapshot), snapshot))

    def set(self, vm: Any, untrusted_text: str, untrusted_token: str | None = None) -> None:
        """Replace the forward rules of a qube (Set+forward, Set+forward.TOKEN).

        Raises RefusedError, with nothing changed, for a rule that is not accepted, a rule that wants a port which is
        taken, or a token that is not that of the present list.
        """
        rules = parse_forwards(untrusted_text)
        del untrusted_text
        snapshot = self.snapshot()
        qube = qube_of(vm, snapshot)
        present = format_forwards(stored.rule for stored in alive(qube, snapshot))
        if untrusted_token is not None and untrusted_token != token(present):
            raise RefusedError("forwards were changed by someone else meanwhile; nothing was done, list them again")
        vm.firewall.save_forwards(self._changed(rules, qube, snapshot))

    def candidate(self, vm: Any, untrusted_text: str) -> Snapshot:
        """The snapshot as it would be with that list; stores nothing. Raises RefusedError as set does."""
        rules = parse_forwards(untrusted_text)
        del untrusted_text
        snapshot = self.snapshot()
        qube = qube_of(vm, snapshot)
        changed = dataclasses.replace(qube, forwards=self._changed(rules, qube, snapshot))
        return dataclasses.replace(snapshot, qubes=MappingProxyType({**snapshot.qubes, qube.name: changed}))

    @property
    def unwritten(self) -> Mapping[QubeName, str]:
        """The qubes to which the last plan could not be written, and why."""
        return MappingProxyType(self._unwritten)

    def speakers(self) -> Mapping[QubeName, Store]:
        """The databases of running net qubes, whose agents tell whether they send into a tunnel. Never raises."""
        try:
            return self._databases_of([vm for vm in self._app.domains if speaks(vm)])
        except Exception:
            log.exception("port forwarding: net qubes cannot be asked for tunnels")
            return {}

    def hear(self, said: Mapping[QubeName, bool | None]) -> bool:
        """What speakers have just said of a tunnel (dom0/tunnels.py). Whether another plan may be right now."""
        return self._tunnels.hear(said)

    def silence_due(self) -> float | None:
        """In how many seconds the speakers should be asked again, because one says that its tunnel is gone."""
        return self._tunnels.due()

    def prepare(self) -> Work | None:
        """Bring the rules up to date and plan them. Never raises."""
        try:
            snapshot = self.snapshot()
            if self._drop_over(snapshot) | self._adopt_sessions(snapshot):
                snapshot = self.snapshot()
            self._remember_tunnels(snapshot)
            planned = plan(snapshot)
            again, self._reloaded = _named_hops(planned, self._reloaded), set()
            return Work(planned, self.databases(snapshot), again, self._publisher)
        except Exception:
            log.exception("port forwarding: refresh failed")
            return None

    def published(self, failures: Mapping[QubeName, str]) -> None:
        """What became of the work: why it failed for each qube, or ''."""
        before, self._unwritten = self._unwritten, {name: text for name, text in failures.items() if text}
        for name in self._unwritten.keys() - before.keys():
            log.warning("port forwarding: %s", self._unwritten[name])
        for name in before.keys() - self._unwritten.keys():
            log.info("port forwarding: QubesDB of '%s' can be written again, or is gone", name)

    def reload(self, vm: Any) -> None:
        """Have every hop of this qube's rules resolve host names anew, with the next refresh."""
        self._reloaded.add(str(vm.name))

    def stopped(self, vm: Any) -> None:
        """End the rules of a qube that live until its shutdown, and forget what its agent said. Never raises."""
        self._tunnels.forget(QubeName(str(vm.name)))
        self._drop(vm, lambda stored: stored.rule.expire is Lifetime.SHUTDOWN)

    def next_deadline(self) -> float | None:
        """When the next rule ends, in epoch seconds by the present clock, or None."""
        snapshot = take_snapshot(self._app, int(self._now()), self._boot_id, self._tunnels.counted)
        return min((self._now() + seconds for seconds in self._left(snapshot).values()), default=None)

    def expire(self) -> None:
        """Remove every rule whose lifetime has ended from its file. Never raises."""
        try:
            self._drop_over(self.snapshot())
        except Exception:
            log.exception("port forwarding: expiry failed")

    def _drop_over(self, snapshot: Snapshot) -> bool:
        dropped = False
        for vm in self._app.domains:
            qube = snapshot.qubes.get(str(vm.name))  # type: ignore[call-overload]
            if qube is not None and len(alive(qube, snapshot)) != len(qube.forwards):
                dropped |= self._drop(vm, functools.partial(is_over, qube=qube, snapshot=snapshot))
        return dropped

    def snapshot(self) -> Snapshot:
        """All qubes at this moment, with the rules whose time is over."""
        snapshot = take_snapshot(self._app, int(self._now()), self._boot_id, self._tunnels.counted)
        over = frozenset(rule for rule, seconds in self._left(snapshot).items() if seconds <= 0)
        return dataclasses.replace(snapshot, over=over)

    def _left(self, snapshot: Snapshot) -> dict[tuple[QubeName, RuleId], float]:
        """How many seconds each rule with an end by the clock still has."""
        expires = {
            (qube.name, stored.rule.id(qube.name)): stored.rule.expire
            for qube in snapshot.qubes.values()
            for stored in qube.forwards
            if isinstance(stored.rule.expire, int)
        }
        moment = Moment(self._now(), self._boot(), 0.0)
        left = self._ends.left(
            {f"{qube}/{rule}": expire for (qube, rule), expire in expires.items()},
            moment,
            unread=lambda key: key.partition("/")[0] in snapshot.unread,
        )
        return {(qube, rule): left[f"{qube}/{rule}"] for qube, rule in expires}

    def databases(self, snapshot: Snapshot) -> Mapping[QubeName, Store]:
        """The databases of all running qubes, also of those that could not be read: theirs are emptied."""
        return self._databases_of([vm for vm in self._app.domains if _runs(vm, snapshot)])

    def _changed(self, rules: Iterable[ForwardRule], qube: Qube, snapshot: Snapshot) -> tuple[StoredForward, ...]:
        """A new list of a qube as it is to be stored. Raises RefusedError when one of them wants what is taken."""
        known = {stored.rule.id(qube.name): stored for stored in alive(qube, snapshot)}
        # Strictly later than every rule there is, also within one second and after the clock was set back.
        latest = max((s.added for q in snapshot.qubes.values() for s in q.forwards), default=0)
        later = itertools.count(max(int(self._now()), latest + 1))
        changed = tuple(self._stored(rule, known.get(rule.id(qube.name)), qube, later) for rule in rules)
        self._refuse_clashes(qube, changed, known, snapshot)
        return changed

    def _stored(
        self, rule: ForwardRule, known: StoredForward | None, qube: Qube, later: Iterator[int]
    ) -> StoredForward:
        session = ""
        if rule.expire is Lifetime.REBOOT:
            session = self._boot_id
        elif rule.expire is Lifetime.SHUTDOWN:
            session = qube.session
        return StoredForward(rule, known.added if known else next(later), session)

    def _refuse_clashes(
        self, qube: Qube, changed: Iterable[StoredForward], known: dict[RuleId, StoredForward], snapshot: Snapshot
    ) -> None:
        """Refuse a new or newly enabled rule whose port is taken; what stood before is the planner's business."""
        taken = Entrances()
        fresh: list[Claim] = []
        standing = [claim for claim in claims(snapshot) if claim.qube != qube.name]
        for stored in changed:
            if not stored.rule.enabled:
                continue
            before = known.get(stored.rule.id(qube.name))
            claim = claim_of(qube, stored, snapshot)
            if before is not None and before.rule.enabled:
                standing.append(claim)
            else:
                fresh.append(claim)
        # In the planner's order: of two that clash since the network changed, the same one holds the port here.
        for claim in sorted(standing, key=lambda c: c.order):
            taken.take(claim)
        for claim in fresh:
            clash = taken.take(claim)
            if clash is not None:
                raise RefusedError(f"{clash.word} is taken at '{clash.at}' by {clash.owner.describe()}")

    def _adopt_sessions(self, snapshot: Snapshot) -> bool:
        """A rule until shutdown that was added to a halted qube begins with the qube's next run."""
        adopted = False
        for vm in self._app.domains:
            qube = snapshot.qubes.get(str(vm.name))  # type: ignore[call-overload]
            if qube is None or not qube.running:
                continue
            waiting = [s for s in qube.forwards if s.rule.expire is Lifetime.SHUTDOWN and not s.session]
            if waiting:
                forwards = (dataclasses.replace(s, session=qube.session) if s in waiting else s for s in qube.forwards)
                adopted |= self._save(vm, tuple(forwards))
        return adopted

    def _remember_tunnels(self, snapshot: Snapshot) -> None:
        """A VPN qube stays one while its tunnel is down, and before it comes up at the next start.

        In a feature, where the user sees and can remove it. An empty one is the user's word that nothing be remembered.
        """
        for vm in self._app.domains:
            qube = snapshot.qubes.get(str(vm.name))  # type: ignore[call-overload]
            if qube is None or not qube.tunnel or qube.vpn is not None or not self._tunnels.said(qube.name):
                continue
            try:
                vm.features[limits.FEATURE_VPN] = "1"
                self._app.save()
            except Exception:
                log.exception("port forwarding: that %s is a VPN qube could not be remembered", vm.name)

    def _drop(self, vm: Any, over: Callable[[StoredForward], bool]) -> bool:
        try:
            forwards = vm.firewall.forwards
        except RefusedError as error:
            log.warning("port forwarding: rules of %s cannot be read: %s", vm.name, error)
            return False
        kept = tuple(stored for stored in forwards if not over(stored))
        return len(kept) != len(forwards) and self._save(vm, kept)

    def _save(self, vm: Any, forwards: tuple[StoredForward, ...]) -> bool:
        """Whether it could be saved; what could not is tried again at the next event."""
        try:
            vm.firewall.save_forwards(forwards)
        except Exception:
            log.exception("port forwarding: rules of %s that have begun or ended could not be saved", vm.name)
            return False
        return True


def _runs(vm: Any, snapshot: Snapshot) -> bool:
    name = str(vm.name)
    if name in snapshot.unread:
        return may_run(vm)
    qube = snapshot.qubes.get(QubeName(name))
    return qube is not None and qube.running


def _named_hops(planned: Plan, targets: set[str]) -> set[QubeName]:
    """The hops whose entries for these qubes hold host names: they look at them when a commit comes."""
    paths = (path for path in planned.paths.values() if path[-1][0] in targets)
    return {name for path in paths for name, entry in path if isinstance(entry.source, HostName)}


def qube_of(vm: Any, snapshot: Snapshot) -> Qube:
    """What the snapshot has of a qube. Raises RefusedError when it could not be read."""
    qube = snapshot.qubes.get(str(vm.name))  # type: ignore[call-overload]
    if qube is None:
        raise RefusedError(f"forwards of '{vm.name}' cannot be read")
    found: Qube = qube
    return found


def alive(qube: Qube, snapshot: Snapshot) -> list[StoredForward]:
    """The rules of a qube whose time is not over, in their order."""
    return [stored for stored in qube.forwards if not is_over(stored, qube, snapshot)]
