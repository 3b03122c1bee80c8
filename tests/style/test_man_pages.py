# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""man/ is made from the parsers of the tools, so a page never tells of another program.

After a change run REGENERATE=1 ./run test tests/style and commit the pages.
"""

import argparse
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from portfwd.client.commands import qvm_firewall
from portfwd.client.commands.codes import Exit
from portfwd.client.typed.arguments import _EXAMPLES, make_parser
from portfwd.gui import app
from tests.style.man_pages import Page, make

MAN = Path(__file__).parents[2] / "man"
FORWARD_PAGE = Page(
    name="qvm-port-forward",
    purpose="see and steer the port forwards of all qubes",
    description=(
        "Makes a port of the network lead to a port of a qube, through all the net qubes between, and tells how each "
        "forward fares. Runs in dom0, or in a management qube that the policy of dom0 lets do so. qvm-firewall(1pf) is "
        "the exact tool beside it; both change the same lists and number the forwards of a qube alike.",
        "Colours are used on a terminal, unless NO_COLOR is set or TERM is dumb; nothing is told by colour alone.",
    ),
    words={
        "WORDS": {
            "SERVICE": "ENTRANCE[:TARGET][/tcp|/udp]: the port where clients come in, and that of the qube if it is "
            "another. Ports, ranges of equal length, or names of the services database. Without protocol both; a name "
            "has its own.",
            "FORWARD": "a number (f0), a service (443, 443:8443/tcp, ssh), or the id that show prints.",
            "CLIENTS": "an address, a prefix, a host name, or neighbours (the default): the networks of the uplinks, "
            "or for --internal the qubes behind the same net qube. Everyone else takes --anyone.",
            "TIME": "45s, 30m, 2h, 1d12h, 2w.",
            "END": "reboot (of the computer), shutdown (of QUBE), a local time, a date, a date and time, or never.",
        },
        "STATES": {
            "open": "every hop lets clients pass.",
            "no-server": "so it is, but nothing listens on the port in the qube.",
            "local-only": "so it is, but the server listens on a loopback address only.",
            "server-unknown": "so it is, but the qube does not tell whether anything listens.",
            "pending": "a hop has not acknowledged, has no interface to the next qube, or forwards nothing yet.",
            "partly": "open for one protocol or IP version, not for another.",
            "paused": "kept, and shut.",
            "problem": "shut: the first hop in the way, and why.",
            "unclear": "a hop answers what dom0 does not understand.",
            "unknown": "it was open, and a hop has not answered since its last change: it may be open or not.",
        },
    },
    exits={
        0: "done; after add, edit and resume: every hop lets clients pass, or --no-wait was given and it is stored.",
        1: "refused or failed, and nothing has changed (kill: a qube that does not answer may have ended it).",
        2: "wrong usage, or no such qube or forward; nothing has changed.",
        3: "stored, but not open on every hop, or not known to be; removed or paused, but some hop has not confirmed "
        "it; check: that could not be found out.",
        4: "check found what is in the way.",
        5: "a change was sent and no answer came: it may have been made.",
        130: "interrupted; a change may have been made, and what stands is said: nothing is undone.",
    },
    examples=[f"qvm-port-forward {line}" for text in _EXAMPLES.values() for line in text.splitlines()],
    see=".BR qvm\\-firewall (1pf)",
)
FIREWALL_PAGE = Page(
    name="qvm-firewall",
    purpose="what a qube may reach, and which ports of the network lead to it",
    description=(
        "Without a command, lists. The ordinary rules are those of the tool of the same name in Qubes OS: the first "
        "that matches decides what the qube may reach. Forwards (action=forward) stand below them with numbers of "
        "their own, f0, f1, ..., and let others reach the qube.",
        "A rule is given as words KEY=VALUE or by position: ACTION [DSTHOST [PROTO [DSTPORTS|ICMPTYPE]]], or forward "
        "FORWARDTYPE PROTO SRCPORTS [DSTPORTS [SRCHOST]].",
        "This page is of the tool as it is where Qubes Port Forwarding is installed; qvm-firewall(1) is of the one in "
        "Qubes OS, which it replaces there. A reset concerns the ordinary rules alone, as there. What it says of "
        "forwards, such as how many stay, goes to standard error, and with --quiet nowhere; that a port may still be "
        "open is always said.",
    ),
    words={
        "RULES": {
            "action": "accept, drop or forward.",
            "dsthost, dst4, dst6": "what the qube may reach: an address, a prefix or a host name. Not in a forward: "
            "its target is always the qube.",
            "proto": "icmp, tcp or udp; of a forward tcp or udp, both when omitted.",
            "dstports": "a port or range; of a forward those of the qube, the same as srcports when omitted.",
            "icmptype": "a number, such as 8 for echo requests.",
            "specialtarget": "dns: the name servers of the qube.",
            "forwardtype": "external: reachable from outside the outermost net qube. internal: reachable from the "
            "qubes, and from the VPN tunnel, that end in the net qube of VMNAME.",
            "srcports": "the port or range at the entrance of a forward.",
            "srchost, src4, src6": "who may connect: an address, a prefix, a host name, or any for everyone. When "
            "omitted only the neighbours.",
            "enabled": "no keeps a forward and shuts its port.",
            "expire": "seconds since 1970, or from now: +300, +30m, +2h, +7d. Of a forward also reboot (of the "
            "computer) and shutdown (of VMNAME).",
            "comment": "free text to the end of the line.",
        }
    },
    exits={
        0: "done.",
        1: "qubesd refused or did not answer.",
        2: "wrong usage, or a rule that does not exist.",
        3: "forwards were removed, but some hop has not confirmed that they are shut; the text names it.",
        130: "interrupted; a change may have been made.",
    },
    examples=[
        "qvm-firewall work",
        "qvm-firewall work add --before 0 drop dsthost=192.168.0.0/16",
        "qvm-firewall work add action=forward forwardtype=external proto=tcp srcports=443 dstports=8443 expire=+2h",
        "qvm-firewall work del --rule-no f0",
    ],
    see=".BR qvm\\-port\\-forward (1),\n.BR qvm\\-firewall (1)",
    section="1pf",
)
WINDOWS_PAGE = Page(
    name="qubes-port-forwarding",
    purpose="windows that show and change which ports of which qubes can be reached",
    description=(
        "Without QUBE shows the forwards of all qubes, how each fares hop by hop, and the network as a picture; with "
        "QUBE what that qube may reach, and its forwards. The same forwards as those of qvm-port-forward(1). Runs "
        "in dom0, or in a GUI domain that the policy of dom0 lets do so.",
        "Where the desktop has a tray, the dashboard leaves an icon there when it is closed.",
    ),
    words={},
    exits={0: "the last window was closed, or the program was told to end.", 2: "wrong usage."},
    examples=["qubes-port-forwarding", "qubes-port-forwarding work", "qubes-port-forwarding --hidden"],
    see=".BR qvm\\-port\\-forward (1),\n.BR qvm\\-firewall (1pf)",
)
PARSERS = {
    "qvm-port-forward": make_parser,
    "qvm-firewall": qvm_firewall._parser,
    "qubes-port-forwarding": app.make_parser,
}


@pytest.mark.parametrize("page", [FORWARD_PAGE, FIREWALL_PAGE, WINDOWS_PAGE], ids=lambda page: page.name)
class TestPage:
    def test_it_is_that_of_the_program(self, page: Page) -> None:
        made = make(page, PARSERS[page.name]())
        file = MAN / page.file
        if os.environ.get("REGENERATE"):
            MAN.mkdir(exist_ok=True)
            file.write_text(made)
        assert file.read_text() == made

    def test_it_names_every_command_and_option(self, page: Page) -> None:
        text = (MAN / page.file).read_text().replace("\\-", "-")
        for option in options(PARSERS[page.name]()):
            assert f"\\fB{option}\\fR" in text, option

    @pytest.mark.skipif(shutil.which("groff") is None, reason="no groff")
    def test_it_can_be_formatted(self, page: Page) -> None:
        argv = ["groff", "-man", "-ww", "-Tutf8", "-z", str(MAN / page.file)]
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
        assert done.stderr == ""


def test_every_exit_code_is_told() -> None:
    assert set(FORWARD_PAGE.exits) == {*map(int, Exit), 130}


def options(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices
            for command in action.choices.values():
                yield from options(command)
        elif action.help != argparse.SUPPRESS and action.dest not in ("help", "version"):
            yield from action.option_strings
