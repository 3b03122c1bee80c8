# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""firewall.xml: what is read, what is written, and that nothing is lost."""

import os
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lxml import etree

from lab.qubesd.base.firewall_file import properties_of, read_rules
from portfwd.dom0.storage.forwards import Forwards
from portfwd.dom0.storage.store import Beside, StoredForward, StoreError, check, read_forwards
from portfwd.model.forward import parse_forward
from portfwd.model.ordinary import OrdinaryRule, parse_ordinary

ACCEPT = parse_ordinary("action=accept")
WEB = parse_forward("action=forward forwardtype=external proto=tcp srcports=443 dstports=8443 comment=web, mine")
OPEN = parse_forward("action=forward forwardtype=internal srcports=5000-5010 srchost=any enabled=no expire=reboot")
BOTH = (StoredForward(WEB, 1700000000), StoredForward(OPEN, 1700000001, "boot-1"))


def save(path: Path, forwards: tuple[StoredForward, ...] = (), rules: tuple[OrdinaryRule, ...] = (ACCEPT,)) -> None:
    """As qubesd with the extension does it: look what stands in the file, write both lists."""
    held = Forwards(path, lambda: properties_of(rules))
    held.read()
    held.save(forwards)


def load(path: Path) -> tuple[StoredForward, ...]:
    found = read_forwards(path)
    assert not found.damage
    return found.forwards


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "firewall.xml"


def rule(**properties: str) -> str:
    inner = "".join(f'<property name="{key}">{value}</property>' for key, value in properties.items())
    return f"<rule><properties>{inner}</properties></rule>"


def v2(rules: str = rule(action="accept"), beside: str = "") -> str:
    return f'<firewall version="2"><rules>{rules}</rules>{beside}</firewall>'


FORWARD = rule(action="forward", forwardtype="external", proto="tcp", srcports="443", dstports="8443")


def test_no_file_means_no_forward(path: Path) -> None:
    assert read_forwards(path) == Beside()
    check(path)
    assert not path.exists()


def test_what_is_saved_is_loaded(path: Path) -> None:
    save(path, BOTH)
    assert (load(path), read_rules(path)) == (BOTH, (ACCEPT,))
    save(path, (), ())
    assert (load(path), read_rules(path)) == ((), ())


def test_the_file_is_one_that_a_stock_qubesd_reads(path: Path) -> None:
    """It looks at the child `rules` alone, and at the properties that it knows."""
    save(path, BOTH, (parse_ordinary("action=drop dst4=1.2.3.4 proto=tcp dstports=80-80 comment=a b"),))
    root = etree.parse(path).getroot()
    assert root.get("version") == "2"
    [kept] = root.findall("rules/rule")
    assert [(p.get("name"), p.text) for p in kept.iterfind("properties/property")] == [
        ("action", "drop"),
        ("comment", "a b"),
        ("dsthost", "1.2.3.4/32"),
        ("proto", "tcp"),
        ("dstports", "80"),
    ]


def test_forwards_are_written_as_rules_with_properties(path: Path) -> None:
    save(path, BOTH)
    first, second = etree.parse(path).getroot().findall("forwards/rule")
    assert (first.get("added"), first.get("session")) == ("1700000000", None)
    assert (second.get("added"), second.get("session")) == ("1700000001", "boot-1")
    assert {p.get("name"): p.text for p in first.iterfind("properties/property")} == {
        "action": "forward",
        "forwardtype": "external",
        "proto": "tcp",
        "srcports": "443",
        "dstports": "8443",
        "comment": "web, mine",
    }


def test_without_forwards_there_is_no_element_for_them(path: Path) -> None:
    save(path)
    assert b"forwards" not in path.read_bytes()


def test_forwards_among_the_rules_are_read_and_moved_by_the_next_save(path: Path) -> None:
    """The form of the proposal, comments included."""
    comment = "<!-- opened for the web -->"
    path.write_text(v2(comment + rule(action="drop") + comment + FORWARD + rule(action="accept")))
    rules, forwards = read_rules(path), load(path)
    assert [r.api_line() for r in rules] == ["action=drop", "action=accept"]
    assert [str(f.rule) for f in forwards] == [str(parse_forward(str(WEB).partition(" comment")[0]))]
    save(path, forwards, rules)
    assert (load(path), read_rules(path)) == (forwards, rules)
    root = etree.parse(path).getroot()
    assert len(root.findall("rules/rule")) == 2
    assert len(root.findall("forwards/rule")) == 1


def test_a_file_of_version_1_has_no_forwards_and_may_be_written_over(path: Path) -> None:
    """The stock has read its rules by then."""
    path.write_text('<QubesFirewallRules policy="deny"><rule address="1.2.3.4" port="443"/></QubesFirewallRules>')
    assert load(path) == ()
    save(path, BOTH)
    assert load(path) == BOTH


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not XML"),
        ("<firewall version='2'><rules>", "not XML"),
        ("<other version='2'><rules/></other>", "not a firewall file"),
        (v2(rule(action="forward")), "rule 0"),
        (v2(rule(action="accept") + rule(action="forward", frobnicate="x")), "rule 1.*frobnicate"),
        (v2(rule(action="forward", proto="tcp udp")), "proto"),
        (v2(rule(action="forward", comment="a\nb")), "comment"),
        (v2(rule(action="forward", comment="a" * 5 + "\u00e9")), "comment"),
        ('<!DOCTYPE firewall [<!ENTITY a "accept">]>' + v2(rule(action="&a;")), "document type"),
        ('<!DOCTYPE firewall SYSTEM "http://localhost:1/x.dtd">' + v2(), "document type"),
    ],
)
def test_damage_is_named_and_the_file_is_left_alone(path: Path, text: str, reason: str) -> None:
    path.write_text(text)
    found = read_forwards(path)
    assert found.forwards == ()
    assert re.search(reason, found.damage)
    assert "firewall.xml" in found.damage
    with pytest.raises(StoreError, match=reason):
        check(path)
    with pytest.raises(StoreError, match=reason):
        save(path, BOTH)
    assert path.read_text() == text
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    "forwards",
    [
        FORWARD.replace("8443", "80443"),
        FORWARD.replace("<rule>", '<rule added="soon">'),
        FORWARD.replace("<rule>", '<rule session="a b">'),
        FORWARD + FORWARD,
        rule(action="accept"),
        "<other/>",
        FORWARD + "<rule/>",
    ],
)
def test_damaged_forwards_close_all_forwards_and_spare_the_rules(path: Path, forwards: str) -> None:
    path.write_text(v2(beside=f"<forwards>{FORWARD}{forwards}</forwards>"))
    before = path.read_bytes()
    assert read_rules(path) == (ACCEPT,)
    found = read_forwards(path)
    assert found.forwards == ()
    assert "forward 1" in found.damage
    for new in (BOTH, ()):
        with pytest.raises(StoreError, match="forward 1"):
            save(path, new)
    assert path.read_bytes() == before


def test_a_file_that_cannot_be_written_is_kept_and_nothing_is_left_behind(path: Path, tmp_path: Path) -> None:
    save(path, BOTH)
    before = path.read_bytes()
    with pytest.raises(StoreError, match="cannot be written"):
        save(tmp_path / "nowhere" / "firewall.xml", BOTH)
    path.unlink()
    path.mkdir()
    with pytest.raises(StoreError, match="cannot be read"):
        save(path, BOTH)
    path.rmdir()
    path.write_bytes(before)
    assert list(tmp_path.iterdir()) == [path]


def test_group_qubes_may_write_the_file_whatever_the_umask(path: Path) -> None:
    old = os.umask(0o077)
    try:
        save(path, BOTH)
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o664


def test_a_save_replaces_the_file_and_does_not_rewrite_it(path: Path) -> None:
    """Whoever has the old file open reads the old rules to the end."""
    save(path, BOTH)
    with path.open("rb") as old:
        save(path)
        assert b"forwards" in old.read()


WORDS = st.one_of(
    st.sampled_from(["accept", "forward", "tcp", "443", "1-2", "any", "external", "10.0.0.0/8", "no", "reboot", ""]),
    st.text(max_size=8),
)
KEYS = st.sampled_from(["action", "proto", "srcports", "dstports", "forwardtype", "srchost", "expire", "comment", "x"])
RULES = st.lists(st.dictionaries(KEYS, WORDS), max_size=4)


def element(parent: etree._Element, rules: list[dict[str, str]]) -> None:
    for words in rules:
        properties = etree.SubElement(etree.SubElement(parent, "rule"), "properties")
        for key, value in words.items():
            text = "".join(c for c in value if c.isprintable())
            etree.SubElement(properties, "property", name=key).text = text


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(RULES, RULES)
def test_any_properties_are_read_or_refused(
    path: Path, ordinary: list[dict[str, str]], forward: list[dict[str, str]]
) -> None:
    root = etree.Element("firewall", version="2")
    element(etree.SubElement(root, "rules"), [{"action": "accept"} | words for words in ordinary])
    element(etree.SubElement(root, "forwards"), forward)
    path.write_bytes(etree.tostring(root))
    found = read_forwards(path)
    if found.damage:
        assert not found.forwards
        assert found.damage.isascii()
        assert "%" not in found.damage
    else:
        save(path, found.forwards)
        assert load(path) == found.forwards


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.binary(max_size=200))
def test_any_bytes_are_refused(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    assert read_forwards(path).damage
