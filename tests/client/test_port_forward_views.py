# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""qvm-port-forward as its user meets it: the commands that look, their tables and their JSON."""

import json
import shlex
import subprocess
import sys
from typing import Any

import pytest

from portfwd.client.adminapi import ApiError, EmptyAnswerError
from portfwd.client.text.terminal import Cell, clean, table, wants_colour
from portfwd.client.typed.arguments import make_parser
from tests.client.conftest import Run
from tests.client.dom0 import CONNECTION, Dom0

WEB = "action=forward forwardtype=external proto=tcp srcports=443-443 dstports=8443-8443"
DNS = "action=forward forwardtype=internal srcports=53-53 dstports=53-53"

TABLE = """\
QUBE      NO  SERVICE       ENTRANCE          TARGET  CLIENTS                LEFT    STATE                            TRAFFIC  CONN  COMMENT
personal  f0  444:8444/tcp  192.168.1.10:444  8444    192.168.1.20           reboot  pending (sys-firewall: written)  4.7kB    1     -
work      f0  443:8443/tcp  192.168.1.10:443  8443    neighbours             2h05m   pending (sys-firewall: written)  4.7kB    1     web
work      f1  53            :53               53      neighbours (internal)  -       paused                           -        -     -
"""  # noqa: E501 - a line is a line

pytestmark = pytest.mark.usefixtures("utc")


class TestList:
    @pytest.mark.usefixtures("clock")
    def test_a_line_for_each_forward_of_all_qubes(self, dom0: Dom0, tool: Run) -> None:
        dom0.forwards["work"] = f"{WEB} expire=1800007500 comment=web\n{DNS} enabled=no\n"
        dom0.forwards["personal"] = f"{WEB.replace('443', '444')} srchost=192.168.1.20/32 expire=reboot\n"
        dom0.states["sys-firewall"] = "written"
        code, out, err = tool("list")
        assert (code, err) == (0, "")
        assert out == TABLE
        assert len(dom0.log) == 1

    @pytest.mark.parametrize("words", ["list", "show work", "list work --json"])
    def test_f2_what_the_entrance_leaves_out_is_told_once(self, dom0: Dom0, tool: Run, words: str) -> None:
        dom0.forwards["work"] = f"{WEB}\n{WEB.replace('443', '444')}\n" if words == "list" else f"{WEB}\n"
        dom0.uplinks += " text=nothing comes in by over0: its kind is vxlan"
        code, out, err = tool(*words.split())
        if "--json" in words:
            assert '"note": "nothing comes in by over0: its kind is vxlan"' in out
        else:
            assert (code, err) == (0, "Note: sys-net says that nothing comes in by over0: its kind is vxlan\n")

    def test_qube_by_qube_where_dom0_does_not_answer_for_all(self, dom0: Dom0, tool: Run) -> None:
        dom0.whole = False
        dom0.forwards["work"] = f"{WEB}\n"
        assert tool("list").out.splitlines()[1].startswith("work")

    def test_one_qube_that_cannot_be_asked_hides_no_other(
        self, dom0: Dom0, tool: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        dom0.whole = False
        dom0.forwards["work"] = f"{WEB}\n"
        status = dom0.status
        monkeypatch.setattr(dom0, "status", lambda name: "\x1b]0;owned\x07" if name == "personal" else status(name))
        code, out, err = tool("list")
        assert code == 1
        assert "192.168.1.10:443" in out
        assert err.startswith("Error: personal: ")

    def test_f26_one_qube_that_gets_no_answer_hides_no_other(
        self, dom0: Dom0, tool: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As qubesd of R4.3 answers what its policy does not permit: with nothing."""
        dom0.whole = False
        dom0.forwards["work"] = f"{WEB}\n"
        status = dom0.status

        def some(name: str) -> str:
            if name == "personal":
                raise EmptyAnswerError
            return status(name)

        monkeypatch.setattr(dom0, "status", some)
        code, out, err = tool("list")
        assert (code, err) == (1, "Error: personal: dom0 does not answer\n")
        assert "192.168.1.10:443" in out
        told = json.loads(tool("list", "--json").out)
        assert told["not_told"] == [{"qube": "personal", "reason": "dom0 does not answer"}]
        assert len(told["forwards"]) == 1

    def test_only_the_qubes_that_are_named(self, dom0: Dom0, tool: Run) -> None:
        dom0.forwards = {"work": f"{WEB}\n", "personal": f"{DNS}\n"}
        assert "work" not in tool("list", "personal").out
        assert tool("list", "nosuch").code == 1
        assert tool("list", "no/such").code == 2

    def test_nothing_to_list(self, tool: Run) -> None:
        assert tool("list") == (0, "No forwards.\n", "")

    def test_dom0_without_the_extension(self, dom0: Dom0, tool: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        call = dom0.call

        def stock(dest: str, method: str, arg: str = "", payload: bytes = b"") -> bytes:
            if arg:
                raise ApiError("ProtocolError", "unexpected argument")
            return call(dest, method, arg, payload)

        monkeypatch.setattr(dom0, "call", stock)
        code, _, err = tool("list")
        assert code == 1
        assert "dom0 has no port forwarding" in err


class TestShow:
    @pytest.fixture(autouse=True)
    def one(self, dom0: Dom0) -> None:
        dom0.forwards["work"] = f"{WEB}\n"
        rule = dom0.status("work").split()[1]
        dom0.connections = f"{rule} {CONNECTION}\nrule=0123456789abcdef {CONNECTION}\nmore=7\n"

    def test_hop_by_hop(self, tool: Run) -> None:
        code, out, err = tool("show", "work", "443")
        assert (code, err) == (0, "")
        assert out.splitlines()[0] == "LAN hosts can reach work's port 8443 at tcp 192.168.1.10:443"
        hops = [line.split() for line in out.splitlines() if " v4 " in line]
        assert [hop[0] for hop in hops] == ["sys-net", "sys-firewall", "work"]
        assert "12 connections so far, the last 3s ago" in out
        assert "server listens, 1 open, 9 packets, 4.7kB" in out
        assert out.endswith("\nOpen connections:\n  tcp 192.168.1.20:50123 to port 8443\n  and 7 more\n")

    def test_the_only_forward_needs_no_name(self, dom0: Dom0, tool: Run) -> None:
        assert tool("show", "work").code == 0
        dom0.forwards["work"] += f"{DNS}\n"
        code, _, err = tool("show", "work")
        assert (code, "work has 2 forwards; say which one" in err) == (2, True)


class TestPlan:
    def test_the_present_in_sentences_with_elements(self, dom0: Dom0, tool: Run) -> None:
        dom0.forwards["work"] = f"{WEB}\n"
        dom0.elements = "hop=sys-net element=up-to { tcp . 443 : 10.137.0.6 . 443 }\nhop=work elements=unknown\n"
        assert tool("plan", "work") == (
            0,
            "work's port 8443 at tcp port 443 of sys-net:\n"
            "    sys-net: hands IPv4 tcp port 443 that comes in by its uplink from its neighbours to 10.137.0.6:443\n"
            "    sys-firewall: hands IPv4 tcp port 443 that its net qube hands on to 10.137.0.10:8443\n"
            "    work: lets in IPv4 tcp port 8443\n"
            "nft elements of sys-net:\n"
            "    up-to { tcp . 443 : 10.137.0.6 . 443 }\n"
            "nft elements of work:\n"
            "    not known: its agent does not answer\n",
            "",
        )

    @pytest.mark.parametrize(
        ("words", "text"),
        [
            ("add 80/tcp", "work's port 80 at tcp port 80 of sys-net:"),
            ("edit 443 --anyone", "Every hop would forget work's port 8443"),
            ("edit 443 --for 1h", "work: lets in IPv4 tcp port 8443"),
            ("remove f0", "Every hop would forget work's port 8443 at tcp port 443"),
            ("pause 443", "Every hop would forget work's port 8443"),
        ],
    )
    def test_a_change_is_shown_and_not_made(self, dom0: Dom0, tool: Run, words: str, text: str) -> None:
        dom0.forwards["work"] = f"{WEB}\n"
        code, out, err = tool("plan", "work", *words.split())
        assert (code, err) == (0, "")
        assert text in out
        assert out.endswith("Nothing has been changed.\n")
        assert dom0.forwards["work"] == f"{WEB}\n"
        assert not [call for call in dom0.log if ".Set" in call[0]]

    def test_a_problem_is_told(self, dom0: Dom0, tool: Run) -> None:
        dom0.states["sys-net"] = "problem reason=halted text=x"
        out = tool("plan", "work", "add", "80").out
        assert out.startswith("work's port 80 is not open: sys-net is not running; start sys-net")


class TestCheck:
    GOOD = "hop=sys-net cause=uplink result=ok text=it is up\nverdict=open\n"
    BAD = (
        "hop=sys-net cause=probe result=ok text=the probe passed\nhop=sys-net cause=double-nat result=hint\n"
        "hop=work cause=no-server result=bad text=nothing listens \x1b[31m\nverdict=work:no-server\n"
    )

    @pytest.fixture(autouse=True)
    def one(self, dom0: Dom0) -> None:
        dom0.forwards["work"] = f"{WEB}\n"

    def test_a_fault_is_named_and_is_an_exit_code(self, dom0: Dom0, tool: Run) -> None:
        dom0.check = self.BAD
        assert tool("check", "work", "443") == (
            4,
            "work's port 8443 at tcp 192.168.1.10:443:\n"
            "  ok   sys-net: the probe passed\n"
            "  hint sys-net: double-nat\n"
            "  BAD  work: nothing listens ?[31m\n"
            "  work is where it ends (no-server).\n",
            "",
        )

    def test_the_probe_comes_from_the_client_who_could_not_connect(self, dom0: Dom0, tool: Run) -> None:
        dom0.check = self.GOOD
        assert tool("check", "work", "443", "--from", "192.168.1.20").code == 0
        method, _, payload = dom0.log[-1]
        assert method == "admin.vm.firewall.Set+forward.check", "it sends packets"
        assert payload.split(" ")[1:] == ["client=192.168.1.20\n"]
        code, _, err = tool("check", "work", "443", "--from", "laptop")
        assert (code, err) == (2, "qvm-port-forward check: error: --from: 'laptop' is not an address\n")

    def test_no_fault(self, dom0: Dom0, tool: Run) -> None:
        dom0.check = self.GOOD
        code, out, _ = tool("check", "work")
        assert (code, out.splitlines()[-1]) == (0, "  No fault was found.")

    def test_what_could_not_be_found_out_is_not_taken_for_good(self, dom0: Dom0, tool: Run) -> None:
        dom0.check = "hop=sys-net cause=not-probed result=unknown text=no answer\n"
        code, out, _ = tool("check", "work")
        assert (code, out.splitlines()[-1]) == (3, "  Whether packets pass could not be found out.")
        assert json.loads(tool("check", "work", "--json").out)["checked"][0]["opens"] is None

    def test_without_a_verdict_the_first_bad_line_counts(self, dom0: Dom0, tool: Run) -> None:
        dom0.check = self.BAD.rsplit("verdict", 1)[0]
        assert tool("check", "work").code == 4

    @pytest.mark.parametrize("text", ["", "nonsense\n", "hop=work check=x result=fine\n", "verdict=work:\x1b[m\n"])
    def test_a_check_that_is_not_understood_is_not_passed(self, dom0: Dom0, tool: Run, text: str) -> None:
        dom0.check = text
        assert tool("check", "work").code == 1


class TestJson:
    def read(self, tool: Run, *words: str) -> Any:
        code, out, err = tool(*words, "--json")
        assert err == ""
        answer = json.loads(out)
        assert (answer["version"], answer["kind"]) == (1, words[0])
        return code, answer

    def test_list(self, dom0: Dom0, tool: Run) -> None:
        assert self.read(tool, "list") == (0, {"version": 1, "kind": "list", "forwards": [], "not_told": []})
        dom0.forwards["work"] = f"{WEB} expire=reboot comment=web\n"
        _, answer = self.read(tool, "list")
        (forward,) = answer["forwards"]
        assert {key: forward[key] for key in ("qube", "number", "type", "protocols", "expire", "comment", "state")} == {
            "qube": "work",
            "number": 0,
            "type": "external",
            "protocols": ["tcp"],
            "expire": "reboot",
            "comment": "web",
            "state": "open",
        }
        assert forward["entrance"] == {
            "qube": "sys-net",
            "addresses": ["192.168.1.10"],
            "ports": {"first": 443, "last": 443},
        }
        assert [hop["hop"] for hop in forward["hops"]] == ["sys-net", "sys-firewall", "work"]

    def test_show_and_its_fault(self, dom0: Dom0, tool: Run) -> None:
        dom0.forwards["work"] = f"{WEB}\n"
        dom0.listening = "local"
        dom0.connections = f"{dom0.status('work').split()[1]} {CONNECTION}\n"
        _, answer = self.read(tool, "show", "work", "f0")
        assert answer["forward"]["fault"]["reason"] == "local-only"
        assert answer["connections"][0]["client"] == "192.168.1.20"

    def test_check(self, dom0: Dom0, tool: Run) -> None:
        dom0.forwards["work"] = f"{WEB}\n"
        dom0.check = TestCheck.BAD
        code, answer = self.read(tool, "check", "work")
        assert code == 4
        fault = {"hop": "work", "check": "no-server", "result": "bad", "text": "nothing listens \x1b[31m"}
        assert answer["checked"][0]["fault"] == fault


def test_every_command_has_a_help_with_examples(tool: Run) -> None:
    for command in ("list", "add", "remove", "edit", "pause", "resume", "show", "kill", "plan", "check"):
        code, out, _ = tool(command, "--help")
        assert code == 0
        assert f"examples:\n  qvm-port-forward {command}" in out
    assert "exit codes: 0 done" in tool("--help").out


def test_every_example_of_the_help_can_be_typed(tool: Run) -> None:
    for command in ("list", "add", "remove", "edit", "pause", "resume", "show", "kill", "plan", "check"):
        _, _, examples = tool(command, "--help").out.partition("examples:\n")
        for line in examples.splitlines():
            words = shlex.split(line)[1:]
            assert make_parser().parse_args(words).command == command


ALONE = """
import sys
from portfwd.client.commands.qvm_port_forward import main

class Nothing:
    def call(self, *words):
        return b""

assert main([{command}], Nothing()) == 0
print(*sorted(set(sys.modules) & {{"json", "subprocess", "difflib", "tempfile", "portfwd.client.commands.changing"}}))
"""


def test_a_command_loads_no_code_of_others() -> None:
    """Each start pays for what it imports."""
    loaded = []
    for command in ('"list"', '"list", "--json"'):
        argv = [sys.executable, "-I", "-c", ALONE.format(command=command)]
        loaded.append(subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    assert loaded == ["", "json"]


class Screen:
    def __init__(self, terminal: bool) -> None:
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


@pytest.mark.parametrize(
    ("terminal", "environ", "colour"),
    [
        (True, {"TERM": "xterm"}, True),
        (True, {"TERM": "xterm", "NO_COLOR": ""}, True),
        (True, {"TERM": "xterm", "NO_COLOR": "1"}, False),
        (True, {"TERM": "dumb"}, False),
        (True, {}, False),
        (False, {"TERM": "xterm"}, False),
    ],
)
def test_colours_only_where_they_are_wanted(terminal: bool, environ: dict[str, str], colour: bool) -> None:
    assert wants_colour(Screen(terminal), environ) is colour  # type: ignore[arg-type]


ROWS = [[Cell("work"), Cell("x" * 60, short=True), Cell("open", "green")]]


def test_a_narrow_terminal_cuts_only_what_may_be_cut() -> None:
    for width in (30, 50, 79):
        lines = table(("QUBE", "COMMENT", "STATE"), ROWS, colour=False, width=width).splitlines()
        assert max(map(len, lines)) <= width
        assert lines[1].startswith("work  x")
        assert lines[1].endswith("..  open" if width < 70 else "x  open")
    assert "x" * 60 in table(("A", "B", "C"), ROWS, colour=False, width=None)


def test_a_narrow_terminal_gets_the_columns_that_matter() -> None:
    head = ("QUBE", "EMPTY", "SPARE", "STATE")
    rows = [[Cell("work"), Cell("-"), Cell("y" * 9), Cell("open")]]
    heads = [
        table(head, rows, colour=False, width=width, spare=["SPARE"]).split("\n")[0] for width in (None, 40, 26, 15)
    ]
    words = [line.split() for line in heads]
    assert words == [list(head), list(head), ["QUBE", "SPARE", "STATE"], ["QUBE", "STATE"]]


def test_colours_are_the_only_control_characters() -> None:
    rows = [[Cell("\x1b[2J\u202ework\n", "red")]]
    text = table(("QUBE",), rows, colour=True, width=None)
    assert text == "\x1b[1mQUBE\x1b[0m\n\x1b[31m?[2J?work?\x1b[0m\n"
    assert clean("\x07\t\x9b31m") == "???31m"
