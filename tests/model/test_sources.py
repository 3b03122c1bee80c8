# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Sources that can never match, or mean something else than they look like: refused where a user writes them."""

import ipaddress
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portfwd.client.typed.shorthand import Options, new_rule, parse_service
from portfwd.model.command import parse_match
from portfwd.model.errors import RuleError
from portfwd.model.forward import parse_forward
from portfwd.wire.entry import Entry
from portfwd.wire.errors import RefusedError
from portfwd.wire.sources import as_number
from tests.model.test_forward import GOOD

USELESS = [
    ("::ffff:192.168.1.20", "write 192.168.1.20"),
    ("::ffff:c0a8:114", "write 192.168.1.20"),
    ("::ffff:192.168.1.0/120", "write 192.168.1.0/24"),
    ("::ffff:127.0.0.1", "a loopback address never comes"),
    ("::ffff:0.0.0.0/96", "write the IPv4 prefix"),
    ("::192.168.1.20", "write 192.168.1.20"),
    ("127.0.0.1", "write the client's own address"),
    ("127.5.0.0/16", "write the client's own address"),
    ("::1", "write the client's own address"),
    ("0.0.0.0", "for everyone write any"),  # noqa: S104 - a source
    ("0.1.0.0/16", "for everyone write any"),
    ("::", "for everyone write any"),
    ("224.0.0.251", "write the clients' own addresses"),
    ("239.0.0.0/8", "write the clients' own addresses"),
    ("224.0.0.0/3", "write the clients' own addresses"),
    ("ff02::1", "write the clients' own addresses"),
    ("ff00::/12", "write the clients' own addresses"),
    ("255.255.255.255", "write the clients' prefix"),
    ("240.0.0.1", "write the client's own address"),
    ("250.0.0.0/8", "write the client's own address"),
    ("169.254.3.4", "write the client's other address"),
    ("169.254.0.0/20", "write the client's other address"),
    ("fe80::1", "write neighbours, or the client's other address"),
    ("fe80::/64", "write neighbours, or the client's other address"),
    ("0x7f000001", "it means 127.0.0.1, and a loopback address"),
    ("0xc0a80114", "write 192.168.1.20"),
    ("192.168.0x1.0x14", "write 192.168.1.20"),
    ("1.0x", "write 1.0.0.0"),
    ("printer.0x14", "a name cannot end in a number"),
    ("localhost", "write the client's own name or address"),
    ("x.localhost", "write the client's own name or address"),
]
NO_ADDRESS = [
    ("017700000001", "did you mean 127.0.0.1?"),
    ("127.1", "did you mean 127.0.0.1?"),
    ("192.168.1", "did you mean 192.168.0.1?"),
    ("3232235796", "did you mean 192.168.1.20?"),
    ("192.168.001.020", "did you mean 192.168.1.16?"),
    ("1.2.3.4.5", "is not an address"),
    ("300", "did you mean 0.0.1.44?"),
]
USEFUL = [
    "192.168.1.20",
    "0.0.0.0/0",
    "::/0",
    "::/1",
    "128.0.0.0/1",
    "126.0.0.0/7",
    "2001:db8::1",
    "fd00::/8",
    "e00::/7",
]
NAMES = ["laptop.lan", "0xcafe.example", "127-0-0-1.example", "x1", "1a", "3com", "localhost.example.org"]


def _line(*words: str) -> list[str]:
    return ["action=forward", "forwardtype=external", "srcports=443", *words]


@pytest.mark.parametrize(("source", "instead"), USELESS + NO_ADDRESS)
def test_f3_a_source_that_nobody_can_have_is_refused_with_what_to_write(source: str, instead: str) -> None:
    for words in (_line(f"srchost={source}"), _line(f"src4={source}")):
        with pytest.raises(RuleError) as caught:
            parse_match(words, 0)
        assert instead in str(caught.value)
        assert caught.value.word.startswith("src")
    with pytest.raises(RuleError) as caught:
        new_rule(parse_service("443", lambda _: {}), Options(source=source), 0)
    assert caught.value.word.startswith("--from ")
    assert instead in str(caught.value)


@pytest.mark.parametrize("source", USEFUL + NAMES)
def test_f3_sources_that_somebody_can_have_are_taken(source: str) -> None:
    assert f"srchost={source}" in str(parse_match(_line(f"srchost={source}"), 0))


@pytest.mark.parametrize(("source", "_instead"), USELESS)
def test_f3_what_older_versions_have_stored_is_still_read(source: str, _instead: str) -> None:
    """So that one such rule makes no file unreadable; nobody opens anything for it."""
    rule = parse_forward(f"{GOOD} srchost={source}")
    assert parse_forward(str(rule)) == rule
    with pytest.raises(RuleError):
        rule.check_clients()


@pytest.mark.parametrize("kind", ["relay", "accept"])
@pytest.mark.parametrize(("source", "_instead"), USELESS)
def test_f3_an_agent_refuses_such_an_entry(source: str, _instead: str, kind: str) -> None:
    name = not (":" in source or source.replace(".", "").replace("/", "").isdigit())
    family = 6 if ":" in source else 4
    word = f"name:{source}" if name else str(ipaddress.ip_network(source))
    more = f" to={'fd09::5' if family == 6 else '10.137.0.6'} ports=443-443" if kind == "relay" else ""
    good = f"kind={kind} side=uplink listen=443-443 source=any{more}"
    assert Entry.decode(f"{'0' * 16}.{family}.tcp", good)
    with pytest.raises(RefusedError):
        Entry.decode(f"{'0' * 16}.{family}.tcp", good.replace("source=any", f"source={word}"))


@given(st.text(alphabet="0123456789abcdefx.", max_size=24))
def test_f3_numbers_are_read_as_the_c_library_reads_them(text: str) -> None:
    try:
        meant: ipaddress.IPv4Address | None = ipaddress.IPv4Address(socket.inet_aton(text))
    except OSError:
        meant = None
    if meant is not None:
        assert as_number(text) == meant
