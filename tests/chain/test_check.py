# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""check finds the hop that loses the packet, and leaves nothing behind."""

import os
import select
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lab.client import ApiError
from portfwd.api.forwards import parse_forwards
from portfwd.wire import limits
from portfwd.wire.values import QubeName
from tests.chain.fault_table import FAULTS, Fault
from tests.chain.faults import WEB, write
from tests.chain.world import LAPTOP, SYS_NET, Ask, World, says, wait_until

BOTH = "forwardtype=external srcports=443 dstports=8443"
HOPS = ("sys-net", "sys-firewall", "work")
OPEN = [
    ("external", qube) for qube in ("dmz", "work", "masked", "veiled", "media", "deep", "untrusted", "sys-firewall")
]
OPEN += [("internal", qube) for qube in ("dmz", "work", "masked", "media")]
SERVICE = f"/etc/qubes-rpc/{limits.PROBE_SERVICE}"
SILENT = "192.168.1.254"
"""The address that sys-net takes for a probe's client: nobody has it."""


def check(world: World, qube: str, rule: str, client: str = "") -> list[dict[str, str]]:
    """The lines of Set+forward.check for a rule as it was typed, as words; the verdict last."""
    [parsed] = parse_forwards(f"action=forward {rule.partition(' expire=')[0]}\n")
    payload = f"rule={parsed.id(QubeName(qube))}" + (f" client={world.ip.get(client, client)}" if client else "")
    lines = world.lab.api(qube, "admin.vm.firewall.Set", "forward.check", payload).splitlines()
    found = []
    for line in lines:
        head, _, text = line.partition(" text=")
        found.append(dict(word.split("=", 1) for word in head.split(" ")) | ({"text": text} if text else {}))
    return found


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.title.replace(" ", "-"))
def test_the_hop_and_the_cause_are_named(world: World, fault: Fault) -> None:
    world.replace(fault.qube, fault.rule)
    with fault.make(world):
        lines = check(world, fault.qube, fault.rule, fault.client)
    assert lines[-1].get("verdict") == f"{fault.hop}:{fault.cause}", lines
    bad = next(words for words in lines if words.get("result") == "bad")
    assert (bad["hop"], bad["cause"], bad["text"]) == (fault.hop, fault.cause, fault.says)


@pytest.mark.parametrize(("kind", "qube"), OPEN)
def test_a_healthy_forward_is_open(world: World, kind: str, qube: str) -> None:
    rule = BOTH.replace("external", kind)
    world.replace(qube, rule)
    lines = check(world, qube, rule)
    assert {words["result"] for words in lines[:-1]} <= {"ok", "hint"}
    assert lines[-1] == {"verdict": "open"}
    assert [words["hop"] for words in lines if words.get("cause") == "passed"][-1] == qube


def hear(pipe: int, seconds: float, word: bytes) -> None:
    """In a host of the LAN: tell whether it hears, and then how many frames with these bytes in them came by."""
    found, deadline = 0, time.monotonic() + seconds
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as ear, os.fdopen(pipe, "w") as told:
        print("hears", file=told, flush=True)
        while (left := deadline - time.monotonic()) > 0:
            if select.select([ear], [], [], left)[0]:
                found += word in ear.recv(2000)
        print(found, file=told)


def links(world: World) -> dict[str, str]:
    return {hop: world.output(hop, "ip", "-o", "link") for hop in HOPS}


def test_a_probe_leaves_nothing_behind(world: World) -> None:
    world.replace("work", BOTH)
    assert check(world, "work", BOTH)[-1] == {"verdict": "open"}
    rules = {hop: world.ruleset(hop) for hop in HOPS}
    cards = links(world)
    for _ in range(3):
        assert check(world, "work", BOTH)[-1] == {"verdict": "open"}
    assert {hop: world.ruleset(hop) for hop in HOPS} == rules
    assert "qubes-port-forward-probe" not in "".join(rules.values())
    assert links(world) == cards
    for hop in HOPS:
        listed = world.lab.run(hop, ["conntrack", "-L"], capture_output=True, text=True).stdout
        assert SILENT not in listed


def test_no_client_on_the_lan_hears_of_a_probe(world: World) -> None:
    """Neither an answer nor a question for the address that nobody has."""
    world.replace("work", WEB)
    read_end, write_end = os.pipe()
    call = world.lab.start_call("phone", hear, write_end, 1.5, socket.inet_aton(SILENT))
    os.close(write_end)
    with os.fdopen(read_end) as told:
        assert told.readline() == "hears\n"
        assert check(world, "work", WEB)[-1] == {"verdict": "open"}
        assert told.readline() == "0\n"
    call.wait()


def test_a_probe_cuts_nobody(world: World) -> None:
    rule = "forwardtype=external proto=tcp srcports=443 dstports=7502"
    world.replace("work", rule)
    held = world.hold("laptop", SYS_NET, 443, "work", 7502)
    assert check(world, "work", rule)[-1] == {"verdict": "work:no-server"}
    assert held.lives


def test_a_probe_is_no_hit(world: World) -> None:
    world.replace("work", WEB)
    world.expect({Ask("laptop", SYS_NET, 443): says("work", 8443, LAPTOP)})
    before = hits(world)
    assert before == {"1"}
    assert check(world, "work", WEB)[-1] == {"verdict": "open"}
    assert hits(world) == before


def hits(world: World) -> set[str]:
    return {words["hits"] for words in world.status("work") if words.get("hits", "0") not in ("0", "-")}


def read(path: str) -> str:
    """In a machine."""
    return Path(path).read_text()


@pytest.mark.parametrize(
    "script", ["exec sleep 1000\n", "exec cat /dev/zero\n", "yes '\\033[2J'\n", "echo version=1 ways=2 agent=yes\n"]
)
def test_a_hostile_hop_costs_only_its_own_words(world: World, script: str) -> None:
    world.replace("work", WEB)
    old = world.lab.call("sys-firewall", read, SERVICE)
    world.lab.call("sys-firewall", write, SERVICE, script)
    try:
        lines = check(world, "work", WEB)
    finally:
        world.lab.call("sys-firewall", write, SERVICE, old)
    assert [words for words in lines if words.get("result") == "bad"] == []
    assert "sys-net" in {words["hop"] for words in lines if words.get("result") == "ok"}
    assert "\033" not in str(lines)


def test_nothing_stays_of_a_probe_that_is_killed(world: World) -> None:
    way = f"{'0' * 16}.4.tcp port=443 sport=45000 client=- kind=relay side=uplink listen=443-443 source=neighbours"
    request = f"version=1 ways=1 role=entrance\n{way} to=10.137.0.99 ports=443-443\n"
    argv = [sys.executable, "-I", "-m", "portfwd.agent.answers.probe_service"]
    with world.lab.popen("sys-net", argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as probe:
        assert probe.stdin is not None and probe.stdout is not None
        probe.stdin.write(request)
        probe.stdin.flush()
        while probe.stdout.readline() != "armed=yes\n":
            assert probe.poll() is None
        assert "qubes-port-forward-probe" in world.output("sys-net", "nft", "list", "tables")
        probe.kill()
        probe.wait()
        probe.stdin.close()
    wait_until(
        lambda: "qubes-port-forward-probe" not in world.output("sys-net", "nft", "list", "tables"),
        lambda: "the kernel has removed the table",
    )


def test_words_that_make_no_sense_are_refused(world: World) -> None:
    for payload in ("rule=x", "rule=0123456789abcdef client=nobody"):
        with pytest.raises(ApiError, match="is not"):
            world.lab.api("work", "admin.vm.firewall.Set", "forward.check", payload)
