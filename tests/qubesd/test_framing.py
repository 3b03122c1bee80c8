# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Framing, limits and error answers of the Admin API."""

import socket

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.qubesd.world import World

GET = b"admin.vm.property.Get"


@pytest.mark.parametrize(
    ("request_bytes", "answer"),
    [
        (GET + b"+ip dom0 name work\0", b"0\0default=True type=str 10.137.0.4"),
        (GET + b"+nosuch dom0 name work\0", b"2\0QubesNoSuchPropertyError\0\0Invalid property 'nosuch' of work\0"),
        (GET + b"+ip dom0 name nosuchvm\0", b"2\0QubesVMNotFoundError\0\0No such domain: 'nosuchvm'\0"),
        (GET + b"+ip nosuchvm name work\0", b"2\0QubesVMNotFoundError\0\0No such domain: 'nosuchvm'\0"),
        (b"admin.vm.tag.List dom0 name work\0", b"0\0"),
        (b"admin.vm.tag.List+ dom0 name work\0", b"0\0"),
        (b"admin.vm.tag.List+ dom0 keyword adminvm\0", b"0\0"),
        (b"admin.vm.tag.List+x dom0 name work\0", b"2\0ProtocolError\0\0unexpected argument\0"),
        (b"admin.vm.tag.List+ dom0 name work\0x", b"2\0ProtocolError\0\0unexpected payload\0"),
        (b"admin.vm.tag.Get+ dom0 name work\0", b"2\0ProtocolError\0\0expected an argument\0"),
        (b"admin.vm.firewall.Set+ dom0 name work\0", b"2\0ProtocolError\0\0expected payload\0"),
        (
            b"admin.vm.firewall.Get+ dom0 name dom0\0",
            b"2\0ProtocolError\0\0expected destination to not be AdminVM\0",
        ),
        (
            b"admin.property.Get+default_netvm dom0 name work\0",
            b"2\0ProtocolError\0\0expected destination to be AdminVM\0",
        ),
        (b"admin.vm.firewall.Get+x dom0 name work\0", b"2\0ProtocolError\0\0unexpected argument\0"),
        (b"admin.vm.firewall.Set+x dom0 name work\0y", b"2\0ProtocolError\0\0unexpected argument\0"),
        (b"admin.nothing+ dom0 name dom0\0", b"2\0ProtocolError\0\0no such method: 'admin.nothing'\0"),
        (b"admin.vm.List+ dom0 name uuid:x\0", b"2\0QubesVMInvalidUUIDError\0\0VM UUID is not valid: 'x'\0"),
        (b"admin.vm.List+ dom0 name -x\0", None),
        (b"admin.vm.List+ dom0 keyword other\0", b""),
        (b"admin.vm.List+ dom0 dom0\0", b""),
        (b"admin.vm.List+ dom0 name dom0", b""),
        (b"", b""),
        (b"\0", b""),
        (b"admin.vm.List+\xff dom0 name dom0\0", b""),
        (b"admin.vm.List+ dom0 name \xff\0", b""),
    ],
)
def test_answers_are_framed_as_by_qubesd(halted: World, request_bytes: bytes, answer: bytes | None) -> None:
    got = halted.raw(request_bytes)
    if answer is None:
        assert got.startswith(b"2\0QubesValueError\0\0")
    else:
        assert got == answer


def test_a_qube_can_be_named_by_its_uuid(halted: World) -> None:
    uuid = halted.prop("work", "uuid")
    assert halted.raw(f"{GET.decode()}+name dom0 name uuid:{uuid}\0".encode()).endswith(b" work")


def test_the_whole_request_is_limited_to_64_kib(halted: World) -> None:
    header = b"admin.vm.feature.Set+long dom0 name work\0"
    fitting = 65536 - len(header)
    assert halted.raw(header + b"x" * fitting) == b"0\0"
    assert halted.raw(header + b"x" * (fitting + 1)) == b""
    assert len(halted.api("work", "admin.vm.feature.Get+long")) == fitting
    halted.api("work", "admin.vm.feature.Remove+long")


def test_nothing_is_done_before_the_client_has_closed_its_side(halted: World) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(halted.socket))
        connection.sendall(b"admin.vm.tag.Set+early dom0 name work\0")
        assert "early" not in halted.api("work", "admin.vm.tag.List")
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(10) == b"0\0"
    assert "early" in halted.api("work", "admin.vm.tag.List")
    halted.api("work", "admin.vm.tag.Remove+early")


NAMES = "vm.List vm.property.Set vm.property.Get vm.feature.Get vm.tag.Get vm.firewall.Get vm.Create.AppVM property.Set"
METHODS = st.sampled_from([f"admin.{name}" for name in NAMES.split()])
BYTES = st.binary(max_size=60)
REQUESTS = st.one_of(
    BYTES,
    st.builds(lambda m, a, d, p: m.encode() + b"+" + a + b" dom0 name " + d + b"\0" + p, METHODS, BYTES, BYTES, BYTES),
    st.builds(lambda m, a, p: m.encode() + b"+" + a + b" dom0 name work\0" + p, METHODS, BYTES, BYTES),
    st.builds(lambda p: b"admin.vm.firewall.Set+ dom0 name personal\0" + p, BYTES),
    st.builds(lambda a, p: b"admin.vm.firewall.Set+" + a + b" dom0 name personal\0" + p, BYTES, BYTES),
)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(REQUESTS)
def test_a_stranger_never_stops_qubesd(halted: World, request_bytes: bytes) -> None:
    answer = halted.raw(request_bytes)
    assert answer == b"" or answer[:2] in (b"0\0", b"2\0")
    assert halted.raw(b"admin.vm.CurrentState+ dom0 name dom0\0").startswith(b"0\0")
