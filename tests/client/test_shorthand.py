# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""What a user types, and the rule or the error that it makes."""

import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portfwd.client.typed.shorthand import (
    Options,
    changed_rule,
    free_ports,
    new_rule,
    parse_for,
    parse_service,
    parse_until,
    service_text,
)
from portfwd.model.errors import RuleError
from portfwd.model.forward import ForwardRule, ForwardType, parse_forward
from portfwd.wire.values import PortRange, Proto

NOW = 1_800_000_000.0  # 2027-01-15 08:00:00 UTC, 09:00 in Berlin
KNOWN = {
    "ssh": {Proto.TCP: 22, Proto.UDP: 22},
    "https": {Proto.TCP: 443},
    "tftp": {Proto.UDP: 69},
    "odd": {Proto.TCP: 512, Proto.UDP: 513},
}


def lookup(name: str) -> dict[Proto, int]:
    return KNOWN.get(name, {})


def words(text: str, **options: str) -> str:
    rule = new_rule(parse_service(text, lookup), Options(**options), NOW)  # type: ignore[arg-type]
    return str(rule).removeprefix("action=forward forwardtype=external ")


@pytest.fixture(autouse=True)
def berlin() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("443:8443/tcp", "proto=tcp srcports=443-443 dstports=8443-8443"),
        ("8443", "srcports=8443-8443 dstports=8443-8443"),
        ("ssh", "srcports=22-22 dstports=22-22"),
        ("ssh/tcp", "proto=tcp srcports=22-22 dstports=22-22"),
        ("https", "proto=tcp srcports=443-443 dstports=443-443"),
        ("ssh:2222", "srcports=22-22 dstports=2222-2222"),
        ("2222:ssh/tcp", "proto=tcp srcports=2222-2222 dstports=22-22"),
        ("https:8443", "proto=tcp srcports=443-443 dstports=8443-8443"),
        ("ssh:https", "proto=tcp srcports=22-22 dstports=443-443"),
        ("odd/udp", "proto=udp srcports=513-513 dstports=513-513"),
        ("5000-5010/udp", "proto=udp srcports=5000-5010 dstports=5000-5010"),
        ("5000-5010:8000/udp", "proto=udp srcports=5000-5010 dstports=8000-8000"),
        ("5000-5010:8000-8010", "srcports=5000-5010 dstports=8000-8010"),
    ],
)
def test_a_service_is_ports_and_protocols(text: str, rule: str) -> None:
    assert words(text) == rule


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "a service is like"),
        ("443:", "a service is like"),
        ("tcp/443", "the protocol is /tcp or /udp"),
        ("443/tpc", "did you mean 'tcp'"),
        ("192.168.1.1:443:80", "a service is like"),
        ("80443:80", "a port is 1 to 65535"),
        ("0", "a port is 1 to 65535"),
        ("10-5", "ends before it begins"),
        ("5000-5010:8000-8005", "one port, or as many"),
        ("sssh", "the services database has no 'sssh'"),
        ("odd", "another port for tcp than for udp"),
        ("https/udp", "for tcp only"),
        ("https:tftp", "no common protocol"),
        ("\x1b[31m", "a service is like|the services database has no"),
    ],
)
def test_what_is_no_service_is_refused_with_its_reason(text: str, reason: str) -> None:
    with pytest.raises(RuleError, match=reason) as caught:
        parse_service(text, lookup)
    assert str(caught.value).isprintable()


@given(st.text(max_size=30))
def test_no_word_escapes_as_another_error(text: str) -> None:
    for parse in (lambda: parse_service(text, lookup), lambda: parse_for(text), lambda: parse_until(text, NOW)):
        try:
            parse()
        except RuleError as error:
            assert str(error).isprintable()


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"source": "192.168.1.7"}, "srchost=192.168.1.7/32"),
        ({"source": "192.168.1.0/24"}, "srchost=192.168.1.0/24"),
        ({"source": "2001:DB8::/32"}, "srchost=2001:db8::/32"),
        ({"source": "Laptop.lan"}, "srchost=laptop.lan"),
        ({"source": "any"}, "srchost=any"),
        ({"lifetime": "2h"}, "expire=1800007200"),
        ({"until": "reboot"}, "expire=reboot"),
        ({"comment": "web server"}, "comment=web server"),
        ({"source": "neighbours", "until": "never", "comment": ""}, ""),
    ],
)
def test_options_become_words_of_the_rule(options: dict[str, str], rule: str) -> None:
    assert words("80/tcp", **options) == f"proto=tcp srcports=80-80 dstports=80-80 {rule}".rstrip()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"source": "192.168.1.300"}, "'--from 192.168.1.300'"),
        ({"source": "192.168.1.0/255.255.255.0"}, "'--from 192.168.1.0/255.255.255.0'"),
        ({"source": "neighbors"}, "did you mean 'neighbours'"),
        ({"comment": "a=b"}, "'--comment a=b'"),
        ({"lifetime": "2"}, "'--for 2': a lifetime is like"),
        ({"lifetime": "0h"}, "a lifetime is like"),
        ({"until": "rebot"}, "did you mean 'reboot'"),
        ({"until": "25:00"}, "no such day or time"),
        ({"until": "2027-02-30"}, "no such day or time"),
        ({"until": "2027-01-14"}, "this time is over|this day has begun"),
        ({"until": "2027-01-15"}, "this day has begun"),
        ({"until": "2027-01-15 08:00"}, "this time is over"),
        ({"until": "2027-03-28 02:30"}, "no such day or time"),
    ],
)
def test_errors_name_the_option(options: dict[str, str], text: str) -> None:
    with pytest.raises(RuleError, match=text):
        words("80", **options)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("45s", 45), ("30m", 1800), ("2h", 7200), ("1d12h", 129600), ("2w", 1209600), ("1h30m", 5400)],
)
def test_lifetimes(text: str, seconds: int) -> None:
    assert parse_for(text) == seconds


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("15:30", 6 * 3600 + 1800),
        ("9:01", 60),
        ("08:59", 86400 - 60),
        ("09:00", 86400),
        ("2027-01-16", 15 * 3600),
        ("2027-01-15 10:00", 3600),
        ("2027-01-15T10:00", 3600),
    ],
)
def test_ends_are_local_times_and_a_time_alone_is_the_next_one(text: str, seconds: int) -> None:
    assert parse_until(text, NOW) == str(int(NOW) + seconds)


def test_of_an_hour_that_comes_twice_the_first_is_meant_unless_it_is_over() -> None:
    first = 1_824_942_600  # 2027-10-31 02:30 CEST
    assert parse_until("2027-10-31 02:30", NOW) == str(first)
    assert parse_until("2027-10-31 02:30", first + 60.0) == str(first + 3600)


RULE = parse_forward(
    "action=forward forwardtype=external proto=tcp srcports=443 dstports=8443 expire=reboot comment=web"
)


@pytest.mark.parametrize(
    ("service", "options", "rule"),
    [
        (
            None,
            Options(source="any"),
            "proto=tcp srcports=443-443 dstports=8443-8443 srchost=any expire=reboot comment=web",
        ),
        (None, Options(until="never", comment=""), "proto=tcp srcports=443-443 dstports=8443-8443"),
        ("444", Options(), "srcports=444-444 dstports=444-444 expire=reboot comment=web"),
        (None, Options(lifetime="1m"), "proto=tcp srcports=443-443 dstports=8443-8443 expire=1800000060 comment=web"),
    ],
)
def test_an_edit_changes_what_is_given_and_nothing_else(service: str | None, options: Options, rule: str) -> None:
    asked = None if service is None else parse_service(service, lookup)
    assert str(changed_rule(RULE, asked, options, NOW)) == f"action=forward forwardtype=external {rule}"
    assert changed_rule(RULE, None, Options(forwardtype=ForwardType.INTERNAL), NOW).forwardtype == "internal"


@st.composite
def rules(draw: st.DrawFn) -> ForwardRule:
    first = draw(st.integers(1, 60000))
    length = draw(st.integers(0, 20))
    to = draw(st.integers(1, 60000))
    dst = PortRange(to, to + draw(st.sampled_from([0, length])))
    proto = draw(st.sampled_from([None, *Proto]))
    return ForwardRule(ForwardType.EXTERNAL, PortRange(first, first + length), dst, proto)


@given(rules())
def test_the_service_of_a_rule_can_be_typed(rule: ForwardRule) -> None:
    service = parse_service(service_text(rule), lookup)
    assert (service.proto, service.srcports, service.dstports) == (rule.proto, rule.srcports, rule.dstports)
    assert service.names(rule)


@given(
    st.lists(st.integers(1, 3000).map(lambda n: PortRange(n, n + 9)), max_size=40),
    st.integers(1, 3000),
    st.integers(0, 9),
)
def test_free_ports_overlap_nothing_and_the_wanted_ones_come_first(
    taken: list[PortRange], first: int, more: int
) -> None:
    wanted = PortRange(first, first + more)
    found = next(free_ports(wanted, taken))
    assert len(found) == len(wanted)
    assert not any(other.overlaps(found) for other in taken)
    if not any(other.overlaps(wanted) for other in taken):
        assert found == wanted


def test_the_last_port_is_the_end() -> None:
    assert list(free_ports(PortRange(65534, 65535), [PortRange(65535, 65535)])) == []
