# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The tool against the laboratory's qubesd with the real extension: what the two say to each other is right."""

import importlib
import io
import logging
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from portfwd.api.forwards import Token
from portfwd.client.adminapi import AdminClient, ApiError, SocketTransport
from portfwd.client.commands.qvm_firewall import main
from portfwd.client.commands.qvm_port_forward import main as port_forward
from portfwd.client.stock import restoring
from portfwd.wire.values import QubeName
from tests.client.test_hook import STAND_IN, rule
from tests.qubesd.world import World, chain

pytestmark = pytest.mark.slow

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
        tool(qube, "reset", "--forwards")


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


def test_f14_reset_keeps_the_forwards_until_it_is_told_to_remove_them(tool: Tool) -> None:
    tool("work", "add", *WEB.split())
    tool("work", "add", "--before", "0", "drop")
    hint = "'qvm-firewall work reset --forwards' removes it"
    assert tool("work", "reset") == (0, "", f"Note: 1 forward of work stays as it was; {hint}\n")
    assert tool("--raw", "work") == (0, f"action=accept\n{WEB}\n", "")
    assert tool("work", "reset", "--forwards") == (0, "", "Note: 1 forward of work is removed\n")
    assert tool("--raw", "work") == (0, "action=accept\n", "")


def test_a_list_that_is_out_of_date_is_refused(socket: Path, tool: Tool) -> None:
    tool("work", "add", *WEB.split())
    with pytest.raises(ApiError, match="changed by someone else"):
        AdminClient(SocketTransport(socket)).set_forwards(QubeName("work"), [], Token("0" * 32))
    assert WEB in tool("--raw", "work")[1]


class Restored:
    """A qube whose backup is being restored, as the stock's client has it: its calls reach the real extension."""

    def __init__(self, transport: SocketTransport, name: str) -> None:
        self._transport, self._name = transport, name
        self.rules: list[dict[str, str]] = []
        self.log = logging.getLogger("restored")

    def qubesd_call(self, dest: str | None, method: str, arg: str, payload: bytes) -> bytes:
        try:
            return self._transport.call(dest or self._name, method, arg, payload)
        except ApiError as error:
            # As qubesadmin.base does.
            known = importlib.import_module("qubesadmin.exc")
            raise getattr(known, error.exception, known.QubesException)(str(error)) from None


@pytest.fixture
def core3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(STAND_IN))
    module = importlib.import_module("qubesadmin.backup.core3")
    restoring.extend(module)
    yield module
    for name in [name for name in sys.modules if name.partition(".")[0] == "qubesadmin"]:
        del sys.modules[name]


def test_f12_a_restore_brings_back_every_forward_that_nobody_else_has_taken(
    socket: Path, tool: Tool, core3: Any, caplog: pytest.LogCaptureFixture
) -> None:
    tool("work", "add", *WEB.split())
    udp = "action=forward forwardtype=external proto=udp srcports=443-443 dstports=8443-8443"
    ssh = "action=forward forwardtype=external proto=tcp srcports=22-22 dstports=22-22 srchost=192.168.1.20/32"
    text = f'<firewall version="2"><rules/><forwards>{rule(WEB)}{rule(udp)}{rule(ssh)}</forwards></firewall>'
    core3.Core3VM().handle_firewall_xml(Restored(SocketTransport(socket), "personal"), io.BytesIO(text.encode()))
    assert tool("--raw", "personal")[1] == f"action=accept\n{udp}\n{ssh}\n"
    assert WEB in tool("--raw", "work")[1]
    (line,) = caplog.messages
    assert line.startswith(f"A port forward of the backup is not restored: {WEB}: ")
    assert "'443' is taken" in line
    assert "'work'" in line


@pytest.fixture
def damaged() -> Iterator[tuple[World, Path]]:
    """The second forward of `work` is unreadable; `personal` has one that is sound."""
    world = World(chain(autostart=False))
    world.api("work", "admin.vm.firewall.Set+forward", f"{WEB}\n{WEB.replace('443-443', '444-444', 1)}\n")
    world.api("personal", "admin.vm.firewall.Set+forward", f"{WEB.replace('443-443', '445-445', 1)}\n")
    world.stop()
    path = world.firewall_file("work")
    path.write_text(path.read_text().replace(">444<", ">99999<"))
    world.start()
    yield world, path
    world.close()


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (main, "work list"),
        (main, "--raw work"),
        (main, "work add action=forward forwardtype=external proto=tcp srcports=80"),
        (main, "work del --rule-no f0"),
        (main, "work add drop 1.2.3.4"),
        (port_forward, "list"),
        (port_forward, "list work"),
        (port_forward, "list --json"),
        (port_forward, "show work 443"),
        (port_forward, "add work 80/tcp"),
        (port_forward, "remove work 443"),
        (port_forward, "edit work 443 --for 2h"),
        (port_forward, "pause work 443"),
        (port_forward, "resume work 443"),
        (port_forward, "plan work add 80/tcp"),
        (port_forward, "check work"),
    ],
)
def test_f10_every_command_names_file_line_and_reason(
    damaged: tuple[World, Path], capsys: pytest.CaptureFixture[str], program: Callable[..., int], words: str
) -> None:
    """Mistake: "No forwards.", exit code 0."""
    world, path = damaged
    before = path.read_text()
    assert program(words.split(), SocketTransport(world.socket)) == 1
    out, error = capsys.readouterr()
    line = before[: before.index("99999")].count("\n") + 1
    assert "firewall.xml" in error
    (number,) = re.findall(r"line (\d+), forward 1: ", error)
    assert 0 < line - int(number) < 12, "the line of that rule"
    assert "99999" in error
    assert "qvm-firewall work reset" in error
    assert "No forwards" not in out
    if words in ("list", "list --json"):
        assert "445" in out, "those of others are listed"
    assert path.read_text() == before


def test_f10_a_reload_reads_a_file_that_was_mended_by_hand(
    damaged: tuple[World, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    world, path = damaged
    assert main(["--reload", "--raw", "work"], SocketTransport(world.socket)) == 1
    assert "99999" in capsys.readouterr().err
    path.write_text(path.read_text().replace("99999", "446"))
    assert main(["--reload", "--raw", "work"], SocketTransport(world.socket)) == 0
    out, error = capsys.readouterr()
    assert out == f"action=accept\n{WEB}\n{WEB.replace('443-443', '446-446', 1)}\n"
    assert error == ""


def test_f10_reset_works_and_loses_nothing(damaged: tuple[World, Path], capsys: pytest.CaptureFixture[str]) -> None:
    world, path = damaged
    before = path.read_text()
    assert main(["work", "reset"], SocketTransport(world.socket)) == 0
    note = capsys.readouterr().err
    kept = Path(note.rsplit(" ", 1)[1].strip())
    assert kept.parent == path.parent
    assert kept.read_text() == before
    assert main(["--raw", "work"], SocketTransport(world.socket)) == 0
    assert capsys.readouterr().out == "action=accept\n"
    assert "99999" not in path.read_text()
