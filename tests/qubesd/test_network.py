# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Changes of the net qube of running and paused qubes, with their events and QubesDB entries."""

import pytest

from tests.qubesd.world import World

SET_NETVM = "admin.vm.property.Set+netvm"


def test_a_running_qube_moves_to_another_net_qube(world: World) -> None:
    world.api("sys-other", "admin.vm.Start")
    asked = len(world.xen.asked)
    with world.events() as events:
        world.set("work", "netvm", "sys-other")
        seen = events.until("net-domain-connect")
    change = {"name": "netvm", "newvalue": "sys-other", "oldvalue": "sys-firewall"}
    # An admin.Events listener stands last for what has happened, and first for what will.
    assert seen == [
        ("work", "property-pre-set:netvm", change),
        ("work", "domain-qdb-create", {}),
        ("sys-other", "net-domain-connect", {"vm": "work"}),
    ]
    assert world.xen.asked[asked:] == [("detach", "work"), ("attach", "work")]
    assert world.xen.cables["work"]["backend"] == "sys-other"
    assert world.read("work", "/qubes-gateway") == "10.137.0.3"
    assert world.read("sys-other", "/connected-ips") == "10.137.0.4"
    assert "10.137.0.4" not in str(world.read("sys-firewall", "/connected-ips"))
    assert world.firewall_of("sys-other", "10.137.0.4") == {"policy": "drop", "0000": "action=accept"}


def test_the_event_of_the_change_comes_after_its_work(world: World) -> None:
    world.api("sys-other", "admin.vm.Start")
    with world.events("work") as events:
        world.set("work", "netvm", "sys-other")
        assert [event for _, event, _ in events.until("property-set:netvm")] == [
            "property-pre-set:netvm",
            "domain-qdb-create",
            "property-set:netvm",
        ]


def test_a_stopped_net_qube_is_refused_for_a_running_qube(world: World) -> None:
    error = ("QubesVMNotStartedError", "Cannot dynamically attach to stopped qube sys-other")
    assert world.error("work", SET_NETVM, "sys-other") == error
    assert world.prop("work", "netvm") == "sys-firewall"
    assert world.xen.cables["work"]["backend"] == "sys-firewall"
    world.set("personal", "netvm", "sys-other")
    assert world.prop("personal", "netvm") == "sys-other"


def test_a_running_qube_without_net_qube_is_unplugged(world: World) -> None:
    world.set("work", "netvm", "")
    assert "work" not in world.xen.cables
    assert world.prop("work", "ip") == ""
    world.set("work", "netvm", "sys-firewall")
    assert world.xen.cables["work"]["backend"] == "sys-firewall"


def test_reset_moves_to_the_default_net_qube(world: World) -> None:
    world.api("sys-other", "admin.vm.Start")
    world.set("work", "netvm", "sys-other")
    with world.events("work") as events:
        world.api("work", "admin.vm.property.Reset+netvm")
        seen = [event for _, event, _ in events.until("property-del:netvm")]
    assert [event for event in seen if "pre" not in event] == [
        "domain-qdb-create",
        "property-set:netvm",
        "property-reset:netvm",
        "property-del:netvm",
    ]
    assert world.xen.cables["work"]["backend"] == "sys-firewall"


def test_a_new_default_moves_those_that_follow_it(world: World) -> None:
    world.api("sys-other", "admin.vm.Start")
    world.api("work", "admin.vm.property.Reset+netvm")
    world.api("dom0", "admin.property.Set+default_netvm", "sys-other")
    assert world.xen.cables["work"]["backend"] == "sys-other"
    assert world.xen.cables["sys-firewall"]["backend"] == "sys-net"
    assert world.firewall_of("sys-other", "10.137.0.4") == {"policy": "drop", "0000": "action=accept"}


def test_f25_default_netvm_set_to_its_present_value_detaches_its_followers(world: World) -> None:
    """As in qubesd 4.2 to 4.4: property-pre-set:netvm detaches, and property-reset:netvm finds nothing changed."""
    world.api("work", "admin.vm.property.Reset+netvm")
    assert "work" in world.xen.cables
    world.api("dom0", "admin.property.Set+default_netvm", "sys-firewall")
    assert "work" not in world.xen.cables
    assert "sys-firewall" in world.xen.cables
    # What brings the interface back: the property itself set anew, or a restart of either qube.
    world.set("work", "netvm", "sys-firewall")
    assert world.xen.cables["work"]["backend"] == "sys-firewall"


@pytest.mark.parametrize("method", ["Set", "Reset"])
def test_f25_a_net_qube_set_to_its_present_value_stays_attached(world: World, method: str) -> None:
    world.api("work", "admin.vm.property.Reset+netvm")
    world.api("work", f"admin.vm.property.{method}+netvm", "sys-firewall" if method == "Set" else "")
    assert world.xen.cables["work"]["backend"] == "sys-firewall"


def test_f25_a_paused_follower_is_attached_again_when_it_goes_on(world: World) -> None:
    world.api("work", "admin.vm.property.Reset+netvm")
    world.api("work", "admin.vm.Pause")
    world.api("dom0", "admin.property.Set+default_netvm", "sys-firewall")
    assert world.xen.cables["work"]["backend"] == "sys-firewall"
    asked = len(world.xen.asked)
    world.api("work", "admin.vm.Unpause")
    assert [op for op, who in world.xen.asked[asked:] if who == "work"] == ["unpause", "detach", "attach"]


def test_a_paused_qube_moves_when_it_goes_on(world: World) -> None:
    world.api("sys-other", "admin.vm.Start")
    world.api("work", "admin.vm.Pause")
    with world.events() as events:
        world.set("work", "netvm", "sys-other")
        events.until("net-domain-connect", "sys-other")
        assert world.api("work", "admin.vm.feature.Get+deferred-netvm-original") == "sys-firewall"
        assert world.xen.cables["work"]["backend"] == "sys-firewall"
        world.api("work", "admin.vm.Unpause")
        events.until("net-domain-connect", "sys-other")
        events.until("domain-feature-delete:deferred-netvm-original", "work")
    assert world.xen.cables["work"]["backend"] == "sys-other"


def test_a_new_address_of_a_running_qube_only_fires_events(world: World) -> None:
    """As in qubesd, where nothing is written or plugged again before a restart."""
    asked = len(world.xen.asked)
    with world.events() as events:
        world.set("work", "ip", "10.137.8.8")
        seen = [(who, event) for who, event, _ in events.until("property-set:ip")]
    assert seen == [("work", "property-pre-set:ip"), ("work", "property-reset:visible_ip"), ("work", "property-set:ip")]
    assert world.read("work", "/qubes-ip") == "10.137.0.4"
    assert world.xen.asked[asked:] == []


def test_a_new_address_of_a_net_qube_is_told_to_its_clients(world: World) -> None:
    with world.events() as events:
        world.set("sys-firewall", "ip", "10.137.8.8")
        seen = [(who, event) for who, event, _ in events.until("property-set:ip")]
    assert ("sys-firewall", "property-reset:gateway") in seen
    assert ("work", "property-reset:visible_gateway") in seen


def test_ipv6_reaches_qubesdb_when_the_entries_are_written_again(world: World) -> None:
    for name in ("work", "sys-firewall", "sys-net"):
        world.api(name, "admin.vm.Kill")
        world.forget_qdb(name)
    world.api("sys-net", "admin.vm.feature.Set+ipv6", "1")
    world.api("work", "admin.vm.Start")
    assert world.read("work", "/qubes-ip6") == "fd09:24ef:4179::a89:4"
    assert world.read("work", "/qubes-gateway6") == "fd09:24ef:4179::a89:2"
    assert world.read("sys-firewall", "/qubes-netvm-gateway6") == "fd09:24ef:4179::a89:2"
    assert "fd09:24ef:4179::a89:4" in str(world.read("sys-firewall", "/connected-ips6"))
    assert "policy" in world.firewall_of("sys-firewall", "fd09:24ef:4179::a89:4")
    assert world.xen.cables["work"]["ip6"] == "fd09:24ef:4179::a89:4"
    assert world.xen.cables["work"]["gateway6"] == "fd09:24ef:4179::a89:2"


def test_events_of_one_qube_are_of_that_qube_alone(world: World) -> None:
    with world.events("work") as events:
        world.api("sys-net", "admin.vm.feature.Set+x", "1")
        world.api("work", "admin.vm.feature.Set+x", "1")
        world.api("work", "admin.vm.feature.Set+x", "2")
        change = {"feature": "x", "value": "1"}
        assert events.next() == ("work", "domain-feature-pre-set:x", change)
        assert events.next() == ("work", "domain-feature-set:x", change)
        change = {"feature": "x", "value": "2", "oldvalue": "1"}
        assert events.next() == ("work", "domain-feature-pre-set:x", change)
