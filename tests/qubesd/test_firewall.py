# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Ordinary firewall rules: the API, the file, and what the net qube's QubesDB says."""

import time

import pytest

from tests.qubesd.world import World, eventually

GET, SET, RELOAD = "admin.vm.firewall.Get", "admin.vm.firewall.Set", "admin.vm.firewall.Reload"


def file_of(world: World, name: str) -> str:
    return (world.folder / "lib" / "appvms" / name / "firewall.xml").read_text()


def test_a_qube_without_a_file_may_reach_everything(halted: World) -> None:
    assert halted.api("sys-other", GET) == "action=accept\n"


@pytest.mark.parametrize(
    ("sent", "answered"),
    [
        ("proto=tcp dst4=1.2.3.4 dstports=443", "dst4=1.2.3.4/32 proto=tcp dstports=443-443"),
        ("specialtarget=dns", "specialtarget=dns"),
        ("dsthost=2001:DB8::/32", "dst6=2001:DB8::/32"),
        ("proto=icmp icmptype=8 comment=a, b", "proto=icmp icmptype=8 comment=a, b"),
        ("dsthost=qubes-os.org expire=4000000000", "expire=4000000000 dsthost=qubes-os.org"),
    ],
)
def test_a_rule_is_stored_and_answered_in_canonical_words(halted: World, sent: str, answered: str) -> None:
    halted.api("personal", SET, f"action=accept {sent}\n")
    assert halted.api("personal", GET) == f"action=accept {answered}\n"


@pytest.mark.parametrize("rules", ["action=accept\n\n", "action=forward\n", "action=accept  proto=tcp\n", "x\n"])
def test_a_wrong_rule_changes_nothing_and_gets_no_answer(halted: World, rules: str) -> None:
    halted.api("personal", SET, "action=drop\n")
    assert halted.error("personal", SET, rules)[0] == ""
    assert halted.api("personal", GET) == "action=drop\n"


def test_what_is_not_ascii_is_refused(halted: World) -> None:
    assert halted.error("personal", SET, "action=accept comment=\u00e9\n")[0] == "ProtocolError"


def test_the_file_is_written_as_by_qubesd(halted: World) -> None:
    halted.api("personal", SET, "action=accept proto=tcp dst4=1.2.3.4 dstports=443 comment=x\naction=drop\n")
    assert file_of(halted, "personal") == (
        "<?xml version='1.0' encoding='UTF-8'?>\n"
        '<firewall version="2">\n'
        "  <rules>\n"
        "    <rule>\n"
        "      <properties>\n"
        '        <property name="action">accept</property>\n'
        '        <property name="comment">x</property>\n'
        '        <property name="dsthost">1.2.3.4/32</property>\n'
        '        <property name="proto">tcp</property>\n'
        '        <property name="dstports">443</property>\n'
        "      </properties>\n"
        "    </rule>\n"
        "    <rule>\n"
        "      <properties>\n"
        '        <property name="action">drop</property>\n'
        "      </properties>\n"
        "    </rule>\n"
        "  </rules>\n"
        "</firewall>\n"
    )


def test_a_damaged_file_is_reported_and_left_alone(halted: World) -> None:
    path = halted.folder / "lib" / "appvms" / "dvm" / "firewall.xml"
    path.write_text("<firewall version='2'><rules>")
    halted.restart()
    for method, payload in ((GET, ""), (SET, "action=drop\n")):
        name, text = halted.error("dvm", method, payload)
        assert name == "QubesException"
        assert "firewall.xml" in text
    assert path.read_text() == "<firewall version='2'><rules>"
    path.unlink()


def test_rules_stand_in_the_net_qube_of_a_running_qube(world: World) -> None:
    assert world.firewall_of("sys-firewall", "10.137.0.4") == {"policy": "drop", "0000": "action=accept"}
    world.api(
        "work",
        SET,
        "action=accept dst4=1.2.3.4 comment=first\n"
        "action=accept dst6=2001:db8::1 proto=tcp dstports=80\n"
        "action=drop expire=4000000000\n",
    )
    assert world.firewall_of("sys-firewall", "10.137.0.4") == {
        "policy": "drop",
        "0000": "action=accept dst4=1.2.3.4/32",
        "0002": "action=drop",
    }
    assert world.read("sys-firewall", "/qubes-firewall/10.137.0.4") == ""


def test_an_expired_rule_goes_away_by_itself(world: World) -> None:
    world.api("work", SET, f"action=accept\naction=drop expire={int(time.time()) + 3}\n")
    assert len(world.api("work", GET).splitlines()) == 2
    eventually(lambda: world.api("work", GET) == "action=accept\n", "the end of the rule")
    eventually(lambda: "0001" not in world.firewall_of("sys-firewall", "10.137.0.4"), "its removal from QubesDB")
    eventually(lambda: "expire" not in file_of(world, "work"), "its removal from the file")


def test_reload_writes_the_rules_again(world: World) -> None:
    base = "/qubes-firewall/10.137.0.4"
    world.qdb("sys-firewall").rm(f"{base}/")
    with world.events() as events:
        world.api("work", RELOAD)
        assert events.until("firewall-changed")[-1] == ("work", "firewall-changed", {})
    assert world.firewall_of("sys-firewall", "10.137.0.4") == {"policy": "drop", "0000": "action=accept"}
