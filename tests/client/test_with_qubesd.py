# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The tool against the laboratory's qubesd with the real extension: what the two say to each other is right."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from portfwd.client.adminapi import AdminClient, ApiError, SocketTransport
from portfwd.client.qvm_firewall import main
from portfwd.model.forward import Token
from portfwd.wire.values import QubeName
from tests.qubesd.world import World, chain

WEB = "action=forward forwardtype=external proto=tcp srcports=443-443 dstports=8443-8443"
Tool = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def socket() -> Iterator[Path]:
    world = World(chain(autostart=False))
    yield world.socket
    world.close()


@pytest.fixture
def tool(socket: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Tool]:
    def tool(*words: str) -> tuple[int, str, str]:
        code = main(words, SocketTransport(socket))
        return (code, *capsys.readouterr())

    yield tool
    for qube in ("work", "personal"):
        tool(qube, "reset")


def test_a_forward_is_added_listed_and_removed(tool: Tool) -> None:
    note = "Note: the forward is stored but opens nothing yet: 'sys-net' is not running\n"
    assert tool("work", "add", *WEB.split(), "comment=web server") == (0, "", note)
    assert tool("work", "add", "drop", "1.2.3.4") == (0, "", "")
    listed = f"action=accept\naction=drop dst4=1.2.3.4/32\n{WEB} comment=web server\n"
    assert tool("--raw", "work") == (0, listed, "")
    assert tool("work", "del", "forward", "external", "tcp", "443", "8443") == (0, "", "")
    assert tool("--raw", "work") == (0, "action=accept\naction=drop dst4=1.2.3.4/32\n", "")


def test_a_port_that_is_taken_is_refused_with_its_owner(tool: Tool) -> None:
    tool("work", "add", *WEB.split())
    code, out, error = tool("personal", "add", *WEB.split())
    assert (code, out) == (1, "")
    assert "'443' is taken" in error
    assert "'work'" in error
    assert tool("--raw", "personal") == (0, "action=accept\n", "")


def test_reset_leaves_neither_rules_nor_forwards(tool: Tool) -> None:
    tool("work", "add", *WEB.split())
    tool("work", "add", "--before", "0", "drop")
    assert tool("work", "reset") == (0, "", "")
    assert tool("--raw", "work") == (0, "action=accept\n", "")


def test_a_list_that_is_out_of_date_is_refused(socket: Path, tool: Tool) -> None:
    tool("work", "add", *WEB.split())
    with pytest.raises(ApiError, match="changed by someone else"):
        AdminClient(SocketTransport(socket)).set_forwards(QubeName("work"), [], Token("0" * 32))
    assert WEB in tool("--raw", "work")[1]
