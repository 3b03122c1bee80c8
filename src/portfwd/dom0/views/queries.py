# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The read-only views of forwards: what dom0 knows, and what qubes report when asked.

Get+forward.status, .hops, .plan and .connections, and Set+forward.kill.

Coroutines for the loop of qubesd. Each call takes one snapshot, makes one plan, looks once at each database concerned
and asks the qubes concerned at the same time; meanwhile qubesd serves others.
"""

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from portfwd.api.connections import format_connections, parse_kill
from portfwd.api.hops import Confirmation, format_hops
from portfwd.api.plan import format_plan
from portfwd.api.status import HopState, Outbound, format_status
from portfwd.base.qubesdb_client import Store
from portfwd.dom0.asking.pull import Puller, ask
from portfwd.dom0.planning.outbound import outbound
from portfwd.dom0.planning.plan import Plan, plan
from portfwd.dom0.planning.snapshot import Qube, Snapshot
from portfwd.dom0.storage.store import StoredForward
from portfwd.dom0.usecases.caller import DOM0, ORDINARY, STATUS, Caller
from portfwd.dom0.usecases.changes import alive, qube_of
from portfwd.dom0.usecases.service import ForwardService
from portfwd.dom0.views import answers
from portfwd.dom0.views.look import Look, Standing, confirmed, look_at, standing
from portfwd.model.forward import ForwardType
from portfwd.model.ordinary import OrdinaryRule
from portfwd.wire import limits
from portfwd.wire.answers import preview
from portfwd.wire.answers.connections import Connections, Ended, parse_result
from portfwd.wire.entry import Entry, Relay
from portfwd.wire.errors import RefusedError
from portfwd.wire.values import Family, IPAddress, IPNetwork, QubeName, RuleId

log = logging.getLogger(__name__)

_NOT_ENDED = {
    Ended.NONE: "there is no such connection",
    Ended.REFUSED: "the agent of '{}' did not understand the request",
    Ended.FAILED: "the agent of '{}' could not end the connection",
    None: "the agent of '{}' does not answer",
}


InThread = Callable[..., Awaitable[Any]]
Fare = tuple[Qube, StoredForward, tuple[tuple[QubeName, Entry], ...]]
"""A rule, its qube, and its path, which is empty for a problem."""


@dataclass(frozen=True, slots=True)
class Survey:
    """The live rules of some qubes, in order, with the plan of all qubes and how far its entries have come.

    It holds only what the caller may be told.
    """

    snapshot: Snapshot
    planned: Plan
    caller: Caller
    lists: tuple[tuple[Qube, tuple[StoredForward, ...]], ...]
    look: Look
    databases: Mapping[QubeName, Store]

    def enabled(self) -> Iterable[Fare]:
        """Every rule that is not paused, with its qube and its path (empty for a problem)."""
        for qube, stored in self.lists:
            for one in stored:
                if one.rule.enabled:
                    yield qube, one, self.planned.paths.get(one.rule.id(qube.name), ())


class StatusService:
    """One per qubesd, next to the ForwardService. `beside` calls a function in a thread.

    `compute` calls a function that waits for nothing in the computing thread.
    """

    def __init__(
        self, app: Any, service: ForwardService, beside: InThread = asyncio.to_thread, compute: InThread | None = None
    ) -> None:
        self._app, self._service, self._puller = app, service, Puller()
        self._beside, self._compute = beside, compute or beside

    async def status(self, vm: Any = None, caller: Caller = DOM0) -> str:
        """How the forwards of one qube fare, or of all whose status the caller may ask for (Get+forward.status)."""
        survey = await self.survey(vm, caller)
        reports = await self._puller.pull(self.worth_asking(survey))
        unread = answers.unread_qubes(survey.snapshot, lambda name: caller.may(name, STATUS)) if vm is None else {}
        refused = await self.kept_out(survey)
        silent = await self._beside(self._standing, survey)
        text: str = await self._compute(
            _status_text, survey.lists, survey.planned, survey.look, reports, refused, silent, unread
        )
        return text

    async def survey(self, vm: Any = None, caller: Caller = DOM0) -> Survey:
        """Survey the forwards of one qube, or of all. Raises RefusedError."""
        snapshot = self._service.snapshot()
        whole = [qube for qube in snapshot.qubes.values() if qube.forwards] if vm is None else []
        qubes = [qube_of(vm, snapshot)] if vm is not None else [q for q in whole if caller.may(q.name, STATUS)]
        lists = tuple((qube, tuple(alive(qube, snapshot))) for qube in qubes if qube.forwards)
        planned = caller.told(await self._compute(plan, snapshot))
        rules = [one.rule.id(qube.name) for qube, stored in lists for one in stored if one.rule.enabled]
        concerned = {name for rule in rules for name, _ in planned.paths.get(rule, ())}
        databases = self._service.databases(snapshot) if lists else {}
        addresses = {name: _next_addresses(found) for name, found in self.named(concerned).items()}
        look = await self._beside(
            look_at, rules, planned, databases, addresses, self._service.unwritten, self._service.may_know
        )
        return Survey(snapshot, planned, caller, lists, look, databases)

    def worth_asking(self, survey: Survey) -> list[Any]:
        """The entrances and targets that have applied their part and so can report on it."""
        names = set()
        for _, _, path in survey.enabled():
            ends = {path[0][0], path[-1][0]} if path else set()
            names |= {n for n, entry in path if n in ends and survey.look.state(n, entry) is HopState.APPLIED}
        return list(self.named(names).values())

    async def kept_out(self, survey: Survey) -> dict[RuleId, dict[QubeName, Outbound]]:
        """For each internal rule, the running qubes behind its entrance whose own ordinary rules refuse it.

        Only those whose ordinary rules the caller may ask for.
        """
        internal = [found for found in survey.enabled() if found[1].rule.forwardtype is ForwardType.INTERNAL]
        entrances = {path[0][0] for _, _, path in internal if path}
        clients = [q for q in survey.snapshot.qubes.values() if q.running and q.netvm in entrances]
        clients = [q for q in clients if survey.caller.may(q.name, ORDINARY)]
        rules = {qube.name: self._ordinary(qube.name) for qube in clients}
        found: dict[RuleId, dict[QubeName, Outbound]] = await self._compute(
            _kept_out, internal, clients, rules, survey.snapshot.now
        )
        return found

    async def plan(self, vm: Any, untrusted_list: str = "", caller: Caller = DOM0) -> str:
        """The entries of each hop, or those with a candidate list, and the nft elements (Get+forward.plan).

        Raises RefusedError for a list that Set+forward would refuse. Stores nothing.
        """
        snapshot = self._service.snapshot()
        if untrusted_list:
            with caller.naming():
                snapshot = await self._compute(self._service.candidate(vm, untrusted_list, caller).candidate)
        del untrusted_list
        qube = qube_of(vm, snapshot)
        stored = alive(qube, snapshot)
        planned = caller.told(await self._compute(plan, snapshot))
        entries: dict[QubeName, list[Entry]] = {}
        for one in stored:
            for name, entry in planned.paths.get(one.rule.id(qube.name), ()):
                entries.setdefault(name, []).append(entry)
        hops = self.named(entries)
        requests = (preview.format_request(entries[name]).encode() for name in hops)
        previews = await asyncio.gather(
            *(
                ask(hop, limits.PREVIEW_SERVICE, preview.Preview.parse, request)
                for hop, request in zip(hops.values(), requests, strict=True)
            )
        )
        told = dict(zip(hops, previews, strict=True))
        return format_plan(answers.plan_answer(qube, stored, planned, {name: told.get(name) for name in entries}))

    async def hops(self, vm: Any) -> str:
        """Which qubes that may hold entries for a qube have confirmed what dom0 wants of them (Get+forward.hops).

        Lists the hops of its way, those of an earlier way, and those that cannot be read. It tells whether a rule
        that is no longer listed is shut. Qubes that do not run are left out. Raises RefusedError.
        """
        snapshot = self._service.snapshot()
        qube = qube_of(vm, snapshot)
        planned: Plan = await self._compute(plan, snapshot)
        words = await self.confirmations(qube, snapshot, planned)
        way = {hop.name for hop in snapshot.path(qube.name)} - {qube.netvm}
        return format_hops(Confirmation(name, word, name not in way) for name, word in words.items())

    def _standing(self, survey: Survey) -> dict[RuleId, tuple[QubeName, ...]]:
        """For rules that should be shut (paused or a problem): qubes that may still have them open. In a thread."""
        found: dict[RuleId, tuple[QubeName, ...]] = {}
        unwritten = self._service.unwritten

        @functools.cache
        def at(name: QubeName, on_way: bool) -> Standing | None:
            database = None if name in unwritten else survey.databases.get(name)
            return standing(database, survey.planned.entries.get(name, ()), heard=not on_way)

        for qube, stored in survey.lists:
            shut = [one for one in stored if one.rule.id(qube.name) not in survey.planned.paths]
            holding = {name: at(name, on_way) for name, on_way in self._holding(qube, survey)} if shut else {}
            for one in shut:
                rule = one.rule.id(qube.name)
                keys = [f"{rule}.{int(family)}.{proto.value}" for family in Family for proto in one.rule.protos]
                found[rule] = tuple(name for name, held in holding.items() if held is not None and held(keys))
        return found

    def _holding(self, owner: Qube, survey: Survey) -> Iterable[tuple[QubeName, bool]]:
        """Running qubes that may hold entries for a qube, each with whether it is on the qube's present way."""
        way = [*reversed(survey.snapshot.path(owner.name)), owner]
        for hop in way:
            if hop.running and self._service.may_hold(hop.name, owner.name):
                yield hop.name, True
        names = {hop.name for hop in way}
        for name in self._elsewhere(names, survey.databases, survey.snapshot):
            if self._service.may_hold(name, owner.name):
                yield name, False

    @staticmethod
    def _elsewhere(way: Container[QubeName], databases: Iterable[QubeName], snapshot: Snapshot) -> Iterator[QubeName]:
        """The running net qubes that are not on the way, and qubes that cannot be read."""
        for name in databases:
            if name not in way and (name not in snapshot.qubes or snapshot.qubes[name].provides_network):
                yield name

    async def confirmations(self, qube: Qube, snapshot: Snapshot, planned: Plan) -> dict[QubeName, bool]:
        """hops() as values; of an earlier way only the hops that have not confirmed."""
        databases = self._service.databases(snapshot)
        way = [hop.name for hop in (*reversed(snapshot.path(qube.name)), qube)]
        others = [n for n in self._elsewhere(way, databases, snapshot) if self._service.may_hold(n, qube.name)]
        # All at the same time, since a silent database takes its full time limit.
        names = (*others, *way)
        answers = await asyncio.gather(*(self._confirmed(name, qube, snapshot, planned, databases) for name in names))
        found = dict(zip(names, answers, strict=True))
        return {name: word for name, word in found.items() if word is False or (word and name in way)}

    async def _confirmed(
        self, name: QubeName, owner: Qube, snapshot: Snapshot, planned: Plan, databases: Mapping[QubeName, Store]
    ) -> bool | None:
        """Whether a hop has confirmed; None for one that does not run, or where nothing of ours ever stood."""
        if name in databases and name not in self._service.unwritten:
            word: bool | None = await self._beside(confirmed, databases[name], planned.entries.get(name, ()))
            if word is not False:
                self._service.confirmed(name, planned)
            return word
        hop = snapshot.qubes.get(name)
        runs = name in databases if hop is None else hop.running
        has_agent = hop is None or hop.agent
        return False if runs and (has_agent or self._service.may_hold(name, owner.name)) else None

    async def connections(self, vm: Any) -> str:
        """The open connections of a qube's forwards (Get+forward.connections). Raises RefusedError."""
        qube = qube_of(vm, self._service.snapshot())
        rules = {stored.rule.id(qube.name) for stored in qube.forwards}
        if not qube.running or not qube.agent or not rules:
            return ""
        found = await ask(vm, limits.CONNECTIONS_SERVICE, Connections.parse)
        if found is None:
            raise RefusedError(str(_NOT_ENDED[None]).format(qube.name))
        return format_connections(answers.connections_answer(found, rules))

    async def kill(self, vm: Any, untrusted_payload: str) -> None:
        """End one open connection of a qube's forwards (Set+forward.kill).

        Raises RefusedError, also when there is none.
        """
        connection = parse_kill(untrusted_payload)
        del untrusted_payload
        qube = qube_of(vm, self._service.snapshot())
        if not qube.running or not qube.agent:
            raise RefusedError(_NOT_ENDED[Ended.NONE])
        result = await ask(vm, limits.KILL_SERVICE, parse_result, f"{connection}\n".encode())
        if result is not Ended.ENDED:
            raise RefusedError(_NOT_ENDED[result].format(qube.name))

    def named(self, names: Iterable[str]) -> dict[QubeName, Any]:
        """qubesd's objects of these qubes, by name."""
        wanted = set(names)
        return {QubeName(str(vm.name)): vm for vm in self._app.domains if str(vm.name) in wanted} if wanted else {}

    def _ordinary(self, name: QubeName) -> tuple[OrdinaryRule, ...]:
        """The ordinary rules of a qube; none (which drops everything) when they cannot be read."""
        try:
            return tuple(self.named([name])[name].firewall.ordinary)
        except Exception as error:
            log.warning("port forwarding: ordinary rules of %s cannot be read: %s", name, error)
            return ()


def _status_text(*told: Any) -> str:
    return format_status(answers.status_answer(*told))


def _kept_out(
    internal: Iterable[Fare], clients: Iterable[Qube], rules: Mapping[QubeName, Sequence[OrdinaryRule]], now: float
) -> dict[RuleId, dict[QubeName, Outbound]]:
    found: dict[RuleId, dict[QubeName, Outbound]] = {}
    behind: dict[QubeName | None, list[Qube]] = {}
    for client in clients:
        behind.setdefault(client.netvm, []).append(client)
    for qube, one, path in internal:
        relays = [entry for name, entry in path if name == path[0][0] and isinstance(entry, Relay)]
        for client in behind.get(path[0][0], ()) if path else ():
            if client.name == qube.name or not (families := _families(client, one.rule.srchost)):
                continue
            word = outbound(rules[client.name], relays, families, now)
            if word is not Outbound.OPEN:
                found.setdefault(one.rule.id(qube.name), {})[client.name] = word
    return found


def _next_addresses(vm: Any) -> Mapping[Family, str]:
    """The addresses that a qube's next start writes into its QubesDB."""
    found = {Family.V4: getattr(vm, "visible_ip", None), Family.V6: getattr(vm, "visible_ip6", None)}
    return {family: str(address) for family, address in found.items() if address}


def _families(sibling: Qube, srchost: object) -> set[Family]:
    """The families in which a qube is among the clients of a rule."""
    addresses: list[IPAddress] = [address for family in Family if (address := sibling.address(family)) is not None]
    if isinstance(srchost, IPNetwork):
        addresses = [address for address in addresses if address.version == srchost.version and address in srchost]
    return {Family(address.version) for address in addresses}
