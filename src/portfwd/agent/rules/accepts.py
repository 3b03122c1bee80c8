# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Accept entries: what the qube at the end of a forward does to let connections in."""

from collections.abc import Iterable, Iterator, Sequence

from portfwd.agent.rules.elements import Elements, Facts, Kind, Results, Surroundings, add_door, hindrance
from portfwd.agent.rules.skeleton import MARK_IN
from portfwd.kernel.conntrack import Flow
from portfwd.kernel.sockets import Socket
from portfwd.wire.acknowledgement import Result
from portfwd.wire.answers.report import AcceptReport, EntryReport, Listening
from portfwd.wire.entry import Accept, Entry
from portfwd.wire.values import Family, PortRange, Proto

_SIDE = "in"


class Accepts(Kind[Accept]):
    """Letting in; entries of several rules that lead to the same port share a door."""

    chain = "custom-input"

    def side(self, entry: Accept) -> str:  # noqa: ARG002 - there is one
        return _SIDE

    def mark(self, entry: Accept) -> int:  # noqa: ARG002 - there is one
        return MARK_IN

    def build(self, entries: Sequence[Accept], around: Surroundings) -> tuple[Elements, Results]:
        """A door for each piece of the port space that the same entries cover."""
        elements: Elements = {}
        results = {entry.key: hindrance(entry, around) for entry in entries}
        for family in Family:
            for proto in Proto:
                mine = [e for e in entries if (e.family, e.proto, results[e.key]) == (family, proto, Result.OK)]
                for ports, owners in _segments(mine):
                    add_door(elements, _SIDE, ports, owners, around)
        return elements, results

    def leads(self, entry: Accept, flow: Flow, interface: str | None, around: Surroundings) -> bool:  # noqa: ARG002
        return flow.port in entry.listen

    def report(self, entries: Sequence[Accept], facts: Facts) -> dict[str, EntryReport]:
        """Whether a program listens, what came in by the doors, and the open connections."""
        if not entries:
            return {}
        sockets = facts.sockets()
        names = (f"{_SIDE}-port", f"{_SIDE}-range")
        counts = {family: facts.counts(family, names) for family in {entry.family for entry in entries}}
        open_now = facts.connections_by_entry()
        found: dict[str, EntryReport] = {}
        for entry in entries:
            packets = size = None
            if (of_family := counts[entry.family]) is not None:
                doors = of_family.within(entry)
                packets, size = sum(door.packets for door in doors), sum(door.bytes for door in doors)
            number = None if open_now is None else open_now.get(entry.key, 0)
            found[entry.key] = AcceptReport(listening(entry, sockets), packets, size, number)
        return found


def _segments(entries: list[Accept]) -> Iterator[tuple[PortRange, list[Accept]]]:
    """Cut overlapping listen ranges into segments that do not overlap, each with the entries that cover it."""
    edges: dict[int, tuple[list[Accept], list[Accept]]] = {}
    for entry in entries:
        edges.setdefault(entry.listen.first, ([], []))[0].append(entry)
        edges.setdefault(entry.listen.last + 1, ([], []))[1].append(entry)
    active: list[Accept] = []
    start = 0
    for edge in sorted(edges):
        if active:
            yield PortRange(start, edge - 1), list(active)
        begins, ends = edges[edge]
        active = [e for e in active if e not in ends] + begins
        start = edge


def listening(entry: Entry, sockets: Iterable[Socket]) -> Listening:
    """Whether a socket listens on at least one port of an accept entry, and whether clients can reach it."""
    mine = (s for s in sockets if (s.family, s.proto) == (entry.family, entry.proto) and s.port in entry.listen)
    local = [socket.local for socket in mine]
    if not local:
        return Listening.NO
    return Listening.LOCAL if all(local) else Listening.YES
