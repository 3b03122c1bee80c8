# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from portfwd.api.forwards import format_forwards, parse_forwards
from portfwd.client.commands import qvm_firewall
from portfwd.model.forward import parse_forward
from portfwd.wire.values import QubeName
from tests.client.conftest import Flavour, Qubesd, Run

WEB = "action=forward forwardtype=external proto=tcp srcports=443-443 dstports=8443-8443"
DNS = "action=forward forwardtype=internal srcports=53-53 dstports=53-53"
LIST = """\
NO  ACTION  HOST        PROTOCOL  PORT(S)  SPECIAL TARGET  ICMP TYPE  EXPIRE  COMMENT
0   drop    -           icmp      -        -               8          +499s   my comment, ok
1   accept  1.2.3.4/32  tcp       443      -               -          -       -
"""
RULES = (
    "action=drop expire=1800000499 proto=icmp icmptype=8 comment=my comment, ok",
    "action=accept dst4=1.2.3.4/32 proto=tcp dstports=443-443",
)


@pytest.fixture(autouse=True)
def frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1_800_000_000.0)


@pytest.mark.parametrize("flavour", Flavour)
@pytest.mark.parametrize("words", [["work"], ["work", "list"], ["-v", "work", "-q"], ["wor?"]])
def test_the_list_is_that_of_the_stock_tool_while_there_are_no_forwards(
    qubesd: Qubesd, run: Run, flavour: Flavour, words: list[str]
) -> None:
    qubesd.flavour = flavour
    qubesd.rules["work"] = list(RULES)
    assert run(*words) == (0, LIST, "")


def test_forwards_are_listed_below_with_numbers_of_their_own(qubesd: Qubesd, run: Run) -> None:
    qubesd.rules["work"] = list(RULES)
    qubesd.forwards["work"] = (
        f"{WEB} srchost=any comment=web server\n{DNS} enabled=no expire=reboot\n"
        "action=forward forwardtype=external proto=udp srcports=1-3 dstports=9-9 srchost=10.0.0.0/8 expire=1800000060\n"
    )
    assert run("work").out == LIST + (
        "\n"
        "NO  TYPE      PROTOCOL  SRC PORT(S)  DST PORT(S)  SRC HOST    ENABLED  EXPIRE  COMMENT\n"
        "f0  external  tcp       443          8443         any         yes      -       web server\n"
        "f1  internal  tcp+udp   53           53           neighbours  no       reboot  -\n"
        "f2  external  udp       1-3          9            10.0.0.0/8  yes      +60s    -\n"
    )


def test_f6_forwards_that_some_hop_does_not_confirm_to_be_shut_are_told(
    qubesd: Qubesd, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qvm_firewall, "_SHUT_SECONDS", 0.0)
    qubesd.hops = "hop=sys-net internal=no confirmed=no\nhop=work internal=yes confirmed=no\n"
    doubt = "sys-net and work have not confirmed it: the port may stay open until they do"
    note = f"Note: the forward is removed, but {doubt}\n"
    qubesd.forwards["work"] = f"{WEB}\n"
    assert run("work", "del", *WEB.split()) == (3, "", note)
    for quiet in ([], ["-q"]):
        qubesd.forwards["work"] = f"{WEB}\n"
        outcome = run("work", "reset", "--forwards", *quiet)
        assert (outcome.code, outcome.out) == (3, "")
        # It is no mere news that a port may be open.
        assert outcome.err.endswith(note)
    assert run("work", "reset") == (0, "", "")
    qubesd.hops = "hop=sys-net internal=no confirmed=yes\nhop=work internal=yes confirmed=no\n"
    note = note.replace("sys-net and work have", "work has").replace("they do", "it does")
    for forward in (WEB, DNS):
        qubesd.forwards["work"] = f"{forward}\n"
        assert run("work", "del", "--rule-no", "f0") == (3, "", note)


def test_raw_prints_lines_that_can_be_given_back(qubesd: Qubesd, run: Run) -> None:
    qubesd.rules["work"] = list(RULES)
    qubesd.forwards["work"] = f"{WEB}\n"
    assert run("--raw", "work", "list").out.splitlines() == [
        "action=drop proto=icmp icmptype=8 expire=1800000499 comment=my comment, ok",
        "action=accept proto=tcp dst4=1.2.3.4/32 dstports=443-443",
        WEB,
    ]
    assert run("work", "del", *WEB.split()).code == 0
    assert run("work", "add", *WEB.split()).code == 0
    assert qubesd.forwards["work"] == f"{WEB}\n"


@pytest.mark.parametrize(
    ("words", "sent"),
    [
        (["add", "drop", "5.6.7.8"], ["accept", "drop dst4=5.6.7.8/32"]),
        (["add", "--before", "0", "drop", "5.6.7.8"], ["drop dst4=5.6.7.8/32", "accept"]),
        (["add", "drop", "5.6.7.8", "--before", "-1"], ["drop dst4=5.6.7.8/32", "accept"]),
        (["add", "action=drop", "proto=udp", "dstports=1", "comment=a b"], ["accept", "drop {udp}"]),
        (["reset"], ["accept"]),
    ],
)
def test_ordinary_rules_are_written_as_the_stock_tool_writes_them(
    qubesd: Qubesd, run: Run, words: list[str], sent: list[str]
) -> None:
    assert run("work", *words) == (0, "", "")
    udp = "proto=udp dstports=1-1 comment=a b"
    assert qubesd.payloads("admin.vm.firewall.Set+") == ["".join(f"action={line.format(udp=udp)}\n" for line in sent)]


@pytest.mark.parametrize(
    "words", [["--rule-no", "1"], ["--rule-no", "-1"], ["accept", "1.2.3.4", "tcp", "443"], ["drop", "--rule-no", "1"]]
)
def test_ordinary_rules_are_removed_by_number_or_by_text(qubesd: Qubesd, run: Run, words: list[str]) -> None:
    qubesd.rules["work"] = list(RULES)
    assert run("work", "del", *words) == (0, "", "")
    assert qubesd.rules["work"] == [RULES[0]]


def test_a_rule_for_one_family_stays_one_when_another_rule_is_added(qubesd: Qubesd, run: Run) -> None:
    qubesd.rules["work"] = ["action=accept dst4=0.0.0.0/0", "action=drop"]
    run("work", "add", "drop", "1.2.3.4")
    assert qubesd.rules["work"][0] == "action=accept dst4=0.0.0.0/0"


def test_ordinary_edits_leave_the_forwards_alone(qubesd: Qubesd, run: Run) -> None:
    qubesd.forwards["work"] = f"{WEB}\n"
    run("work", "add", "drop")
    run("work", "del", "--rule-no", "0")
    assert qubesd.forwards["work"] == f"{WEB}\n"
    assert not qubesd.payloads("admin.vm.firewall.Set+forward")


@pytest.mark.parametrize("words", [["list"], []])
def test_reload_asks_for_it_after_the_list(qubesd: Qubesd, run: Run, words: list[str]) -> None:
    assert run("-r", "work", *words).code == 0
    assert [service for service, *_ in qubesd.log][-1] == "admin.vm.firewall.Reload+"


@pytest.mark.parametrize(
    "words",
    [WEB.split(), ["forward", "external", "tcp", "443", "8443"], ["action=forward", "external", "tcp", "443", "8443"]],
)
def test_a_forward_is_added_and_removed_by_its_text(qubesd: Qubesd, run: Run, words: list[str]) -> None:
    assert run("work", "add", *words) == (0, "", "")
    assert qubesd.forwards["work"] == f"{WEB}\n"
    assert qubesd.rules["work"] == ["action=accept"]
    assert run("work", "del", *words) == (0, "", "")
    assert qubesd.forwards["work"] == ""


def test_c1_a_forward_that_opens_nothing_yet_is_told(qubesd: Qubesd, run: Run, work: QubeName) -> None:
    rule = parse_forward(WEB).id(work)
    reason = "'sys-net' is not running"
    qubesd.plan = f"rule={rule} hop=sys-net state=problem reason=halted text={reason}\n"
    assert run("work", "add", *WEB.split()) == (
        0,
        "",
        f"Note: the forward is stored but opens nothing yet: {reason}\n",
    )


def test_a_time_from_now_is_sent_as_a_moment(qubesd: Qubesd, run: Run) -> None:
    run("work", "add", "forward", "external", "tcp", "443", "8443", "expire=+2h", "comment=for the afternoon")
    assert qubesd.forwards["work"] == f"{WEB} expire=1800007200 comment=for the afternoon\n"


def test_a_forward_is_found_by_what_it_does(qubesd: Qubesd, run: Run) -> None:
    qubesd.forwards["work"] = f"{DNS}\n{WEB} enabled=no comment=old\n"
    assert run("work", "del", *WEB.split()).code == 0
    assert qubesd.forwards["work"] == f"{DNS}\n"


@pytest.mark.parametrize("before", ["f0", "0"])
def test_a_forward_can_be_added_before_another_and_removed_by_number(qubesd: Qubesd, run: Run, before: str) -> None:
    qubesd.forwards["work"] = f"{WEB}\n"
    assert run("work", "add", "--before", before, *DNS.split()).code == 0
    assert qubesd.forwards["work"] == f"{DNS}\n{WEB}\n"
    assert run("work", "del", "--rule-no", "f1").code == 0
    assert qubesd.forwards["work"] == f"{DNS}\n"


@pytest.mark.parametrize(("number", "stay"), [(1, "forward of work stays"), (2, "2 forwards of work stay")])
def test_f14_a_reset_of_outbound_rules_loses_no_forward_and_says_how_many_stay(
    qubesd: Qubesd, run: Run, number: int, stay: str
) -> None:
    """As the stock's tool without our hook: whoever loosens outbound rules does not mean the ports."""
    forwards = "".join(f"{line}\n" for line in (WEB, DNS)[:number])
    qubesd.rules["work"], qubesd.forwards["work"] = ["action=drop"], forwards
    code, out, err = run("work", "reset")
    assert (code, out) == (0, "")
    assert stay in err
    assert err.count("\n") == 1
    assert "qvm-firewall work reset --forwards" in err
    assert (qubesd.rules["work"], qubesd.forwards["work"]) == (["action=accept"], forwards)


@pytest.mark.parametrize("words", [["work", "reset", "-q"], ["-q", "work", "reset"], ["--raw", "-q", "work", "reset"]])
def test_f14_a_quiet_reset_says_nothing_and_loses_nothing(qubesd: Qubesd, run: Run, words: list[str]) -> None:
    qubesd.forwards["work"] = f"{WEB}\n"
    assert run(*words) == (0, "", "")
    assert qubesd.forwards["work"] == f"{WEB}\n"


@pytest.mark.parametrize(("number", "gone"), [(0, ""), (1, "1 forward of work is removed"), (2, "2 forwards of work")])
def test_f14_a_reset_of_forwards_says_how_many_are_gone(qubesd: Qubesd, run: Run, number: int, gone: str) -> None:
    qubesd.rules["work"] = ["action=drop"]
    qubesd.forwards["work"] = "".join(f"{line}\n" for line in (WEB, DNS)[:number])
    code, out, err = run("work", "reset", "--forwards")
    assert (code, out) == (0, "")
    assert gone in err
    assert bool(err) == bool(number)
    assert (qubesd.rules["work"], qubesd.forwards["work"]) == (["action=accept"], "")


def test_f14_forwards_that_cannot_be_counted_are_not_told_to_be_none(qubesd: Qubesd, run: Run) -> None:
    unreadable = f"{WEB.replace('external', 'sideways')}\n"
    qubesd.rules["work"], qubesd.forwards["work"] = ["action=drop"], unreadable
    code, out, err = run("work", "reset")
    assert (code, out) == (0, "")
    assert "forwardtype=sideways" in err
    assert (qubesd.rules["work"], qubesd.forwards["work"]) == (["action=accept"], unreadable)


def test_f14_a_reset_that_fails_half_way_has_told_what_is_gone(qubesd: Qubesd, run: Run) -> None:
    qubesd.forwards["work"] = f"{WEB}\n"
    qubesd.before_edit = lambda: qubesd.rules.pop("work") and None
    code, _, err = run("work", "reset", "--forwards")
    assert code == 1
    assert err.startswith("Note: 1 forward of work is removed\n")
    assert "Error: " in err


def test_an_edit_of_someone_else_in_between_is_kept(qubesd: Qubesd, run: Run) -> None:
    def someone() -> None:
        qubesd.before_edit = lambda: None
        qubesd.forwards["work"] = f"{DNS}\n"

    qubesd.before_edit = someone
    assert run("work", "add", *WEB.split()).code == 0
    assert qubesd.forwards["work"] == f"{DNS}\n{WEB}\n"


def test_an_edit_by_number_is_not_tried_on_another_list(qubesd: Qubesd, run: Run) -> None:
    qubesd.forwards["work"] = f"{WEB}\n"
    changed = f"{DNS}\n{WEB}\n"
    qubesd.before_edit = lambda: qubesd.forwards.update(work=changed)
    outcome = run("work", "del", "--rule-no", "f0")
    assert outcome == (1, "", "Error: forwards were changed by someone else meanwhile\n")
    assert qubesd.forwards["work"] == changed


def test_it_gives_up_when_the_list_never_stands_still(qubesd: Qubesd, run: Run) -> None:
    others = (parse_forwards(f"action=forward forwardtype=internal srcports={port}\n") for port in range(1, 999))
    qubesd.before_edit = lambda: qubesd.forwards.update(work=format_forwards(next(others)))
    assert run("work", "add", *WEB.split()) == (1, "", "Error: forwards were changed by someone else meanwhile\n")
    assert len(qubesd.payloads("admin.vm.firewall.Set+forward")) == 100


def test_a_clash_is_shown_and_not_tried_again(qubesd: Qubesd, run: Run) -> None:
    qubesd.forwards["personal"] = f"{WEB}\n"
    assert run("work", "add", *WEB.split()) == (1, "", "Error: srcports '443' is taken by 'personal'\n")
    assert len(qubesd.payloads("admin.vm.firewall.Set+forward")) == 1


def test_what_does_the_same_is_not_added_twice(qubesd: Qubesd, run: Run) -> None:
    qubesd.forwards["work"] = f"{WEB} enabled=no\n"
    outcome = run("work", "add", *WEB.split(), "comment=again")
    assert outcome == (1, "", f"Error: forward f0 does the same already, but is paused: {WEB} enabled=no\n")


@pytest.mark.parametrize("flavour", [Flavour.STOCK_43, Flavour.STOCK_44])
class TestWithoutExtension:
    def test_ordinary_commands_work(self, qubesd: Qubesd, run: Run, flavour: Flavour) -> None:
        qubesd.flavour = flavour
        assert run("work", "add", "drop", "1.2.3.4") == (0, "", "")
        assert run("work", "del", "--rule-no", "0") == (0, "", "")
        assert run("--raw", "work") == (0, "action=drop dst4=1.2.3.4/32\n", "")
        assert run("work", "reset") == (0, "", "")
        assert qubesd.rules["work"] == ["action=accept"]

    @pytest.mark.parametrize("words", [["add", *WEB.split()], ["del", *WEB.split()], ["del", "--rule-no", "f0"]])
    def test_a_forward_says_what_is_missing(self, qubesd: Qubesd, run: Run, flavour: Flavour, words: list[str]) -> None:
        qubesd.flavour = flavour
        message = "dom0 has no port forwarding: the extension of qubesd is not installed or does not run"
        assert run("work", *words) == (1, "", f"Error: {message}\n")


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["nosuch"], "qvm-firewall: error: no such domain: 'nosuch'"),
        (["no*"], "qvm-firewall: error: no such domain: 'no*'"),
        (["*o*"], "qvm-firewall: error: '*o*' means several domains: dom0, personal, work"),
        (["work", "list", "--raw"], "qvm-firewall: error: unrecognized arguments: --raw"),
        (["work", "add"], "qvm-firewall VMNAME add: error: the following arguments are required: match"),
        (["work", "add", "foo=bar"], "qvm-firewall VMNAME add: error: 'foo=bar': invalid rule element"),
        (["work", "add", "bogus"], "add: error: 'action=bogus': action is accept or drop or forward"),
        (["work", "add", "accept", "1.1.1.1", "tcp", "70000"], "'dstports=70000': a port is at most 65535"),
        (["work", "add", "dsthost=1.1.1.1"], "'action=': this word is missing"),
        (["work", "add", "--before", "f0", "accept"], "f0 is a forward, and an ordinary rule cannot stand there"),
        (["work", "add", "--before", "x", "accept"], "argument --before: 'x' is not a rule number"),
        (["work", "add", "--before", "f1", *WEB.split()], "add: error: there is no forward f1"),
        (["work", "add", *WEB.split(), "dsthost=1.1.1.1"], "the qube's own address is always the target"),
        (["work", "add", "forward", "external", "tcp", "80443"], "port '80443' is out of range: a port is 1 to 65535"),
        (["work", "del"], "del: error: give the number of a rule (--rule-no) or its description"),
        (["work", "del", "--rule-no", "1"], "qvm-firewall VMNAME del: error: there is no rule 1"),
        (["work", "del", "--rule-no", "-2"], "there is no rule -2"),
        (["work", "del", "--rule-no", "f0"], "there is no forward f0"),
        (["work", "del", "--rule-no", "f-1"], "argument --rule-no: 'f-1' is not a rule number"),
        (["work", "del", "drop"], "there is no rule 'action=drop'"),
        (["work", "del", *WEB.split()], "there is no forward 'forwardtype=external proto=tcp"),
    ],
)
def test_wrong_usage_is_told_on_one_line_and_changes_nothing(
    qubesd: Qubesd, run: Run, words: list[str], error: str
) -> None:
    outcome = run(*words)
    assert (outcome.code, outcome.out) == (2, "")
    assert error in outcome.err.splitlines()[-1]
    assert outcome.err.startswith("usage: qvm-firewall ")
    assert not qubesd.payloads("admin.vm.firewall.Set")


def test_what_qubesd_refuses_is_shown(run: Run) -> None:
    assert run("dom0") == (1, "", "Error: No such domain: 'dom0'\n")


def test_a_forward_list_that_is_not_understood_is_an_error_and_the_ordinary_list_is_shown(
    qubesd: Qubesd, run: Run
) -> None:
    qubesd.rules["work"] = list(RULES)
    qubesd.forwards["work"] = unreadable = f"{WEB.replace('external', 'sideways')}\n"
    reason = "'forwardtype=sideways': forwardtype is external or internal"
    assert run("work") == (1, LIST, f"Error: line 1: {reason}\n")
    assert run("work", "add", *DNS.split()).code == 1
    assert qubesd.forwards["work"] == unreadable


def test_words_of_a_newer_dom0_stay_with_their_rule(qubesd: Qubesd, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    qubesd.forwards["work"] = f"{WEB} newword=1\n"
    assert run("work").code == 0
    sent: list[str] = []
    monkeypatch.setattr(qubesd, "set_forwards", lambda *call: sent.append(call[1]))
    assert run("work", "add", *DNS.split()).code == 0
    assert sent == [f"{WEB} newword=1\n{DNS}\n"]


def test_help_names_the_commands_and_what_reset_does(run: Run) -> None:
    code, out, _ = run("-h")
    assert code == 0
    for command in ("add", "del", "list", "reset"):
        assert f"Command '{command}':\n  usage: qvm-firewall VMNAME {command}" in out
    assert "forwards stay, unless --forwards" in out


def test_the_version_is_that_of_the_project(run: Run) -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert run("--version").out.startswith(f"qvm-firewall (Qubes Port Forwarding) {project['version']}\n")


def test_start_up_imports_nothing_heavy() -> None:
    code = f"import sys, {qvm_firewall.__name__}; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"asyncio", "lxml", "subprocess", "difflib", "tempfile", "logging"} & set(modules)


@pytest.mark.parametrize("words", [["add", *WEB.split()], ["reset", "--forwards"], ["del", "--rule-no", "f0"]])
def test_f7_an_interrupted_change_is_not_told_as_nothing(qubesd: Qubesd, run: Run, words: list[str]) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    qubesd.forwards["work"] = f"{DNS}\n"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("portfwd.client.adminapi.AdminClient.edit_forwards", interrupt)
        outcome = run("work", *words)
    assert outcome == (130, "", "Interrupted: a change may have been made, see 'qvm-firewall work list'\n")
