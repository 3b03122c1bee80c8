# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Start, stop, pause, create, remove and clone, with their events and QubesDB entries."""

import threading

import pytest

from lab.qubesd.client import ApiError, clone
from tests.qubesd.world import World, eventually


def names(events: list[tuple[str, str, dict[str, str]]], subject: str) -> list[str]:
    return [event for who, event, _ in events if who == subject]


def test_net_qubes_start_first(world: World) -> None:
    created = [name for op, name in world.xen.asked if op == "create"]
    assert created == ["sys-net", "sys-firewall", "work"]
    assert world.xen.domains["sys-firewall"]["state"] == "running"


def test_a_running_qube_is_plugged_into_its_net_qube(world: World) -> None:
    assert world.xen.cables["work"] == {
        "backend": "sys-firewall",
        "ip": "10.137.0.4",
        "ip6": None,
        "gateway": "10.137.0.2",
        "gateway6": None,
        "mac": "00:16:3e:5e:6c:00",
        "visible_ip": "10.137.0.4",
        "visible_gateway": "10.137.0.2",
    }
    assert "sys-net" not in world.xen.cables


def test_a_qube_finds_itself_described_in_qubesdb(world: World) -> None:
    entries = {
        "/name": "work",
        "/type": "AppVM",
        "/qubes-vm-type": "AppVM",
        "/qubes-ip": "10.137.0.4",
        "/qubes-gateway": "10.137.0.2",
        "/qubes-netmask": "255.255.255.255",
        "/qubes-primary-dns": "10.139.1.1",
        "/qubes-mac": "00:16:3e:5e:6c:00",
        "/qubes-ip6": None,
        "/qubes-netvm-network": None,
        "/qubes-service/qubes-firewall": None,
    }
    assert {path: world.read("work", path) for path in entries} == entries


def test_a_net_qube_finds_its_clients_in_qubesdb(world: World) -> None:
    entries = {
        "/qubes-vm-type": "ProxyVM",
        "/qubes-netvm-network": "10.137.0.2",
        "/qubes-netvm-gateway": "10.137.0.2",
        "/qubes-netvm-netmask": "255.255.255.255",
        "/connected-ips": "10.137.0.7 10.137.0.5 10.137.0.4",
        "/connected-ips6": "",
        "/mapped-ip/10.137.0.4/visible-ip": "10.137.0.4",
        "/mapped-ip/10.137.0.4/visible-gateway": "10.137.0.2",
        "/qubes-service/qubes-network": "1",
        "/qubes-service/qubes-firewall": "1",
    }
    assert {path: world.read("sys-firewall", path) for path in entries} == entries
    assert world.read("sys-net", "/qubes-vm-type") == "NetVM"


def test_services_are_visible_inside(world: World) -> None:
    world.api("personal", "admin.vm.feature.Set+service.print", "1")
    world.api("personal", "admin.vm.feature.Set+service.scan", "")
    world.api("personal", "admin.vm.Start")
    assert world.read("personal", "/qubes-service/print") == "1"
    assert world.read("personal", "/qubes-service/scan") == "0"
    world.api("personal", "admin.vm.feature.Set+service.scan", "1")
    assert world.read("personal", "/qubes-service/scan") == "1"
    world.api("personal", "admin.vm.feature.Remove+service.scan")
    assert world.read("personal", "/qubes-service/scan") is None


def test_a_start_fires_the_events_of_qubesd_in_their_order(world: World) -> None:
    with world.events() as events:
        world.api("personal", "admin.vm.Start")
        seen = names(events.until("domain-start", "personal"), "personal")
    assert seen == [
        "domain-pre-start",
        "domain-pre-spawn",
        "property-reset:xid",
        "property-reset:start_time",
        "domain-spawn",
        "domain-qdb-create",
        "domain-pre-unpaused",
        "domain-unpaused",
        "domain-start",
    ]
    assert world.state("personal") == "Running"
    assert int(world.prop("personal", "xid")) == world.xen.domains["personal"]["domid"]


def test_starting_a_running_qube_does_nothing(world: World) -> None:
    asked = len(world.xen.asked)
    world.api("work", "admin.vm.Start")
    assert world.xen.asked[asked:] == []


def test_a_start_that_the_hypervisor_refuses_is_told_and_undone(world: World) -> None:
    world.xen.refuse.add(("boot", "personal"))
    with world.events() as events:
        assert world.error("personal", "admin.vm.Start") == ("XenError", "boot of personal refused")
        events.until("domain-start-failed", "personal")
        events.until("domain-shutdown", "personal")
    assert world.state("personal") == "Halted"
    assert "personal" not in world.xen.domains


def test_a_hypervisor_that_refuses_to_end_a_qube_leaves_it_as_it_was(world: World) -> None:
    world.xen.refuse.add(("destroy", "work"))
    for method in ("Kill", "Shutdown"):
        assert world.error("work", f"admin.vm.{method}") == ("XenError", "destroy of work refused")
        assert world.state("work") == "Running"
    world.xen.refuse |= {("boot", "personal"), ("destroy", "personal")}
    assert world.error("personal", "admin.vm.Start") == ("XenError", "boot of personal refused")
    assert world.state("personal") == "Halted"


def test_a_slow_start_holds_up_no_other_call(world: World) -> None:
    world.xen.hold[("boot", "personal")] = held = threading.Event()
    starting = threading.Thread(target=world.api, args=("personal", "admin.vm.Start"))
    starting.start()
    try:
        eventually(lambda: "boot" in world.xen.ops("personal"), "the boot")
        assert world.state("personal") == "Paused"
        world.api("work", "admin.vm.tag.Set+meanwhile")
    finally:
        held.set()
        starting.join()
    assert world.state("personal") == "Running"


def test_a_net_qube_in_use_is_not_shut_down_unless_forced(world: World) -> None:
    error = ("QubesVMInUseError", "There are other VMs connected to this VM: work")
    assert world.error("sys-firewall", "admin.vm.Shutdown") == error
    world.api("sys-firewall", "admin.vm.Shutdown+force+wait")
    assert world.state("sys-firewall") == "Halted"
    assert world.error("sys-firewall", "admin.vm.Shutdown+now")[0] == "ProtocolError"
    assert world.error("sys-firewall", "admin.vm.Shutdown")[0] == "QubesVMNotStartedError"


def test_a_restarted_net_qube_gets_its_clients_back(world: World) -> None:
    world.api("sys-firewall", "admin.vm.Kill")
    world.forget_qdb("sys-firewall")
    assert "work" not in world.xen.cables
    world.api("sys-firewall", "admin.vm.Start")
    assert world.xen.cables["work"]["backend"] == "sys-firewall"
    assert world.firewall_of("sys-firewall", "10.137.0.4") == {"policy": "drop", "0000": "action=accept"}


@pytest.mark.parametrize("by_itself", [True, False])
def test_the_end_of_a_qube_is_noticed_whoever_ended_it(world: World, by_itself: bool) -> None:
    with world.events("work") as events:
        if by_itself:
            world.xen.die("work")
        else:
            world.api("work", "admin.vm.Kill")
        seen = names(events.until("domain-shutdown"), "work")
    assert seen == ["domain-stopped", "property-reset:xid", "property-reset:start_time", "domain-shutdown"]
    assert world.state("work") == "Halted"
    eventually(lambda: not list((world.folder / "run").glob("qubesdb.work*")), "the end of its QubesDB daemon")
    assert world.error("work", "admin.vm.Kill") == ("QubesVMNotStartedError", "Domain is powered off: 'work'")


def test_pause_and_unpause(world: World) -> None:
    with world.events("work") as events:
        world.api("work", "admin.vm.Pause")
        assert world.state("work") == "Paused"
        error = ("QubesVMNotRunningError", "Domain not running (either powered off or paused): 'work'")
        assert world.error("work", "admin.vm.Pause") == error
        world.api("work", "admin.vm.Unpause")
        seen = names(events.until("domain-unpaused"), "work")
    assert seen == ["domain-pre-paused", "domain-paused", "domain-pre-unpaused", "domain-unpaused"]
    assert world.error("work", "admin.vm.Unpause") == ("QubesVMNotPausedError", "Domain is not paused: 'work'")


def test_a_qube_is_created_and_removed(world: World) -> None:
    with world.events() as events:
        world.api("dom0", "admin.vm.Create.AppVM+fedora", "name=new label=green")
        events.until("domain-add")
        assert events.next() == ("new", "domain-tag-add:created-by-dom0", {"tag": "created-by-dom0"})
        assert world.prop("new", "template") == "fedora"
        assert world.prop("new", "netvm") == "sys-firewall"
        assert (world.folder / "lib/appvms/new").is_dir()
        world.api("new", "admin.vm.Remove")
        assert events.until("domain-delete")[-1] == ("", "domain-delete", {"vm": "new"})
    assert world.error("new", "admin.vm.List")[0] == "QubesVMNotFoundError"
    assert not (world.folder / "lib/appvms/new").exists()


@pytest.mark.parametrize(
    ("method", "payload", "name"),
    [
        ("AppVM", "name=work label=red", "QubesVMAlreadyExistsError"),
        ("AppVM", "name=new label=pink", "QubesLabelNotFoundError"),
        ("AppVM", "name=new", "ProtocolError"),
        ("AppVM", "name=1new label=red", "QubesValueError"),
        ("AppVM", "name=new label=red name=x", "ProtocolError"),
        ("AppVM", "name=new label=red pool=x", "ProtocolError"),
        ("AppVM+nosuch", "name=new label=red", "QubesVMNotFoundError"),
        ("StandaloneVM+fedora", "name=new label=red", "ProtocolError"),
        ("AdminVM", "name=new label=red", "ProtocolError"),
    ],
)
def test_a_wrong_creation_is_refused(halted: World, method: str, payload: str, name: str) -> None:
    assert halted.error("dom0", f"admin.vm.Create.{method}", payload)[0] == name
    assert "new" not in halted.api("dom0", "admin.vm.List")


def test_what_is_in_use_is_not_removed(world: World) -> None:
    assert world.error("work", "admin.vm.Remove") == ("QubesVMNotHaltedError", "Domain is not powered off: 'work'")
    assert world.error("fedora", "admin.vm.Remove")[0] == "QubesVMInUseError"
    assert world.error("dom0", "admin.vm.Remove") == ("QubesVMInUseError", "'dom0' cannot be removed")


def test_a_disposable_takes_after_its_template_and_vanishes(world: World) -> None:
    world.api("dvm", "admin.vm.feature.Set+net.fake-ip", "192.168.1.128")
    world.api("dvm", "admin.vm.firewall.Set", "action=drop\n")
    assert world.error("work", "admin.vm.CreateDisposable")[0] == "QubesException"
    name = world.api("dvm", "admin.vm.CreateDisposable")
    assert world.prop(name, "ip") == "10.138.0.1"
    assert world.prop(name, "netvm") == "sys-firewall"
    assert world.prop(name, "visible_ip") == "192.168.1.128"
    assert world.api(name, "admin.vm.firewall.Get") == "action=drop\n"
    world.api(name, "admin.vm.Start")
    with world.events() as events:
        world.api(name, "admin.vm.Kill")
        events.until("domain-delete")
    assert world.error(name, "admin.vm.List")[0] == "QubesVMNotFoundError"


def test_a_clone_is_like_its_original_but_for_the_address(world: World) -> None:
    world.api("work", "admin.vm.tag.Set+office")
    world.api("work", "admin.vm.feature.Set+menu", "a b")
    world.api("work", "admin.vm.firewall.Set", "action=drop proto=icmp\naction=accept\n")
    clone(world.socket, "work", "work-2")
    for method in ("feature.List", "firewall.Get"):
        assert world.api("work-2", f"admin.vm.{method}") == world.api("work", f"admin.vm.{method}")
    assert world.prop("work-2", "label") == "blue"
    assert world.api("work-2", "admin.vm.tag.List") == "created-by-dom0\noffice\n"
    assert world.prop("work-2", "ip") != world.prop("work", "ip")
    with pytest.raises(ApiError, match="already exists"):
        clone(world.socket, "work", "work-2")


def test_qubesd_can_be_restarted_while_qubes_run(world: World) -> None:
    world.api("work", "admin.vm.tag.Set+kept")
    world.set("work", "ip", "10.137.7.7")
    world.api("personal", "admin.vm.property.Reset+netvm")
    world.api("work", "admin.vm.Pause")
    before = {n: world.api(n, "admin.vm.property.GetAll") for n in ("sys-net", "work", "personal", "dvm", "fedora")}
    asked = len(world.xen.asked)
    world.stop()
    world.start()
    assert {name: world.api(name, "admin.vm.property.GetAll") for name in before} == before
    assert world.state("work") == "Paused"
    assert world.state("sys-net") == "Running"
    assert world.api("work", "admin.vm.tag.List") == "kept\n"
    assert {op for op, _ in world.xen.asked[asked:]} == {"subscribe", "list"}
    world.api("work", "admin.vm.Unpause")
    world.api("work", "admin.vm.Kill")
    eventually(lambda: not list((world.folder / "run").glob("qubesdb.work*.sock")), "the end of its QubesDB daemon")
    assert world.state("work") == "Halted"
