# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The use cases of dom0, on top of store, plan and publish, called by qubesd's extension.

get and set answer the Admin API; views/queries.py answers what only looks. After any event, any number of times,
running.py makes the databases equal to the rules in steps: record reports, prepare, publish. QubesDB is read and
written outside of qubesd's loop; everything else here touches only dom0's files.
"""

import contextlib
import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from portfwd.api.errors import ErrorWord, WordedError
from portfwd.api.forwards import format_forwards, format_kept, parse_forwards, token
from portfwd.base.clock import Moment
from portfwd.base.expiry import Ends
from portfwd.base.qubesdb_client import Store
from portfwd.dom0.planning.holders_file import HoldersFile
from portfwd.dom0.planning.plan import Plan, is_over, plan
from portfwd.dom0.planning.snapshot import Qube, Snapshot, may_run, reports_way_out, take_snapshot
from portfwd.dom0.planning.tunnels import Tunnels, WayReport
from portfwd.dom0.publishing.publish import Publisher
from portfwd.dom0.storage.forwards import UnstoredError, remedy
from portfwd.dom0.storage.origin import Origin, Reason, save
from portfwd.dom0.storage.store import StoredForward
from portfwd.dom0.usecases.caller import DOM0, Caller
from portfwd.dom0.usecases.changes import Change, alive, dates_after, qube_of
from portfwd.model.forward import Lifetime
from portfwd.wire import limits
from portfwd.wire.errors import RefusedError
from portfwd.wire.values import HostName, QubeName, RuleId

log = logging.getLogger(__name__)


DatabasesOf = Callable[[Iterable[Any]], Mapping[QubeName, Store]]


@dataclasses.dataclass(frozen=True, slots=True)
class Orders:
    """A plan, and the writing of databases to match it. Uses no object of qubesd, so that threads can run it."""

    planned: Plan
    again: Container[QubeName]
    publisher: Publisher

    def publish(self, name: QubeName, database: Store) -> str:
        """Write one database; returns why that failed, or ''."""
        entries = self.planned.entries.get(name, ())
        return self.publisher.publish(name, database, entries, self.planned.owners(name), again=name in self.again)


@dataclasses.dataclass(frozen=True, slots=True)
class Work:
    """The input of a plan, and the databases of all running qubes, which are to match it."""

    snapshot: Snapshot
    databases: Mapping[QubeName, Store]
    reloaded: Container[str]
    publisher: Publisher
    holders: HoldersFile

    def plan(self) -> Orders:
        """Make the plan and keep who holds which ports. Takes long for many rules, so a thread runs it."""
        planned = plan(self.snapshot)
        self.holders.keep(planned.held)
        return Orders(planned, _named_hops(planned, self.reloaded), self.publisher)


class ForwardService:
    """One per qubesd. `boot_id` names this run of the host.

    `now` gives epoch seconds, `boot` the seconds of a clock that cannot be set; `kept` is the file of what must outlive
    a restart of qubesd, but not of the host; `holders` is the file of who holds which ports, which outlives both.
    """

    def __init__(
        self,
        app: Any,
        boot_id: str,
        now: Callable[[], float] = time.time,
        boot: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_BOOTTIME),
        kept: Path | None = None,
        holders: Path | None = None,
        *,
        databases_of: DatabasesOf,
    ) -> None:
        self._app = app
        self._boot_id = boot_id
        self._now, self._boot = now, boot
        self._ends = Ends(kept, boot_id)
        self._publisher = Publisher(now)
        self._holders = HoldersFile(holders)
        self._databases_of = databases_of
        self._tunnels = Tunnels(boot)
        self._unwritten: dict[QubeName, str] = {}
        self._reloaded: set[str] = set()
        self._damage: dict[QubeName, str] = {}
        self._unstored = False

    def get(self, vm: Any) -> str:
        """The live forward rules of a qube, a line each (Get+forward)."""
        snapshot = self.snapshot()
        return format_forwards(stored.rule for stored in alive(qube_of(vm, snapshot), snapshot))

    def set(self, vm: Any, untrusted_text: str, untrusted_token: str | None = None, caller: Caller = DOM0) -> None:
        """Replace the forward rules of a qube (Set+forward, Set+forward.TOKEN). A restored rule comes in paused.

        Raises RefusedError, with nothing changed, for a rule that is not accepted, a rule that wants a port which is
        taken, or a token that is not that of the present list.
        """
        change = self.asked(vm, untrusted_text, untrusted_token, caller)
        with caller.naming():
            forwards = change.settled()
        self.store(vm, change, forwards)

    def asked(self, vm: Any, untrusted_text: str, untrusted_token: str | None = None, caller: Caller = DOM0) -> Change:
        """First step of set: parse the wanted list and take the snapshot. Raises RefusedError."""
        rules = parse_forwards(untrusted_text)
        del untrusted_text
        snapshot = self.snapshot()
        qube = qube_of(vm, snapshot)
        present = format_forwards(stored.rule for stored in alive(qube, snapshot))
        if untrusted_token is not None and untrusted_token != token(present):
            text = "forwards were changed by someone else meanwhile; nothing was done, list them again"
            raise WordedError(ErrorWord.CHANGED, text)
        known = {stored.rule.id(qube.name) for stored in alive(qube, snapshot) if stored.rule.enabled}
        return Change(qube, caller.bringing(rules, qube.name, known), snapshot, Origin(caller.name, Reason.ASKED))

    def store(self, vm: Any, change: Change, forwards: tuple[StoredForward, ...]) -> str | None:
        """Last step of set: store the list that Change.settled, the second step, has made.

        The answer to the caller, which names a file that is kept; None, with nothing done, when the state is another
        one by now. Raises StoreError, UnstoredError.
        """
        if change.origin.reason is not Reason.ANEW and tuple(vm.firewall.forwards) != change.qube.forwards:
            return None
        kept = save(vm, forwards, change.origin)
        return "" if kept is None else format_kept(kept)

    def asked_anew(self, vm: Any, untrusted_text: str, caller: Caller = DOM0) -> Change:
        """First step of replacing forwards that cannot be read. Raises RefusedError, also where they can be."""
        rules = parse_forwards(untrusted_text)
        del untrusted_text
        snapshot = self.snapshot()
        qube = snapshot.qubes.get(str(vm.name))  # type: ignore[call-overload]
        if qube is None:
            raise RefusedError(f"'{vm.name}' cannot be read")
        if not qube.damage:
            raise RefusedError(f"forwards of '{vm.name}' can be read; there is nothing to begin anew")
        return Change(qube, caller.bringing(rules, qube.name, ()), snapshot, Origin(caller.name, Reason.ANEW))

    def candidate(self, vm: Any, untrusted_text: str, caller: Caller = DOM0) -> Change:
        """The change to that list, which is not stored. Raises RefusedError."""
        return self.asked(vm, untrusted_text, None, caller)

    def may_hold(self, name: QubeName, owner: QubeName) -> bool:
        """Whether the kernel of a qube may still hold entries for forwards of `owner`."""
        return self._publisher.may_hold(name, owner)

    def may_know(self, name: QubeName, key: str) -> bool:
        """Whether a qube may have received the entry with that key."""
        return self._publisher.may_know(name, key)

    def confirmed(self, name: QubeName, planned: Plan) -> None:
        """Note that a qube has confirmed exactly what is planned for it."""
        self._publisher.confirmed(name, planned.owners(name))

    @property
    def unwritten(self) -> Mapping[QubeName, str]:
        """The qubes to which the last plan could not be written, and why."""
        return MappingProxyType(self._unwritten)

    def reporting(self) -> Mapping[QubeName, Store]:
        """The databases of running net qubes, whose agents report their way out. Never raises."""
        try:
            return self._databases_of([vm for vm in self._app.domains if reports_way_out(vm)])
        except Exception:
            log.exception("port forwarding: net qubes cannot be asked for tunnels")
            return {}

    def record(self, said: Mapping[QubeName, WayReport], databases: Mapping[QubeName, Store]) -> bool:
        """Record which net qubes reported a tunnel in these databases; returns whether the plan may change.

        Only a database that is still the one of its qube counts: a run that has ended says nothing of the next one.
        """
        now = self.reporting()
        return self._tunnels.record({n: word for n, word in said.items() if n in now and now[n] is databases[n]})

    def silence_due(self) -> float | None:
        """Seconds until the reports should be read again, because one says that its tunnel is gone; None for never."""
        return self._tunnels.due()

    def prepare(self) -> Work | None:
        """Bring the rules up to date and collect the next plan's input; None when that fails. Never raises."""
        try:
            snapshot = self.snapshot()
            self._note_damage(snapshot)
            self._store_again(snapshot)
            if self._drop_over(snapshot) | self._adopt(snapshot):
                snapshot = self.snapshot()
            self._remember_tunnels(snapshot)
            reloaded, self._reloaded = self._reloaded, set()
            return Work(snapshot, self.databases(snapshot), reloaded, self._publisher, self._holders)
        except Exception:
            log.exception("port forwarding: refresh failed")
            return None

    def published(self, failures: Mapping[QubeName, str]) -> None:
        """Take the results of the work: for each qube why it failed, or ''."""
        before, self._unwritten = self._unwritten, {name: text for name, text in failures.items() if text}
        for name in self._unwritten.keys() - before.keys():
            log.warning("port forwarding: %s", self._unwritten[name])
        for name in before.keys() - self._unwritten.keys():
            log.info("port forwarding: QubesDB of '%s' can be written again, or is gone", name)

    def reload(self, vm: Any) -> None:
        """Load a file that was edited by hand, and have every hop of the rules resolve host names again.

        Never raises.
        """
        self._reloaded.add(str(vm.name))
        try:
            vm.firewall.reread()
        except Exception as error:
            log.warning("port forwarding: rules of %s cannot be read anew: %s", vm.name, error)

    def read_in(self) -> Iterator[None]:
        """Read the file of each qube that was not read yet, one per step: at a start there are many."""
        for vm in list(self._app.domains):
            with contextlib.suppress(Exception):
                # The next snapshot reports what is wrong with it.
                _ = vm.firewall.forwards
            yield

    @property
    def unstored(self) -> bool:
        """Whether the file of some qube still lacks what is in force."""
        return self._unstored

    def stopped(self, vm: Any) -> None:
        """End the rules that live until this qube's shutdown, and forget its agent's reports. Never raises."""
        self._tunnels.forget(QubeName(str(vm.name)))
        self._publisher.ended(QubeName(str(vm.name)))
        self._drop(vm, lambda stored: stored.rule.expire is Lifetime.SHUTDOWN, Reason.SHUTDOWN)

    def next_deadline(self) -> float | None:
        """When the next rule expires, in epoch seconds by the present clock, or None."""
        snapshot = self._taken()
        return min((self._now() + seconds for seconds in self._left(snapshot).values()), default=None)

    def expire(self) -> None:
        """Remove every expired rule from its file. Never raises."""
        try:
            self._drop_over(self.snapshot())
        except Exception:
            log.exception("port forwarding: expiry failed")

    def _drop_over(self, snapshot: Snapshot) -> bool:
        dropped = False
        for vm in self._app.domains:
            qube = snapshot.qubes.get(str(vm.name))  # type: ignore[call-overload]
            if qube is not None and len(alive(qube, snapshot)) != len(qube.forwards):
                dropped |= self._drop(vm, functools.partial(is_over, qube=qube, snapshot=snapshot), Reason.OVER)
        return dropped

    def snapshot(self) -> Snapshot:
        """The snapshot of this moment, with the rules that have expired."""
        snapshot = self._taken()
        over = frozenset(rule for rule, seconds in self._left(snapshot).items() if seconds <= 0)
        return dataclasses.replace(snapshot, over=over, held=self._holders.present)

    def _taken(self) -> Snapshot:
        tunnels = self._tunnels
        return take_snapshot(self._app, int(self._now()), self._boot_id, tunnels.counted, tunnels.unreported)

    def _left(self, snapshot: Snapshot) -> dict[tuple[QubeName, RuleId], float]:
        """Seconds left for each rule that expires at a time."""
        expires = {
            (qube.name, stored.rule.id(qube.name)): stored.rule.expire
            for qube in snapshot.qubes.values()
            for stored in qube.forwards
            if isinstance(stored.rule.expire, int)
        }
        moment = Moment(self._now(), self._boot(), 0.0)
        lost = {*snapshot.unread, *(qube.name for qube in snapshot.qubes.values() if qube.damage)}
        left = self._ends.left(
            {f"{qube}/{rule}": expire for (qube, rule), expire in expires.items()},
            moment,
            unread=lambda key: key.partition("/")[0] in lost,
        )
        return {(qube, rule): left[f"{qube}/{rule}"] for qube, rule in expires}

    def databases(self, snapshot: Snapshot) -> Mapping[QubeName, Store]:
        """The databases of all running qubes, also of qubes that could not be read, whose databases are emptied."""
        return self._databases_of([vm for vm in self._app.domains if _runs(vm, snapshot)])

    def _adopt(self, snapshot: Snapshot) -> bool:
        """Complete stored rules: a missing date, and the run in which a rule `until shutdown` ends."""
        adopted = False
        later = dates_after(snapshot)
        for vm in self._app.domains:
            qube = snapshot.qubes.get(str(vm.name))  # type: ignore[call-overload]
            if qube is None:
                continue
            forwards = tuple(_adopted(stored, qube, later) for stored in qube.forwards)
            if forwards != qube.forwards:
                adopted |= self._save(vm, forwards, Reason.BEGUN)
        return adopted

    def _note_damage(self, snapshot: Snapshot) -> None:
        """Log each damaged file once."""
        before, self._damage = self._damage, {q.name: q.damage for q in snapshot.qubes.values() if q.damage}
        for name, damage in self._damage.items():
            if before.get(name) != damage:
                log.warning("port forwarding: forwards of %s cannot be read: %s; %s", name, damage, remedy(name))

    def _store_again(self, snapshot: Snapshot) -> None:
        """Write the files that could not be written when ports were shut."""
        self._unstored = False
        for vm in self._app.domains:
            qube = snapshot.qubes.get(str(vm.name))  # type: ignore[call-overload]
            if qube is not None and not qube.damage and vm.firewall.unstored:
                try:
                    vm.firewall.write_again()
                except RefusedError:
                    self._unstored = True

    def _remember_tunnels(self, snapshot: Snapshot) -> None:
        """Remember VPN qubes in a feature, for the time while their tunnel is down and before it comes up at a start.

        The user sees a feature and can remove it. An empty one means that nothing is remembered.
        """
        for vm in self._app.domains:
            qube = snapshot.qubes.get(str(vm.name))  # type: ignore[call-overload]
            if qube is None or not qube.tunnel or qube.vpn is not None or not self._tunnels.reported(qube.name):
                continue
            try:
                vm.features[limits.FEATURE_VPN] = "1"
                self._app.save()
            except Exception:
                log.exception("port forwarding: that %s is a VPN qube could not be remembered", vm.name)

    def _drop(self, vm: Any, over: Callable[[StoredForward], bool], reason: Reason) -> bool:
        try:
            forwards = vm.firewall.forwards
        except RefusedError as error:
            log.warning("port forwarding: rules of %s cannot be read: %s", vm.name, error)
            return False
        kept = tuple(stored for stored in forwards if not over(stored))
        return len(kept) != len(forwards) and self._save(vm, kept, reason)

    def _save(self, vm: Any, forwards: tuple[StoredForward, ...], reason: Reason) -> bool:
        """Save; returns whether the list is in force now. A failed save is tried again at the next event."""
        try:
            save(vm, forwards, Origin(DOM0.name, reason))
        except UnstoredError as error:
            log.warning("port forwarding: rules of %s that have begun or ended: %s", vm.name, error)
            self._unstored = True
        except Exception:
            log.exception("port forwarding: rules of %s that have begun or ended could not be saved", vm.name)
            return False
        return True


def _adopted(stored: StoredForward, qube: Qube, later: Iterator[int]) -> StoredForward:
    if stored.rule.expire is Lifetime.SHUTDOWN and not stored.session and qube.running:
        stored = dataclasses.replace(stored, session=qube.session)
    return stored if stored.added else dataclasses.replace(stored, added=next(later))


def _runs(vm: Any, snapshot: Snapshot) -> bool:
    name = str(vm.name)
    if name in snapshot.unread:
        return may_run(vm)
    qube = snapshot.qubes.get(QubeName(name))
    return qube is not None and qube.running


def _named_hops(planned: Plan, targets: Container[str]) -> set[QubeName]:
    """The hops whose entries for these qubes have host names, which they resolve when a commit comes."""
    paths = (path for path in planned.paths.values() if path[-1][0] in targets)
    return {name for path in paths for name, entry in path if isinstance(entry.source, HostName)}
