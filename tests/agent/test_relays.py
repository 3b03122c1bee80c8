# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Relay entries: who gets a port, how many ports may be shifted, which connections are theirs."""

import ipaddress
from dataclasses import replace

import pytest

from portfwd.agent.rules.counters import Counts, ElementCount
from portfwd.agent.rules.elements import Network, Surroundings
from portfwd.agent.rules.relays import Relays
from portfwd.agent.rules.skeleton import HITS_SECONDS, MARK_DOWN, MARK_UP
from portfwd.kernel.conntrack import Flow
from portfwd.wire.acknowledgement import Result
from portfwd.wire.answers.report import RelayReport
from portfwd.wire.entry import Entry, Relay
from portfwd.wire.limits import SHIFTED_ELEMENTS_MAX, SHIFTED_PORTS_MAX
from portfwd.wire.values import Family, PortRange, Proto, Side

RELAYS = Relays()
AROUND = Surroundings(0)
CLIENT = ipaddress.ip_address("192.168.1.20")
VALUE = "kind=relay side={} listen={} source=any to=10.137.0.20 ports={}"


def relay(number: int, listen: str = "443-443", ports: str = "443-443", side: Side = Side.UPLINK) -> Relay:
    found = Entry.decode(f"{number:016x}.4.tcp", VALUE.format(side.value, listen, ports))
    assert isinstance(found, Relay)
    return found


def results(*entries: Relay) -> list[Result]:
    found = RELAYS.build(entries, AROUND)[1]
    return [found[entry.key] for entry in entries]


@pytest.mark.parametrize(
    ("side", "name", "mark"),
    [(Side.UPLINK, "up", MARK_UP), (Side.INNER, "up", MARK_UP), (Side.DOWNSTREAM, "down", MARK_DOWN)],
)
def test_a_relay_is_known_by_its_side(side: Side, name: str, mark: int) -> None:
    one = relay(1, side=side)
    assert (RELAYS.side(one), RELAYS.mark(one), RELAYS.yields) == (name, mark, True)


@pytest.mark.parametrize(
    ("second", "result"),
    [
        (relay(2, "443-443"), Result.CLASH),
        (relay(2, "440-443", "440-443"), Result.CLASH),
        (relay(2, "445-450", "445-450"), Result.CLASH),
        (relay(2, "441-442", "441-442"), Result.OK),
        (relay(2, "446-450", "446-450"), Result.OK),
        (relay(2, "443-443", side=Side.DOWNSTREAM), Result.OK),
        (relay(2, "443-443", side=Side.INNER), Result.CLASH),
        (replace(relay(2), proto=Proto.UDP), Result.OK),
    ],
)
def test_of_two_that_want_the_same_port_the_first_gets_it(second: Relay, result: Result) -> None:
    assert results(relay(1, "443-445", "443-445"), second) == [Result.OK, result]


def test_what_holds_no_port_is_in_nobodys_way() -> None:
    over = replace(relay(1), expire=0)
    assert results(over, relay(2), relay(3)) == [Result.EXPIRED, Result.OK, Result.CLASH]


def shifting(number: int, count: int) -> Relay:
    first = 1 + number * SHIFTED_PORTS_MAX * 2 % 60000
    listen, ports = PortRange(first, first + count - 1), PortRange(first + 1, first + count)
    side = Side.DOWNSTREAM if number * SHIFTED_PORTS_MAX * 2 > 60000 else Side.UPLINK
    return replace(relay(number), listen=listen, ports=ports, side=side, proto=Proto(("tcp", "udp")[number % 2]))


def test_a_rule_shifts_a_bounded_number_of_ports() -> None:
    assert results(shifting(1, SHIFTED_PORTS_MAX), shifting(2, SHIFTED_PORTS_MAX + 1)) == [Result.OK, Result.REFUSED]


def test_a_qube_shifts_a_bounded_number_of_ports() -> None:
    full = [shifting(number, SHIFTED_PORTS_MAX) for number in range(SHIFTED_ELEMENTS_MAX // SHIFTED_PORTS_MAX)]
    assert set(results(*full)) == {Result.OK}
    assert results(*full, relay(98, side=Side.DOWNSTREAM), shifting(99, 2))[-2:] == [Result.OK, Result.REFUSED]


def flow(port: int, server_port: int, server: str = "10.137.0.20") -> Flow:
    return Flow(Family.V4, Proto.TCP, CLIENT, port, ipaddress.ip_address(server), server_port, MARK_UP)


@pytest.mark.parametrize(
    ("found", "leads"),
    [
        (flow(444, 8444), True),
        (flow(444, 8443), False),
        (flow(446, 8446), False),
        (flow(444, 8444, "10.137.0.21"), False),
    ],
)
def test_a_relay_leads_port_by_port_to_one_address(found: Flow, leads: bool) -> None:
    assert RELAYS.leads(relay(1, "443-445", "8443-8445"), found, None, AROUND) is leads


def test_an_address_of_a_network_comes_in_where_that_is() -> None:
    home = tuple(Network(name, ipaddress.ip_network(net)) for name, net in (("ens6", "192.168.1.0/24"),))
    around = replace(AROUND, home=home)
    one = relay(1)
    assert [RELAYS.leads(one, flow(443, 443), name, around) for name in ("ens6", "ens7", None)] == [True, False, True]
    assert RELAYS.leads(replace(one, side=Side.INNER), flow(443, 443), "ens7", around)
    assert RELAYS.leads(one, flow(443, 443)._replace(client=ipaddress.ip_address("10.9.9.9")), "ens7", around)


class Told:
    """What there is to report of."""

    def __init__(self, counts: Counts | None) -> None:
        self._counts = counts
        self.asked: list[object] = []

    def sockets(self) -> list[object]:
        raise AssertionError("a relay has no server")

    def connections_by_entry(self) -> None:
        raise AssertionError("a relay counts hits")

    def counts(self, family: Family, names: object) -> Counts | None:
        self.asked.append((family, names))
        return self._counts


def test_a_relay_reports_its_hits() -> None:
    one, other = relay(1, "443-444", "443-444"), replace(relay(2), to=ipaddress.ip_address("10.0.0.1"))
    hits = ((443, 2), (444, 5))
    counts = Counts([ElementCount(Proto.TCP, PortRange(port, port), n, 0, HITS_SECONDS - port) for port, n in hits])
    told = Told(counts)
    found = RELAYS.report([one, other], told)  # type: ignore[arg-type]
    assert found == {one.key: RelayReport(7, 443), other.key: RelayReport(2, 443)}
    assert told.asked == [(Family.V4, ("up-hits",))]
    assert RELAYS.report([one], Told(None)) == {one.key: RelayReport(None, None)}  # type: ignore[arg-type]
    assert RELAYS.report([], Told(None)) == {}  # type: ignore[arg-type]
