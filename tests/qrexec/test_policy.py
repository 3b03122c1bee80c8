# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The policy: what a line means, which line decides, and that one wrong line denies everything."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.qrexec.policy import DeniedError, Domain, PolicySyntaxError, Request, Rule, evaluate, load

DOMAINS = {
    "dom0": Domain("AdminVM"),
    "sys-net": Domain("AppVM", frozenset({"nat-forward"})),
    "work": Domain("AppVM", frozenset({"created-by-dom0"})),
    "halted": Domain("StandaloneVM", running=False),
}


def decide(text: str, source: str, target: str, service: str = "s.Do", argument: str = "") -> str:
    """The target of an allowed call, or why it is denied."""
    rules = [Rule.parse(line, f"line {number}") for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    try:
        return evaluate(rules, Request(service, argument, source, target), DOMAINS).target
    except DeniedError as denied:
        return f"denied: {denied}"


@pytest.mark.parametrize(
    ("line", "source", "target", "decision"),
    [
        ("s.Do * sys-net @adminvm allow", "sys-net", "dom0", "dom0"),
        ("s.Do * sys-net dom0 allow", "sys-net", "@adminvm", "dom0"),
        ("s.Do * @tag:nat-forward @adminvm allow notify=yes", "sys-net", "dom0", "dom0"),
        ("s.Do * @tag:nat-forward @adminvm allow", "work", "dom0", "denied: no matching rule"),
        ("s.Do * @type:AppVM work allow", "sys-net", "work", "work"),
        ("s.Do * @anyvm @anyvm allow", "work", "sys-net", "sys-net"),
        ("s.Do * @anyvm @anyvm allow", "work", "dom0", "denied: no matching rule"),
        ("s.Do * @anyvm @anyvm allow", "work", "work", "denied: a qube cannot call itself"),
        ("s.Do * @anyvm @anyvm allow", "work", "none", "denied: allowed by line 1, but there is no target"),
        ("s.Do * @anyvm @default allow target=sys-net", "work", "", "sys-net"),
        ("s.Do * @anyvm @default allow target=sys-net", "work", "@default", "sys-net"),
        ("s.Do * @anyvm @default allow target=sys-net", "work", "none", "sys-net"),
        ("s.Do * work * allow", "work", "dom0", "dom0"),
        ("s.Do * work halted allow target=dom0", "work", "halted", "dom0"),
        ("s.Do * work halted allow target=@adminvm", "work", "halted", "dom0"),
        ("s.Do * work halted allow", "work", "halted", "halted"),
        ("s.Do * work halted allow autostart=no", "work", "halted", "denied: halted is not running"),
        ("s.Do * work sys-net ask", "work", "sys-net", "denied: ask by line 1"),
        ("s.Do * work sys-net deny", "work", "sys-net", "denied: deny by line 1"),
        ("s.Do + work sys-net allow", "work", "sys-net", "sys-net"),
        ("s.Do +x work sys-net allow", "work", "sys-net", "denied: no matching rule"),
        ("* * work sys-net allow", "work", "sys-net", "sys-net"),
        ("s.Other * work sys-net allow", "work", "sys-net", "denied: no matching rule"),
        ("", "work", "sys-net", "denied: no matching rule"),
    ],
)
def test_a_line_decides(line: str, source: str, target: str, decision: str) -> None:
    assert decide(line, source, target) == decision


def test_the_first_matching_line_wins() -> None:
    text = "s.Do +secret @anyvm @anyvm deny\ns.Do * work @anyvm allow\ns.Do * @anyvm @anyvm deny"
    assert decide(text, "work", "sys-net", argument="open") == "sys-net"
    assert decide(text, "work", "sys-net", argument="secret") == "denied: deny by line 1"
    assert decide(text, "sys-net", "work") == "denied: deny by line 3"


@pytest.mark.parametrize(
    "line",
    [
        "s.Do * work sys-net",
        "s.Do work sys-net allow",
        "s.Do x work sys-net allow",
        "s/Do * work sys-net allow",
        "* +x work sys-net allow",
        "s.Do * @default sys-net allow",
        "s.Do * work @dispvm allow",
        "s.Do * @tag: sys-net allow",
        "s.Do * @tag:@x sys-net allow",
        "s.Do * $anyvm sys-net allow",
        "s.Do * work sys-net permit",
        "s.Do * work sys-net allow notify=maybe",
        "s.Do * work sys-net allow notify=yes notify=yes",
        "s.Do * work sys-net deny target=dom0",
        "s.Do * work sys-net allow target=@anyvm",
        "s.Do * work sys-net allow,target=dom0",
        "s.Do * work @default allow",
        "!include other",
        "!compat-4.0",
    ],
)
def test_a_wrong_line_is_refused_with_its_place(line: str) -> None:
    with pytest.raises(PolicySyntaxError, match="line 1"):
        Rule.parse(line, "line 1")


@given(st.text(max_size=80))
def test_any_line_is_a_rule_or_refused(line: str) -> None:
    try:
        rule = Rule.parse(line, "line 1")
    except PolicySyntaxError:
        return
    assert rule.action in ("allow", "ask", "deny")


def test_files_are_read_in_the_order_of_their_names_and_an_earlier_folder_replaces_a_file(tmp_path: Path) -> None:
    first, second = tmp_path / "run", tmp_path / "etc"
    first.mkdir()
    second.mkdir()
    (second / "60-a.policy").write_text("# a comment\n\n  s.A * work dom0 deny\n")
    (second / "30-user.policy").write_text("s.A * work dom0 allow\n")
    (second / "70-b.policy").write_text("s.B * work dom0 deny\n")
    (first / "70-b.policy").write_text("s.B * work dom0 allow\n")
    (second / "60-a.policy.rpmsave").write_text("nonsense")
    (second / ".60-hidden.policy").write_text("nonsense")
    rules = load([first, second, tmp_path / "missing"])
    assert [(rule.service, rule.action) for rule in rules] == [("s.A", "allow"), ("s.A", "deny"), ("s.B", "allow")]


@pytest.mark.parametrize(
    ("name", "text"), [("80-Bad.policy", ""), ("80-b.policy", "nonsense"), ("80-b.policy", "s * a b\x00 allow")]
)
def test_one_wrong_file_denies_everything(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "30-user.policy").write_text("s.A * work dom0 allow\n")
    (tmp_path / name).write_text(text)
    with pytest.raises(PolicySyntaxError):
        load([tmp_path])
