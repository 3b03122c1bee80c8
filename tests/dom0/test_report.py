# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""What qubes answer, as text: what they print comes back, and whatever else comes is refused as a whole."""

import ipaddress
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portfwd.wire import limits
from portfwd.wire.answers.connections import Connection, Connections, Ended, format_result, parse_result
from portfwd.wire.answers.preview import Preview, format_request, parse_request
from portfwd.wire.answers.report import AcceptReport, Listening, RelayReport, Report
from portfwd.wire.errors import RefusedError
from portfwd.wire.values import Family, Proto
from tests.agent.world import accept, relay

keys = st.from_regex(r"[0-9a-f]{16}\.[46]\.(tcp|udp)", fullmatch=True)
numbers = st.integers(0, 2**64 - 1)
counts = st.none() | numbers
told = st.builds(RelayReport, counts, counts) | st.builds(
    AcceptReport, st.sampled_from(list(Listening)), counts, counts, counts
)
reports = st.builds(Report, st.dictionaries(keys, told, max_size=20))
KEY = "0123456789abcdef.4.tcp"
ACCEPT, RELAY = "listening=yes packets=1 bytes=2 connections=3", "hits=1 last=2"


@st.composite
def connections(draw: st.DrawFn) -> Connection:
    family = draw(st.sampled_from(list(Family)))
    client = draw(st.ip_addresses(v=4) if family is Family.V4 else st.ip_addresses(v=6))
    return Connection(
        family, draw(st.sampled_from(list(Proto))), client, draw(st.integers(0, 65535)), draw(st.integers(1, 65535))
    )


def key_of(connection: Connection) -> str:
    return f"0123456789abcdef.{int(connection.family)}.{connection.proto.value}"


listed = st.lists(connections(), max_size=20).map(lambda found: tuple((key_of(c), c) for c in found))
lists = st.builds(Connections, listed, st.integers(0, 99999))
elements = st.from_regex(r'\A(ip|ip6) [a-z-]{2,20} \{ [0-9a-z.:" /-]{1,60} \}\Z').filter(lambda t: " -" not in t[:6])
previews = st.builds(Preview, st.lists(elements, max_size=20).map(tuple), st.integers(0, 99999))
answers = st.one_of(
    reports.map(lambda told: (Report.parse, told)),
    lists.map(lambda told: (Connections.parse, told)),
    previews.map(lambda told: (Preview.parse, told)),
)
PARSERS: list[Callable[[bytes], object]] = [Report.parse, Connections.parse, Preview.parse, parse_result, parse_request]


@given(answers)
def test_what_a_qube_prints_is_what_dom0_reads(answer: tuple[Callable[[bytes], Any], Any]) -> None:
    parse, told = answer
    assert parse(str(told).encode()) == told


@given(answers, st.data())
def test_an_answer_that_breaks_off_is_refused(answer: tuple[Callable[[bytes], Any], Any], data: st.DataObject) -> None:
    parse, told = answer
    whole = str(told).encode()
    with pytest.raises(RefusedError):
        parse(whole[: data.draw(st.integers(0, len(whole) - 1))])


HEADS = ("version=1 entries=1\n", "version=1 connections=1 more=0\n", "version=1 elements=1 more=0\n", "")
bodies = st.sampled_from([f"{KEY} {ACCEPT}", f"{KEY} client=192.0.2.1 port=1 to=2", "ip in-port { tcp . 1 : goto x }"])


@pytest.mark.parametrize("parse", PARSERS)
@given(
    untrusted=st.binary(max_size=300)
    | st.builds(
        lambda head, body, place, junk: f"{head}{body[:place]}{junk}{body[place:]}\n".encode(),
        st.sampled_from(HEADS),
        bodies,
        st.integers(0, 60),
        st.text(max_size=10),
    )
)
def test_any_bytes_are_read_or_refused(parse: Callable[[bytes], object], untrusted: bytes) -> None:
    try:
        parse(untrusted)
    except RefusedError as error:
        assert str(error).isascii()
        assert str(error).isprintable()
        assert "%" not in str(error)


@pytest.mark.parametrize(
    "lines",
    [
        [f"{KEY} listening=maybe packets=1 bytes=2 connections=3"],
        [f"{KEY} listening=unknown packets=1 bytes=2 connections=3"],
        [f"{KEY} listening=yes {ACCEPT}"],
        [f"{KEY} listening=yes packets=-1 bytes=2 connections=3"],
        [f"{KEY} listening=yes packets=1e9 bytes=2 connections=3"],
        [f"{KEY} listening=yes packets={'9' * 21} bytes=2 connections=3"],
        [f"{KEY} listening=yes"],
        [f"{KEY} {RELAY} hits=1"],
        [f"{KEY} last=2"],
        [f" {KEY} {ACCEPT}"],
        [f"{KEY} {ACCEPT}\r"],
        [KEY],
        [f"{KEY.upper()} {ACCEPT}"],
        [f"../../etc/passwd {ACCEPT}"],
        [f"{KEY} {ACCEPT}", f"{KEY} {RELAY}"],
        [""],
    ],
)
def test_lines_that_no_qube_of_ours_prints_are_refused(lines: list[str]) -> None:
    text = f"version=1 entries={len(lines)}\n"
    with pytest.raises(RefusedError):
        Report.parse((text + "".join(line + "\n" for line in lines)).encode())


def test_a_report_that_tells_more_is_read_as_far_as_it_is_known() -> None:
    told = Report({KEY: RelayReport(1, 2), KEY.replace("4", "6"): AcceptReport(Listening.YES, 1, 2, 3)})
    head, *lines = str(told).splitlines()
    for more in ("family=4 base=yes before-forward=0 before-input=0", "new=\x1b[2J", "x=1 y"):
        text = "\n".join([head, more, *(f"{line} route=vif1.0 peers=3" for line in lines), more, ""])
        assert Report.parse(text.encode()) == told


def test_the_report_of_an_agent_of_before_is_read() -> None:
    text = (
        "version=1 entries=1\nfamily=4 base=yes before-forward=0 before-input=0\n"
        f"family=6 base=no before-forward=0 before-input=0\n{KEY} hits=1 last=- route=uplink\n"
    )
    assert Report.parse(text.encode()) == Report({KEY: RelayReport(1, None)})


def test_each_entry_is_asked_for_as_what_it_is() -> None:
    told = AcceptReport(Listening.YES, 1, 2, 3)
    report = Report.parse(f"version=1 entries=1\n{KEY} {ACCEPT}\n".encode())
    assert (report.accept(KEY), report.relay(KEY), report.accept("other")) == (told, None, None)


def test_answers_have_their_limits() -> None:
    worst = AcceptReport(Listening.LOCAL, *(2**64 - 1,) * 3)
    many: dict[str, Any] = {f"{number:016x}.4.tcp": worst for number in range(limits.REPORT_LINES_MAX + 5)}
    printed = str(Report(many)).encode()
    assert len(printed) <= limits.REPORT_MAX
    assert len(Report.parse(printed).entries) == limits.REPORT_LINES_MAX
    more = printed.replace(b"entries=4096", b"entries=4097") + f"{'f' * 16}.4.tcp {worst}\n".encode()
    with pytest.raises(RefusedError, match="does not match"):
        Report.parse(more)
    with pytest.raises(RefusedError, match="bytes"):
        Report.parse(b"version=1 entries=0\n" + b"x" * limits.REPORT_MAX)
    one = Connection(Family.V6, Proto.TCP, ipaddress.ip_address("2001:db8:ffff:ffff:ffff:ffff:ffff:ffff"), 65535, 65535)
    listed = str(Connections(((key_of(one), one),) * (limits.REPORT_CONNECTIONS_MAX + 7), 1)).encode()
    assert len(listed) <= limits.REPORT_MAX
    assert Connections.parse(listed).more == 8
    long = "ip6 in-port { " + "1" * (limits.ELEMENT_MAX - 16) + " }"
    preview = str(Preview((long, "ip in-port { 1\n2 }") + (long,) * limits.REPORT_LINES_MAX)).encode()
    assert len(preview) <= limits.REPORT_MAX
    read = Preview.parse(preview)
    assert len(read.elements) + read.more == limits.REPORT_LINES_MAX + 2


def test_a_connection_is_of_its_entrys_family() -> None:
    text = "version=1 connections=1 more=0\n0123456789abcdef.6.tcp client=192.0.2.1 port=1 to=2\n"
    with pytest.raises(RefusedError, match="not an IPv6 address"):
        Connections.parse(text.encode())


@given(connections())
def test_a_request_to_end_a_connection_comes_back(connection: Connection) -> None:
    assert Connection.parse(str(connection)) == connection


@pytest.mark.parametrize("result", list(Ended))
def test_so_does_its_result(result: Ended) -> None:
    assert parse_result(format_result(result).encode()) is result
    with pytest.raises(RefusedError):
        parse_result(format_result(result).encode() + b"more\n")


def test_so_do_the_entries_of_a_preview() -> None:
    entries = [relay(443, 8443, source="neighbours"), accept("5000-5010", family=Family.V6, source="2001:db8::/32")]
    assert parse_request(format_request(entries).encode()) == entries
    with pytest.raises(RefusedError, match="twice"):
        parse_request(format_request(entries[:1] * 2).encode())
