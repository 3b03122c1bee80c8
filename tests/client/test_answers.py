# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Answers of dom0 beside the status: whatever they are, they are read or refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portfwd.api.connections import parse_connections, parse_peer
from portfwd.api.diagnosis import parse_check
from portfwd.api.status_lines import parse_plan
from portfwd.api.words import CheckResult
from portfwd.model.forward import parse_forward
from portfwd.wire.errors import RefusedError
from portfwd.wire.values import QubeName
from tests.client.dom0 import CONNECTION, Dom0

RULE = parse_forward("action=forward forwardtype=external proto=tcp srcports=443 dstports=8443")
WORK = QubeName("work")
ONE = f"rule={RULE.id(WORK)} {CONNECTION}\n"
SIX = ONE.replace("family=4", "family=6").replace("192.168.1.20", "2001:db8:1::14")
CHECKED = "hop=sys-net check=probe result=ok text=passed\nhop=work cause=no-server result=bad\nverdict=work:no-server\n"
PLANNED = Dom0(forwards={"work": f"{RULE}\n"}).call("work", "admin.vm.firewall.Get", "forward.plan").decode()


def test_connections_are_clients_with_their_ports() -> None:
    found = parse_connections(f"{ONE}{SIX}more=3\n")
    assert [connection.peer for connection in found.told] == ["192.168.1.20:50123", "[2001:db8:1::14]:50123"]
    assert str(found.told[0].connection) == CONNECTION
    assert found.more == 3
    assert [parse_peer(c.peer) for c in found.told] == [(c.connection.client, c.connection.port) for c in found.told]


@pytest.mark.parametrize(
    "text",
    [
        ONE.replace("family=4", "family=6"),
        ONE.replace("port=50123", "port=65536"),
        ONE.replace("port=50123", "port=50123 port=1"),
        ONE.replace("proto=tcp", "proto=icmp"),
        ONE.replace("to=8443", ""),
        ONE.replace("client=", "client=fe80::1%"),
        "more=-1\n",
        "\x1b[2J\n",
        "\n",
    ],
)
def test_a_line_that_is_no_connection_is_refused(text: str) -> None:
    with pytest.raises(RefusedError):
        parse_connections(text)


def test_a_check_has_findings_and_the_one_that_matters() -> None:
    diagnosis = parse_check(CHECKED)
    assert [(f.hop, f.check, f.result) for f in diagnosis.findings] == [
        ("sys-net", "probe", CheckResult.OK),
        ("work", "no-server", CheckResult.BAD),
    ]
    assert diagnosis.fault == diagnosis.findings[1]
    assert parse_check("hop=work check=x result=bad\nverdict=open\n").fault is None
    elsewhere = parse_check("verdict=sys-net:no-route\n").fault
    assert elsewhere is not None
    assert (elsewhere.hop, elsewhere.check) == ("sys-net", "no-route")


@given(st.sampled_from([ONE, SIX, CHECKED, PLANNED]), st.integers(0, 200), st.integers(0, 40), st.text(max_size=20))
def test_only_refusals_come_out(text: str, at: int, gone: int, put: str) -> None:
    broken = text[:at] + put + text[at + gone :]
    for read in (parse_connections, parse_check, lambda t: parse_plan(t, WORK, [RULE])):
        try:
            read(broken)
        except RefusedError as error:
            assert str(error).isprintable()
