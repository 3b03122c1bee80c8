# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Units of a qube come up side by side, and what is slow holds up only what waits for it."""

import json
import socket
import time

from lab.client import Lab
from lab.dom0 import exchange, gather
from lab.probes import ask_tcp
from portfwd.wire.limits import STATUS_BASE
from tests.lab.world import interfaces, serving, wait_until

LAPTOP = "192.168.1.20"
SLOW = 4.0
"""Seconds; what is asked meanwhile takes some hundredths."""


def test_f28_a_qube_counts_as_started_before_its_agent_is_ready(lab: Lab) -> None:
    lab.slow("personal", "agent", SLOW)
    began = time.monotonic()
    try:
        lab.restart("personal")
        assert "state=Running" in lab.api("personal", "admin.vm.List")
        assert not speaks(lab, "personal")
    finally:
        lab.slow("personal", "agent", 0)
    wait_until(lambda: speaks(lab, "personal"), "the agent speaks")
    assert time.monotonic() - began > SLOW


def test_f28_an_agent_speaks_before_its_net_qube_forwards(lab: Lab) -> None:
    lab.slow("sys-disp", "network", SLOW)
    try:
        lab.stop("sys-disp", force=True)
        starting = lab.start_call("dom0", exchange, b"admin.vm.Start+ dom0 name sys-disp\0")
        wait_until(lambda: "sys-disp" in [machine.name for machine in lab.machines()], "sys-disp is there")
        wait_until(lambda: speaks(lab, "sys-disp"), "the agent speaks")
        assert not forwards(lab, "sys-disp")
        assert "state=Running" not in lab.api("sys-disp", "admin.vm.List")
        assert starting.wait() == 0
        assert "state=Running" in lab.api("sys-disp", "admin.vm.List")
        assert forwards(lab, "sys-disp")
    finally:
        lab.slow("sys-disp", "network", 0)
    lab.converge()


def test_f28_a_detach_that_waits_for_the_script_of_a_vif_holds_up_nobody_else(lab: Lab) -> None:
    """The only loop of the hypervisor waited, up to 20 seconds."""
    lab.slow("sys-disp", "vif", SLOW)
    try:
        lab.set("untrusted", "netvm", "sys-disp")
        began = time.monotonic()
        detaching = lab.start_call("dom0", ask_xen, {"op": "detach", "name": "untrusted"})
        while time.monotonic() - began < SLOW / 2:
            asked = time.monotonic()
            lab.machines()
            assert time.monotonic() - asked < SLOW / 4
            time.sleep(0.05)
        assert interfaces_of(lab, "untrusted") == ["eth0", "lo"]
        assert detaching.wait() == 0
        assert interfaces_of(lab, "untrusted") == ["lo"]
        assert time.monotonic() - began > SLOW / 2
    finally:
        lab.slow("sys-disp", "vif", 0)
        lab.set("untrusted", "netvm", "sys-disp")
    lab.converge()


def test_f28_a_qube_that_restarts_while_the_script_of_its_vif_runs_has_its_network_afterwards(lab: Lab) -> None:
    lab.slow("sys-disp", "vif", SLOW / 2)
    try:
        lab.set("untrusted", "netvm", "sys-disp")
        lab.restart("untrusted")
    finally:
        lab.slow("sys-disp", "vif", 0)
    lab.converge()
    (address,) = (words["ip"] for name, words in lab.call("dom0", gather).items() if name == "untrusted")
    table = lab.run("sys-disp", ["nft", "list", "set", "ip", "qubes", "downstream"], capture_output=True, text=True)
    assert address in table.stdout
    vifs = [name for name in interfaces_of(lab, "sys-disp") if name.startswith("vif")]
    assert len(vifs) == 1
    with serving(lab, "laptop", "--tcp", "7100"):
        assert lab.call("untrusted", ask_tcp, LAPTOP, 7100).startswith("laptop")


def speaks(lab: Lab, qube: str) -> bool:
    """Whether the qube's agent has said anything in this run."""
    return lab.run(qube, ["qubesdb-read", "-q", STATUS_BASE], capture_output=True).returncode == 0


def forwards(lab: Lab, qube: str) -> bool:
    return lab.run(qube, ["grep", "-q", "1", "/proc/sys/net/ipv4/ip_forward"]).returncode == 0


def interfaces_of(lab: Lab, qube: str) -> list[str]:
    return lab.call(qube, interfaces)


def ask_xen(request: dict[str, str]) -> None:
    """In dom0: one operation of the hypervisor, beside those that the test itself asks for."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.connect("/run/xen.sock")
        client.sendall(json.dumps(request).encode() + b"\n")
        with client.makefile("rb") as answer:
            assert json.loads(answer.readline()) == {"ok": True}
