# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Netlink framing, and what is read from it: any bytes give a result, never an exception."""

import contextlib
import errno
import ipaddress
import socket
import struct

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from portfwd.agent.rules.ruleset_watch import RulesetWatch
from portfwd.kernel.conntrack import Flow, _flow
from portfwd.kernel.netlink import NETLINK_ROUTE, Message, Netlink, attribute, attributes, messages, nested
from portfwd.wire.values import Family, Proto

blobs = st.binary(max_size=200)
kinds = st.integers(0, 0x3FFF)


@settings(deadline=None)
@given(blobs)
@example(b"\0" * 64)
@example(struct.pack("=IHHII", 0xFFFFFFFF, 1, 0, 0, 0))
@example(struct.pack("=HH", 4, 1) * 8)
def test_any_bytes(data: bytes) -> None:
    assert sum(len(message.body) for message in messages(data)) <= len(data)
    assert sum(map(len, attributes(data).values())) <= len(data)


@settings(deadline=None)
@given(st.dictionaries(kinds, blobs, max_size=6))
def test_attributes_come_back(found: dict[int, bytes]) -> None:
    data = b"".join(attribute(kind, value) for kind, value in found.items())
    assert len(data) % 4 == 0
    assert attributes(data) == found
    assert attributes(attributes(nested(7, data))[7]) == found


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 0xFFFF), blobs), max_size=5))
def test_messages_come_back(found: list[tuple[int, bytes]]) -> None:
    data = b""
    for kind, body in found:
        data += struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body + b"\0" * (-len(body) % 4)
    assert list(messages(data)) == [Message(*message) for message in found]


def test_a_listing_that_the_kernel_broke_off_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mistake: what it had listed until then is taken for the whole."""
    netlink = Netlink(NETLINK_ROUTE)
    ours, kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with contextlib.closing(netlink), ours, kernel, monkeypatch.context() as patched:
        patched.setattr(netlink, "_socket", ours)
        for code in (0, errno.ENOMEM):
            kernel.send(struct.pack("=IHHII", 20, 16, 2, 0, 0) + b"link")
            kernel.send(struct.pack("=IHHIIi", 20, 3, 2, 0, 0, -code))
            if not code:
                assert [message.body for message in netlink.dump(18, b"")] == [b"link"]
                continue
            with pytest.raises(OSError, match="memory"):
                netlink.dump(18, b"")


parts = st.dictionaries(st.integers(0, 25), blobs, max_size=8)


@settings(deadline=None)
@given(blobs | parts.map(lambda found: b"\2\0\0\0" + b"".join(attribute(k, v) for k, v in found.items())))
def test_any_connection_entry(body: bytes) -> None:
    flow = _flow(body)
    assert flow is None or flow.client.version == flow.family


def _ends(family: Family, client: str, server: str, sport: int, dport: int, proto: int) -> bytes:
    addresses = (1, 2) if family is Family.V4 else (3, 4)
    packed = [ipaddress.ip_address(address).packed for address in (client, server)]
    where = nested(1, *(attribute(kind, value) for kind, value in zip(addresses, packed, strict=True)))
    ports = [attribute(kind, struct.pack(">H", port)) for kind, port in ((2, sport), (3, dport))]
    return where + nested(2, attribute(1, bytes([proto])), *ports)


def test_a_connection_is_read_by_who_answers() -> None:
    original = _ends(Family.V4, "192.0.2.7", "192.168.1.5", 40000, 443, 6)
    reply = _ends(Family.V4, "10.137.0.20", "192.0.2.7", 8443, 40000, 6)
    rest = attribute(8, struct.pack(">I", 0x01000000)) + attribute(12, b"\0\0\0\1")
    flow = _flow(b"\2\0\0\0" + nested(1, original) + nested(2, reply) + rest)
    assert flow is not None
    client, server = ipaddress.ip_address("192.0.2.7"), ipaddress.ip_address("10.137.0.20")
    assert flow[:7] == Flow(Family.V4, Proto.TCP, client, 443, server, 8443, 0x01000000)[:7]
    other = _ends(Family.V4, "192.0.2.7", "192.168.1.5", 1, 2, 1)
    assert _flow(b"\2\0\0\0" + nested(1, other) + nested(2, reply) + rest) is None


NFT = 10 << 8


def change(kind: int, table: str) -> Message:
    return Message(NFT | kind, b"\2\0\0\0" + attribute(1, table.encode() + b"\0"))


def commit(generation: int) -> Message:
    return Message(NFT | 15, b"\2\0\0\0" + attribute(1, struct.pack(">I", generation)))


def test_our_own_changes_do_not_alarm() -> None:
    watch = RulesetWatch({7})
    assert watch.touched([change(6, "qubes-port-forward"), change(6, "qubes"), commit(7)]) == (False, False)


def test_others_changes_alarm_by_table() -> None:
    watch = RulesetWatch(set())
    assert watch.touched([change(12, "qubes-port-forward"), commit(1)]) == (True, False)
    assert watch.touched([change(8, "qubes"), commit(2)]) == (False, True)
    assert watch.touched([change(8, "qubes-firewall"), commit(3)]) == (False, False)


def test_vifs_in_the_base_tables_sets_do_not_alarm() -> None:
    assert RulesetWatch(set()).touched([change(12, "qubes"), change(14, "qubes"), commit(1)]) == (False, False)


def test_a_batch_may_come_in_pieces() -> None:
    watch = RulesetWatch({5})
    assert watch.touched([change(8, "qubes")]) == (False, False)
    assert watch.touched([commit(4), change(6, "qubes-port-forward")]) == (False, True)
    assert watch.touched([commit(5)]) == (False, False)


@settings(deadline=None)
@given(st.lists(st.builds(Message, st.integers(0, 0xFFFF) | st.integers(NFT, NFT + 20), blobs), max_size=6))
def test_any_notices(found: list[Message]) -> None:
    own, base = RulesetWatch(set()).touched(found)
    assert isinstance(own, bool)
    assert isinstance(base, bool)
