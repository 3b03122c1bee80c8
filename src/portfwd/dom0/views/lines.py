# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The answers of Get+forward.plan, .status, .hops and .connections: plain lines of key=value words. Pure text.

    qube=QUBE rule=ID number=N action=forward ...                            (status: before the lines of each rule)
    rule=ID hop=QUBE family=4 proto=tcp kind=relay side=uplink ... state=applied [hits=N last=SECONDS]       (entrance)
    rule=ID hop=QUBE family=4 proto=tcp kind=accept ... state=applied listening=W packets=N bytes=N connections=N
    rule=ID hop=QUBE state=problem reason=halted text=free text to the end of the line
    rule=ID hop=QUBE state=paused
    rule=ID doors=open|shut|unknown server=yes|no|local|unknown [silent=QUBE,...]                              (status)
    rule=ID sibling=QUBE outbound=refused|partly|unknown                                     (status, internal rules)
    entrance=QUBE uplinks=ADDRESS/BITS,... [text=what it leaves out of account]         (status, after all the rules)
    unread=QUBE text=free text to the end of the line                      (status of all: whose forwards are not told)
    hop=QUBE internal=yes|no confirmed=yes|no                                                                   (hops)
    hop=QUBE element=TEXT, hop=QUBE elements=unknown                                        (plan, after all the rules)
    rule=ID family=4 proto=tcp client=ADDRESS port=N to=PORT, more=N                                     (connections)

One rule has either lines with entries, in the order from the entrance to the qube, or one problem line. What a qube
says is printed anew, as numbers, addresses and words of ours; only nft elements are passed on, their form checked.
"""

from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from types import MappingProxyType

from portfwd.api.words import NOT_KNOWN, Doors, HopState, doors_of
from portfwd.dom0.planning.outbound import Outbound
from portfwd.dom0.planning.plan import Plan, Problem
from portfwd.dom0.planning.snapshot import Qube, Snapshot
from portfwd.dom0.storage.forwards import remedy
from portfwd.dom0.storage.store import StoredForward
from portfwd.dom0.views.look import Look
from portfwd.wire.acknowledgement import Ignored, Why
from portfwd.wire.answers.connections import Connections
from portfwd.wire.answers.preview import Preview
from portfwd.wire.answers.report import Report
from portfwd.wire.entry import Entry
from portfwd.wire.values import Kind, QubeName, RuleId

UNKNOWN = "-"
_MORE_MAX = 999_999_999
_StateOf = Callable[[QubeName, Entry], str]
_Problems = Mapping[tuple[QubeName, RuleId], Problem]


def plan_view(qube: Qube, stored: Iterable[StoredForward], planned: Plan) -> str:
    """What should stand where."""
    problems = _problems(planned)
    return _text(
        line for s in stored for line in _rule_lines(qube, s, planned, problems, lambda _n, _e: HopState.PLANNED)
    )


def status_view(
    lists: Iterable[tuple[Qube, Iterable[StoredForward]]],
    planned: Plan,
    look: Look,
    reports: Mapping[QubeName, Report],
    refused: Mapping[RuleId, Mapping[QubeName, Outbound]],
    silent: Mapping[RuleId, Iterable[QubeName]] = MappingProxyType({}),
) -> str:
    """How each forward of these qubes fares: how far its entries have come, and what its qubes tell of it.

    `refused` are the qubes that cannot use an internal forward, for each rule; `silent` those that may still have one
    open that is to be shut.
    """
    problems = _problems(planned)
    lines: list[str] = []
    entrances: dict[QubeName, None] = {}
    for qube, stored in lists:
        for number, one in enumerate(stored):
            rule = one.rule.id(qube.name)
            path = planned.paths.get(rule, ())
            entrance = path[0][0] if path else None

            def state(name: QubeName, entry: Entry, entrance: QubeName | None = entrance) -> str:
                return look.state(name, entry) + _told(reports.get(name), entry, name == entrance)

            lines.append(f"qube={qube.name} rule={rule} number={number} {one.rule}")
            lines += _rule_lines(qube, one, planned, problems, state)
            lines.append(f"rule={rule} {_judged(path, look, reports, silent.get(rule, ()))}")
            lines += (f"rule={rule} sibling={name} outbound={word}" for name, word in refused.get(rule, {}).items())
            if entrance is not None and one.rule.enabled:
                entrances[entrance] = None
    for entrance in entrances:
        addresses = ",".join(str(address) for address in look.uplinks.get(entrance, ()))
        told = "; ".join(_left_out(ignored) for ignored in look.ignored.get(entrance, ()))
        lines.append(f"entrance={entrance} uplinks={addresses or UNKNOWN}" + (f" text={told}" if told else ""))
    return _text(lines)


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


def unread_view(snapshot: Snapshot, told_of: Callable[[QubeName], bool]) -> str:
    """The qubes whose forwards cannot be read: none of them is open, and none is told of."""
    told = {str(q.name): f"{q.damage}; {remedy(q.name)}" for q in snapshot.qubes.values() if q.damage}
    told |= dict.fromkeys(snapshot.unread, "the qube cannot be read, see the journal of qubesd in dom0")
    return _text(f"unread={name} text={text}" for name, text in told.items() if told_of(QubeName(name)))


def hops_view(confirmed: Mapping[QubeName, bool], internal: Container[QubeName | None]) -> str:
    """Which hops say that their kernel holds what dom0 wants, and nothing more; internal forwards pass only some."""
    words = {True: "yes", False: "no"}
    return _text(
        f"hop={name} internal={words[name in internal]} confirmed={words[word]}" for name, word in confirmed.items()
    )


def elements_view(previews: Mapping[QubeName, Preview | None]) -> str:
    """What the agent of each hop would load; None where it has not answered."""
    lines: list[str] = []
    for name, preview in previews.items():
        if preview is None:
            lines.append(f"hop={name} elements=unknown")
        else:
            lines += (f"hop={name} element={text}" for text in preview.elements)
            lines += [f"hop={name} element=... and {preview.more} more"] if preview.more else []
    return _text(lines)


def connections_view(connections: Connections, rules: Container[RuleId]) -> str:
    """The open connections of these rules of a qube, as the qube tells them."""
    lines: list[str] = []
    for key, connection in connections.listed:
        rule = RuleId(key.partition(".")[0])
        if rule in rules:
            lines.append(f"rule={rule} {connection}")
    more = min(connections.more + len(connections.listed) - len(lines), _MORE_MAX)
    return _text([*lines, f"more={more}"] if more else lines)


def _text(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _problems(planned: Plan) -> _Problems:
    return {(problem.qube, problem.rule): problem for problem in planned.problems}


def _rule_lines(
    qube: Qube, stored: StoredForward, planned: Plan, problems: _Problems, state: _StateOf
) -> Iterator[str]:
    rule = stored.rule.id(qube.name)
    if not stored.rule.enabled:
        yield f"rule={rule} hop={qube.name} state=paused"
        return
    problem = problems.get((qube.name, rule))
    if problem is not None:
        yield f"rule={rule} hop={problem.at} state=problem reason={problem.kind.value} text={problem.text}"
    for name, entry in planned.paths.get(rule, ()):
        family = f"family={int(entry.family)} proto={entry.proto.value}"
        yield f"rule={rule} hop={name} {family} {entry.value} state={state(name, entry)}"


def _judged(
    path: tuple[tuple[QubeName, Entry], ...], look: Look, reports: Mapping[QubeName, Report], silent: Iterable[QubeName]
) -> str:
    """The words for a rule as a whole: open and shut on evidence only, otherwise who has to answer."""
    if path:
        states = [(name, (entry.family, entry.proto), look.state(name, entry)) for name, entry in path]
        doors = doors_of((way, state) for _, way, state in states)
        silent = (name for name, _, state in states if doors is Doors.UNKNOWN and state in NOT_KNOWN)
    silent = tuple(dict.fromkeys(silent))
    if not path:
        doors = Doors.UNKNOWN if silent else Doors.SHUT
    return f"doors={doors} server={_server(path, reports)}" + (f" silent={','.join(silent)}" if silent else "")


def _server(path: Iterable[tuple[QubeName, Entry]], reports: Mapping[QubeName, Report]) -> str:
    """Of several protocols and IP versions one is enough: most servers speak one."""
    said: set[str] = set()
    for name, entry in path:
        if entry.kind is Kind.ACCEPT:
            told = reports[name].accept(entry.key) if name in reports else None
            said.add("unknown" if told is None else told.listening.value)
    return next((word for word in ("yes", "local", "unknown", "no") if word in said), "unknown")


def _told(report: Report | None, entry: Entry, at_entrance: bool) -> str:
    """The words of a report on one entry, with a blank before them."""
    if entry.kind is Kind.ACCEPT:
        target = None if report is None else report.accept(entry.key)
        if target is None:
            return f" listening=unknown packets={UNKNOWN} bytes={UNKNOWN} connections={UNKNOWN}"
        numbers = f"packets={_n(target.packets)} bytes={_n(target.bytes)} connections={_n(target.connections)}"
        return f" listening={target.listening.value} {numbers}"
    if not at_entrance:
        return ""
    relay = None if report is None else report.relay(entry.key)
    return f" hits={UNKNOWN} last={UNKNOWN}" if relay is None else f" hits={_n(relay.hits)} last={_n(relay.last)}"


def _n(number: int | None) -> str:
    return UNKNOWN if number is None else str(number)
