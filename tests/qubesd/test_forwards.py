# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Forwards through the API of qubesd with the extension: stored, planned and published as the network changes."""

import time

from portfwd.wire.entry import Commit
from tests.qubesd.world import World, eventually

GET, SET = "admin.vm.firewall.Get", "admin.vm.firewall.Set"
WEB = "action=forward forwardtype=external proto=tcp srcports=443-443 dstports=8443-8443\n"


def entries(world: World, name: str) -> list[str]:
    return sorted(value.decode() for value in world.qdb(name).multiread("/qubes-port-forward/").values())


def relays_to(world: World, name: str) -> str | None:
    found = entries(world, name)
    return found[0].split(" to=")[1].split()[0] if found else None


def opened(world: World, *names: str) -> None:
    eventually(lambda: all(entries(world, name) for name in names), f"an entry in each of {names}")


def closed(world: World, *names: str) -> None:
    eventually(lambda: not any(entries(world, name) for name in names), f"the end of the entries in {names}")


def test_a_rule_opens_the_whole_chain_and_its_removal_closes_it(world: World) -> None:
    assert world.api("work", f"{GET}+forward") == ""
    world.api("work", f"{SET}+forward", WEB)
    assert world.api("work", f"{GET}+forward") == WEB
    opened(world, "sys-net", "sys-firewall", "work")
    assert relays_to(world, "sys-net") == "10.137.0.2"
    assert relays_to(world, "sys-firewall") == "10.137.0.4"
    assert entries(world, "work")[0].startswith("kind=accept")
    commit = world.read("sys-net", "/qubes-port-forward")
    assert commit is not None
    assert Commit.parse(commit).entries == 1
    world.api("work", f"{SET}+forward", "")
    assert world.api("work", f"{GET}+forward") == ""
    closed(world, "sys-net", "sys-firewall", "work")


def test_ordinary_rules_and_forwards_do_not_touch_each_other(world: World) -> None:
    world.api("work", SET, "action=drop\n")
    world.api("work", f"{SET}+forward", WEB)
    assert world.api("work", GET) == "action=drop\n"
    world.api("work", SET, "action=accept\n")
    assert world.api("work", f"{GET}+forward") == WEB
    text = world.firewall_file("work").read_text()
    assert text.index("<rules>") < text.index("<forwards>")
    assert world.firewall_of("sys-firewall", "10.137.0.4") == {"policy": "drop", "0000": "action=accept"}


def test_a_wrong_rule_is_refused_with_words_that_a_stock_client_can_show(world: World) -> None:
    name, text = world.error("work", f"{SET}+forward", "action=forward forwardtype=external srcports=80443-80443\n")
    assert name == "QubesValueError"
    assert "80443" in text
    name, text = world.error("work", f"{SET}+forward", "action=forward \u00e9\n")
    assert name == "QubesValueError"
    assert "%" not in text
    assert world.api("work", f"{GET}+forward") == ""


def test_two_editors_do_not_overwrite_each_other(world: World) -> None:
    assert world.error("work", f"{SET}+forward.{'0' * 32}", WEB)[0] == "ForwardsChangedError"
    assert world.api("work", f"{GET}+forward") == ""


def test_only_known_arguments_are_taken(world: World) -> None:
    for argument in ("forwards", "forward.nothing", "x.forward"):
        assert world.error("work", f"{GET}+{argument}") == ("ProtocolError", "unexpected argument")
    assert world.error("work", f"{SET}+forwards", WEB) == ("ProtocolError", "unexpected argument")


def test_the_views_show_every_hop(world: World) -> None:
    world.api("work", f"{SET}+forward", WEB)
    lines = [line for line in world.api("work", f"{GET}+forward.plan").splitlines() if line.startswith("rule=")]
    assert [line.split(" hop=")[1].split()[0] for line in lines] == ["sys-net", "sys-firewall", "work"]
    eventually(lambda: world.api("work", f"{GET}+forward.status").count("state=written") == 3, "written on all hops")


def test_forwards_follow_the_network(world: World) -> None:
    world.api("sys-other", "admin.vm.Start")
    world.api("work", f"{SET}+forward", WEB)
    opened(world, "sys-net", "sys-firewall", "work")
    world.set("work", "netvm", "sys-other")
    opened(world, "sys-other")
    closed(world, "sys-net", "sys-firewall")
    world.set("work", "ip", "10.137.9.9")
    eventually(lambda: relays_to(world, "sys-other") == "10.137.9.9", "the new address")
    world.api("work", "admin.vm.Kill")
    closed(world, "sys-other")
    world.forget_qdb("work")
    world.api("work", "admin.vm.Start")
    opened(world, "sys-other", "work")
    world.api("sys-other", "admin.vm.tag.Set+anon-gateway")
    closed(world, "sys-other", "work")
    world.api("sys-other", "admin.vm.tag.Remove+anon-gateway")
    opened(world, "sys-other", "work")


def test_a_net_qube_has_its_entries_before_it_runs(world: World) -> None:
    world.api("work", f"{SET}+forward", WEB)
    opened(world, "sys-firewall")
    world.api("sys-firewall", "admin.vm.Kill")
    closed(world, "sys-net")
    world.forget_qdb("sys-firewall")
    world.api("sys-firewall", "admin.vm.Start")
    opened(world, "sys-net", "sys-firewall")


def test_u5_a_restart_of_qubesd_keeps_and_repairs(world: World) -> None:
    world.api("work", f"{SET}+forward", WEB)
    opened(world, "sys-net", "sys-firewall", "work")
    before = {name: world.read(name, "/qubes-port-forward") for name in ("sys-net", "work")}
    world.stop()
    world.qdb("sys-firewall").rm("/qubes-port-forward/")
    world.start()
    opened(world, "sys-firewall")
    assert world.api("work", f"{GET}+forward") == WEB
    assert {name: world.read(name, "/qubes-port-forward") for name in before} == before


def test_a_rule_ends_at_its_time(world: World) -> None:
    world.api("work", f"{SET}+forward", WEB.replace("\n", f" expire={int(time.time()) + 2}\n"))
    opened(world, "sys-net")
    eventually(lambda: world.api("work", f"{GET}+forward") == "", "the end of the rule")
    closed(world, "sys-net", "sys-firewall", "work")
    assert "forward" not in world.firewall_file("work").read_text()


def test_a_rule_until_shutdown_ends_with_the_run_of_the_qube(world: World) -> None:
    world.api("work", f"{SET}+forward", WEB.replace("\n", " expire=shutdown\n"))
    opened(world, "sys-net")
    world.api("work", "admin.vm.Kill")
    closed(world, "sys-net")
    assert world.api("work", f"{GET}+forward") == ""


def test_u3_u4_a_clone_and_a_disposable_have_no_forwards(world: World) -> None:
    world.api("dvm", f"{SET}+forward", WEB)
    name = world.api("dvm", "admin.vm.CreateDisposable")
    assert world.api(name, f"{GET}+forward") == ""
    world.api(name, SET, "action=accept\n")
    assert world.api(name, f"{GET}+forward") == ""


def test_damaged_forwards_close_and_say_so_while_ordinary_rules_are_shown(world: World) -> None:
    world.api("work", f"{SET}+forward", WEB)
    opened(world, "sys-net")
    world.stop()
    path = world.firewall_file("work")
    path.write_text(path.read_text().replace("external", "everywhere"))
    damaged = path.read_text()
    world.start()
    closed(world, "sys-net", "sys-firewall")
    assert world.api("work", GET) == "action=accept\n"
    assert world.error("work", f"{GET}+forward")[0] == "ForwardsUnreadableError"
    assert world.error("work", f"{SET}+forward", "")[0] == "ForwardsUnreadableError"
    name, text = world.error("work", SET, "action=drop\n")
    assert name == "QubesException"
    assert "everywhere" in text
    assert path.read_text() == damaged
    assert world.firewall_of("sys-firewall", "10.137.0.4") == {"policy": "drop", "0000": "action=accept"}
