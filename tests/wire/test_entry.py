# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Entries as they stand in QubesDB: each is read back as it was written, and everything else is refused."""

import dataclasses

import pytest
from hypothesis import given

from portfwd.wire import limits
from portfwd.wire.entry import (
    KINDS,
    Accept,
    Commit,
    Entry,
    Relay,
    digest,
    parse_key,
    parse_number,
    parse_words,
)
from portfwd.wire.errors import RefusedError
from portfwd.wire.values import Family, PortRange, Proto, Side, SourceWord
from tests.agent.strategies import entry_sets

KEY = "0123456789abcdef.4.tcp"
RELAY = "kind=relay side=uplink listen=443-443 source=neighbours to=10.137.0.6 ports=8443-8443"
ACCEPT = "kind=accept side=uplink listen=8443-8443 source=192.168.0.0/16"


@given(entry_sets)
def test_an_entry_is_read_as_it_was_written(entries: list[Entry]) -> None:
    for entry in entries:
        read = Entry.decode(entry.key, entry.value)
        assert read == entry
        assert (read.value, hash(read)) == (entry.value, hash(entry))


@pytest.mark.parametrize("value", [RELAY, ACCEPT, f"{RELAY} expire=0", f"{ACCEPT} expire={limits.EXPIRE_MAX}"])
def test_it_is_written_in_one_way(value: str) -> None:
    assert Entry.decode(KEY, value).value == value


def test_the_key_tells_rule_family_and_protocol() -> None:
    relay = Entry.decode(KEY, RELAY)
    assert (relay.rule, relay.family, relay.proto) == ("0123456789abcdef", Family.V4, Proto.TCP)
    assert relay.key == KEY
    assert relay.path == f"/qubes-port-forward/{KEY}"
    assert len(relay.path) <= limits.QDB_PATH_MAX


def test_each_kind_is_a_class() -> None:
    relay, accept = Entry.decode(KEY, RELAY), Entry.decode(KEY, ACCEPT)
    assert isinstance(relay, Relay)
    assert (str(relay.to), str(relay.ports), relay.side, relay.source) == (
        "10.137.0.6",
        "8443-8443",
        Side.UPLINK,
        SourceWord.NEIGHBOURS,
    )
    assert isinstance(accept, Accept)
    assert {word: kind.kind for word, kind in KINDS.items()} == {"relay": "relay", "accept": "accept"}
    assert relay != accept


@pytest.mark.parametrize(
    "key",
    [
        "",
        "0123456789abcdef",
        "0123456789abcdef.4",
        "0123456789abcdef.5.tcp",
        "0123456789abcdef.4.sctp",
        "0123456789ABCDEF.4.tcp",
        "123.4.tcp",
        f"{KEY}.x",
    ],
)
def test_a_key_that_is_none_is_refused(key: str) -> None:
    with pytest.raises(RefusedError):
        Entry.decode(key, ACCEPT.replace("192.168.0.0/16", "any"))
    with pytest.raises(RefusedError):
        parse_key(key)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "kind=mirror side=uplink listen=1-1 source=any",
        RELAY.removeprefix("kind="),
        RELAY.replace("side=uplink ", ""),
        RELAY.replace("listen=443-443 ", ""),
        RELAY.replace("source=neighbours ", ""),
        RELAY.replace(" to=10.137.0.6", ""),
        RELAY.replace(" ports=8443-8443", ""),
        f"{ACCEPT} to=10.137.0.6",
        f"{ACCEPT} ports=1-1",
        f"{ACCEPT} peers=3",
        f"{ACCEPT} expire=0 expire=0",
        f"{ACCEPT} expire=",
        f"{ACCEPT} expire=-1",
        f"{ACCEPT} expire={limits.EXPIRE_MAX + 1}",
        f"{ACCEPT} ",
        ACCEPT.replace(" side", "  side"),
        "side=uplink kind=accept listen=8443-8443 source=any",
        "kind=accept listen=8443-8443 side=uplink source=any",
        ACCEPT.replace("uplink", "inner"),
        ACCEPT.replace("uplink", "downstream"),
        ACCEPT.replace("uplink", "tunnel"),
        ACCEPT.replace("192.168.0.0/16", "neighbours"),
        ACCEPT.replace("192.168.0.0/16", "2001:db8::/32"),
        ACCEPT.replace("192.168.0.0/16", "192.168.0.1/16"),
        ACCEPT.replace("192.168.0.0/16", "127.0.0.0/8"),
        ACCEPT.replace("8443-8443", "8443"),
        ACCEPT.replace("8443-8443", "8443-8442"),
        ACCEPT.replace("8443-8443", "0-1"),
        RELAY.replace("uplink", "inner"),
        RELAY.replace("10.137.0.6", "fd09::6"),
        RELAY.replace("10.137.0.6", "work"),
        RELAY.replace("8443-8443", "8443-8444"),
        RELAY.replace("443-443", "443-445").replace("8443-8443", "8443-8444"),
    ],
)
def test_a_value_that_is_none_is_refused(value: str) -> None:
    with pytest.raises(RefusedError) as caught:
        Entry.decode(KEY, value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("listen", "ports", "shifted", "leads"),
    [
        ("443-443", "8443-8443", 0, {443: 8443, 442: None, 444: None}),
        ("5-7", "5-7", 0, {5: 5, 7: 7, 8: None}),
        ("5-7", "1005-1007", 3, {4: None, 5: 1005, 6: 1006, 7: 1007}),
        ("5-7", "22-22", 0, {5: 22, 6: 22, 7: 22}),
    ],
)
def test_a_relay_leads_port_by_port_or_to_one(
    listen: str, ports: str, shifted: int, leads: dict[int, int | None]
) -> None:
    relay = Entry.decode(KEY, f"kind=relay side=uplink listen={listen} source=any to=10.137.0.6 ports={ports}")
    assert isinstance(relay, Relay)
    assert relay.shifted == shifted
    assert {port: relay.maps_to(port) for port in leads} == leads


def test_an_accept_keeps_its_ports() -> None:
    accept = dataclasses.replace(Entry.decode(KEY, ACCEPT), listen=PortRange(5, 7))
    assert [accept.maps_to(port) for port in (4, 5, 7, 8)] == [None, 5, 7, None]


def test_a_commit_covers_exactly_its_entries() -> None:
    entries = {KEY: RELAY, KEY.replace("tcp", "udp"): RELAY}
    commit = Commit.over(7, entries)
    assert str(commit) == f"version=1 generation=7 entries=2 digest={digest(entries)}"
    assert Commit.parse(str(commit)) == commit
    assert commit.covers(dict(reversed(entries.items())))
    for other in ({}, {KEY: RELAY}, entries | {KEY: ACCEPT}, entries | {"x": RELAY}):
        assert not commit.covers(other)
    assert digest({}) == "e3b0c44298fc1c149afbf4c8996fb924"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "version=2 generation=7 entries=0 digest=0",
        "version=1 generation=x entries=0 digest=0",
        "version=1 generation=7 entries=0",
        "version=1 generation=7 entries=0 digest=0 more=1",
    ],
)
def test_another_version_of_a_commit_is_refused(text: str) -> None:
    with pytest.raises(RefusedError):
        Commit.parse(text)


def test_words_are_known_given_once_and_complete() -> None:
    assert parse_words("a=1 b=x=y", ("a", "b", "c"), ("a",)) == {"a": "1", "b": "x=y"}
    for text in ("a=1 a=1", "d=1", "b=1", "a", "a=", "a=1  b=1", "a=1 ", ""):
        with pytest.raises(RefusedError):
            parse_words(text, ("a", "b", "c"), ("a",))


def test_a_number_is_decimal_and_bounded() -> None:
    assert [parse_number(text) for text in ("0", "007", "9" * 20)] == [0, 7, 10**20 - 1]
    for text in ("", "-1", "+1", "1.0", " 1", "1_0", "\u0661", "9" * 21):
        with pytest.raises(RefusedError):
            parse_number(text)
