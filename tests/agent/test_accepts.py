# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Accept entries: doors that several share, and what is told of them."""

import ipaddress
from dataclasses import replace

import pytest

from portfwd.agent.rules.accepts import Accepts
from portfwd.agent.rules.counters import Counts, ElementCount
from portfwd.agent.rules.elements import Element, Elements, Surroundings
from portfwd.agent.rules.skeleton import MARK_IN
from portfwd.kernel.conntrack import Flow
from portfwd.kernel.sockets import Socket
from portfwd.wire.acknowledgement import Result
from portfwd.wire.answers.report import AcceptReport, Listening
from portfwd.wire.entry import Accept, Entry
from portfwd.wire.values import Family, PortRange, Proto

ACCEPTS = Accepts()
AROUND = Surroundings(0)
V4 = Family.V4
CLIENT, SERVER = map(ipaddress.ip_address, ("192.168.1.20", "10.137.0.20"))


def accept(number: int, listen: str = "443-443", source: str = "any", family: int = 4) -> Accept:
    value = f"kind=accept side=uplink listen={listen} source={source}"
    found = Entry.decode(f"{number:016x}.{family}.tcp", value)
    assert isinstance(found, Accept)
    return found


def built(*entries: Accept, around: Surroundings = AROUND) -> Elements:
    return ACCEPTS.build(entries, around)[0]


def rules(*numbers: int) -> str:
    return " ".join(f"{number:016x}" for number in numbers)


def test_an_accept_is_the_end_of_a_way() -> None:
    assert (ACCEPTS.side(accept(1)), ACCEPTS.mark(accept(1)), ACCEPTS.yields) == ("in", MARK_IN, False)


def test_ports_of_several_are_cut_into_doors() -> None:
    doors = {
        "1-2 . tcp": Element("goto in-any", None, rules(1)),
        "3-4 . tcp": Element("goto in-any", None, rules(1, 2)),
        "5-9 . tcp": Element("goto in-any", None, rules(2)),
    }
    assert built(accept(1, "1-4"), accept(2, "3-9")) == {(V4, "in-range"): doors}
    assert built(accept(1, "1-1")) == {(V4, "in-port"): {"tcp . 1": Element("goto in-any", None, rules(1))}}
    assert built() == {}


def test_families_and_protocols_have_doors_of_their_own() -> None:
    found = built(accept(1), accept(2, family=6), replace(accept(3), proto=Proto.UDP))
    assert {place: sorted(keys) for place, keys in found.items()} == {
        (V4, "in-port"): ["tcp . 443", "udp . 443"],
        (Family.V6, "in-port"): ["tcp . 443"],
    }


def test_what_is_over_or_not_resolved_has_no_door() -> None:
    over, unknown = replace(accept(1), expire=0), accept(2, source="name:nowhere.example")
    elements, results = ACCEPTS.build([over, unknown, accept(3)], AROUND)
    assert [results[f"{number:016x}.4.tcp"] for number in (1, 2, 3)] == [Result.EXPIRED, Result.UNRESOLVED, Result.OK]
    assert elements[V4, "in-port"]["tcp . 443"].comment == rules(3)


@pytest.mark.parametrize(("port", "leads"), [(442, False), (443, True), (445, True), (446, False)])
def test_it_takes_what_was_dialled_at_its_ports(port: int, leads: bool) -> None:
    # Wherever the user of the qube hands it on to.
    flow = Flow(V4, Proto.TCP, CLIENT, port, SERVER, 9, MARK_IN)
    assert ACCEPTS.leads(accept(1, "443-445"), flow, None, AROUND) is leads


class Told:
    """What there is to report of."""

    def __init__(self, counts: Counts | None, connections: dict[str, int] | None) -> None:
        self._counts, self._connections = counts, connections
        self.asked: list[object] = []

    def sockets(self) -> list[Socket]:
        return [Socket(V4, Proto.TCP, 443, local=True)]

    def connections_by_entry(self) -> dict[str, int] | None:
        return self._connections

    def counts(self, family: Family, names: object) -> Counts | None:
        self.asked.append((family, names))
        return self._counts


def test_an_accept_reports_its_server_its_traffic_and_its_connections() -> None:
    one, other = accept(1, "443-444"), accept(2, "445-445")
    counts = Counts(
        [ElementCount(Proto.TCP, PortRange(port, port), n, n * 100, 0.0) for port, n in ((443, 2), (444, 5))]
    )
    told = Told(counts, {one.key: 3})
    assert ACCEPTS.report([one, other], told) == {  # type: ignore[arg-type]
        one.key: AcceptReport(Listening.LOCAL, 7, 700, 3),
        other.key: AcceptReport(Listening.NO, 0, 0, 0),
    }
    assert told.asked == [(V4, ("in-port", "in-range"))]
    nothing = Told(None, None)
    assert ACCEPTS.report([one], nothing) == {one.key: AcceptReport(Listening.LOCAL)}  # type: ignore[arg-type]
    assert ACCEPTS.report([], nothing) == {}  # type: ignore[arg-type]
