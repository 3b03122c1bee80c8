# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Plan, look and reports -> the answers of Get+forward.plan, .status and .connections, as values of `api`. Pure.

A qube's report is passed on as numbers, addresses and words of ours; only nft elements are passed on as text, their
form checked.
"""

from collections.abc import Callable, Container, Iterable, Mapping
from types import MappingProxyType

from portfwd.api.connections import Client, Clients
from portfwd.api.plan import PlanAnswer
from portfwd.api.status import (
    NOT_KNOWN,
    Doors,
    Entrance,
    ForwardStatus,
    HopState,
    HopStatus,
    Obstacle,
    Outbound,
    PathStatus,
    Status,
    doors_of,
)
from portfwd.dom0.planning.plan import Plan, Problem
from portfwd.dom0.planning.snapshot import Qube, Snapshot
from portfwd.dom0.storage.forwards import remedy
from portfwd.dom0.storage.store import StoredForward
from portfwd.dom0.views.look import Look
from portfwd.wire.acknowledgement import Ignored, Why
from portfwd.wire.answers.connections import Connections
from portfwd.wire.answers.preview import Preview
from portfwd.wire.answers.report import Listening, Report
from portfwd.wire.entry import Accept, Entry
from portfwd.wire.values import QubeName, RuleId

_MORE_MAX = 999_999_999
_Path = tuple[tuple[QubeName, Entry], ...]
_Problems = Mapping[tuple[QubeName, RuleId], Problem]


def plan_answer(
    qube: Qube, stored: Iterable[StoredForward], planned: Plan, previews: Mapping[QubeName, Preview | None]
) -> PlanAnswer:
    """The entries of each hop, and the elements that its agent would load; None where it has not answered."""
    problems = _problems(planned)

    def hop(name: QubeName, entry: Entry) -> HopStatus:
        return HopStatus(name, entry, HopState.PLANNED)

    return PlanAnswer({one.rule.id(qube.name): _path(qube, one, planned, problems, hop) for one in stored}, previews)


def status_answer(
    lists: Iterable[tuple[Qube, Iterable[StoredForward]]],
    planned: Plan,
    look: Look,
    reports: Mapping[QubeName, Report],
    refused: Mapping[RuleId, Mapping[QubeName, Outbound]],
    silent: Mapping[RuleId, Iterable[QubeName]] = MappingProxyType({}),
    unread: Mapping[QubeName, str] = MappingProxyType({}),
) -> Status:
    """The status lines of these qubes' forwards: how far the entries have come, and what qubes report.

    `refused` are the qubes that cannot use an internal forward, for each rule; `silent` those that may still have one
    open that is to be shut; `unread` those whose forwards cannot be read.
    """
    problems = _problems(planned)
    forwards: list[ForwardStatus] = []
    entrances: dict[QubeName, Entrance] = {}
    for qube, stored in lists:
        for number, one in enumerate(stored):
            rule = one.rule.id(qube.name)
            path = planned.paths.get(rule, ())
            entrance = path[0][0] if path else None

            def hop(name: QubeName, entry: Entry, entrance: QubeName | None = entrance) -> HopStatus:
                return _hop(name, entry, look.state(name, entry), reports.get(name), at_entrance=name == entrance)

            told = _path(qube, one, planned, problems, hop)
            doors, waiting = _doors(path, look, silent.get(rule, ()))
            server = _server(path, reports)
            forwards.append(
                ForwardStatus(qube.name, rule, number, one.rule, told, doors, server, waiting, refused.get(rule, {}))
            )
            if entrance is not None and one.rule.enabled:
                entrances[entrance] = _entrance(look, entrance)
    return Status(tuple(forwards), entrances, unread)


def unread_qubes(snapshot: Snapshot, told_of: Callable[[QubeName], bool]) -> dict[QubeName, str]:
    """The qubes whose forwards cannot be read, none of which is open, with the reason."""
    told = {str(q.name): f"{q.damage}; {remedy(q.name)}" for q in snapshot.qubes.values() if q.damage}
    told |= dict.fromkeys(snapshot.unread, "the qube cannot be read, see the journal of qubesd in dom0")
    return {QubeName(name): text for name, text in told.items() if told_of(QubeName(name))}


def connections_answer(connections: Connections, rules: Container[RuleId]) -> Clients:
    """The open connections of these rules, as the target reports them."""
    found = []
    for key, connection in connections.listed:
        rule = RuleId(key.partition(".")[0])
        if rule in rules:
            found.append(Client(rule, connection))
    return Clients(tuple(found), min(connections.more + len(connections.listed) - len(found), _MORE_MAX))


def _problems(planned: Plan) -> _Problems:
    return {(problem.qube, problem.rule): problem for problem in planned.problems}


def _path(
    qube: Qube,
    stored: StoredForward,
    planned: Plan,
    problems: _Problems,
    hop: Callable[[QubeName, Entry], HopStatus],
) -> PathStatus:
    rule = stored.rule.id(qube.name)
    if not stored.rule.enabled:
        return PathStatus(paused=qube.name)
    problem = problems.get((qube.name, rule))
    obstacle = None if problem is None else Obstacle(problem.at, problem.kind, problem.text)
    return PathStatus(tuple(hop(name, entry) for name, entry in planned.paths.get(rule, ())), obstacle)


def _hop(name: QubeName, entry: Entry, state: HopState, report: Report | None, *, at_entrance: bool) -> HopStatus:
    if isinstance(entry, Accept):
        target = None if report is None else report.accept(entry.key)
        if target is None:
            return HopStatus(name, entry, state)
        packets, size, connections = target.packets, target.bytes, target.connections
        return HopStatus(name, entry, state, target.listening, packets=packets, bytes=size, connections=connections)
    relay = None if report is None or not at_entrance else report.relay(entry.key)
    if relay is None:
        return HopStatus(name, entry, state)
    return HopStatus(name, entry, state, hits=relay.hits, last=relay.last)


def _doors(path: _Path, look: Look, silent: Iterable[QubeName]) -> tuple[Doors, tuple[QubeName, ...]]:
    """Open or shut on evidence only, otherwise unknown with the qubes that have to answer."""
    if not path:
        waiting = tuple(dict.fromkeys(silent))
        return Doors.UNKNOWN if waiting else Doors.SHUT, waiting
    states = [(name, (entry.family, entry.proto), look.state(name, entry)) for name, entry in path]
    doors = doors_of((way, state) for _, way, state in states)
    missing = (name for name, _, state in states if doors is Doors.UNKNOWN and state in NOT_KNOWN)
    return doors, tuple(dict.fromkeys(missing))


def _server(path: _Path, reports: Mapping[QubeName, Report]) -> Listening | None:
    """Whether a server listens. One protocol and IP version is enough, since most servers speak one."""
    said: set[Listening | None] = set()
    for name, entry in path:
        if isinstance(entry, Accept):
            told = reports[name].accept(entry.key) if name in reports else None
            said.add(None if told is None else told.listening)
    return next((word for word in (Listening.YES, Listening.LOCAL, None, Listening.NO) if word in said), None)


def _entrance(look: Look, name: QubeName) -> Entrance:
    return Entrance(look.uplinks.get(name, ()), "; ".join(_left_out(ignored) for ignored in look.ignored.get(name, ())))


def _left_out(ignored: Ignored) -> str:
    match ignored.why:
        case Why.KIND:
            reason = f"its kind, {ignored.what}, is neither that of a network card nor of a known tunnel"
        case Why.BELOW:
            reason = f"it stands on {ignored.what}, which is no network card"
        case Why.NAME:
            reason = "its name has characters that no rule can hold"
        case Why.NETWORK:
            return f"nobody in {ignored.what} is a neighbour at {ignored.interface}: that is no network of hosts"
    return f"nothing comes in by {ignored.interface}: {reason}"
