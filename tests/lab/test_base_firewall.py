# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The base firewall of the qubes, with real packets through the default laboratory."""

import contextlib
from collections.abc import Iterator

import pytest

from lab import probes
from lab.client import Lab
from tests.lab.world import send_from, serving, wait_until

WORK, PERSONAL, SYS_FIREWALL = "10.137.0.5", "10.137.0.6", "10.137.0.2"
WORK6 = "fd09:24ef:4179::a89:5"
SYS_NET = "192.168.1.10"
PORT = 7001


@pytest.fixture(scope="module", autouse=True)
def servers(lab: Lab) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for machine in ("laptop", "server", "work", "sys-firewall"):
            stack.enter_context(serving(lab, machine, "--tcp", str(PORT)))
        yield


def dropped(lab: Lab, qube: str, family: str = "ip") -> int:
    """Packets that the qube's antispoof chain has dropped."""
    text = lab.run(qube, ["nft", "list", "chain", family, "qubes", "antispoof"], capture_output=True, text=True).stdout
    return int(text.partition("counter packets ")[2].split()[0])


def test_addresses_are_those_that_qubesd_gave(lab: Lab) -> None:
    words = lab.drawing().split()
    assert {WORK, PERSONAL, SYS_FIREWALL, WORK6} <= set(words)


def test_work_reaches_the_lan_and_is_masqueraded(lab: Lab) -> None:
    answer = lab.call("work", probes.ask_tcp, "192.168.1.20", PORT)
    assert answer.startswith(f"laptop port {PORT} to {SYS_NET} port ")


def test_work_reaches_the_internet_through_the_home_router(lab: Lab) -> None:
    assert lab.call("work", probes.ask_tcp, "203.0.113.80", PORT).startswith(f"server port {PORT} to 203.0.113.1 port ")


def test_work_reaches_the_internet_by_ipv6(lab: Lab) -> None:
    # IPv6 is masqueraded by sys-net and only routed by the home router.
    answer = lab.call("work", probes.ask_tcp, "2001:db8:ffff::50", PORT)
    assert answer.startswith(f"server port {PORT} to 2001:db8:1::a port ")


def test_lan_host_cannot_reach_the_qubes_even_with_a_route(lab: Lab) -> None:
    lab.run("laptop", ["ip", "route", "add", "10.137.0.0/16", "via", SYS_NET], check=True)
    try:
        # sys-net itself knows no way to work, which is two net qubes further in; to its own client it lets nobody.
        assert lab.call("laptop", probes.ask_tcp, WORK, PORT) == "unreachable"
        assert lab.call("laptop", probes.ask_tcp, SYS_FIREWALL, PORT) == "timeout"
    finally:
        lab.run("laptop", ["ip", "route", "del", "10.137.0.0/16", "via", SYS_NET], check=True)


def test_lan_host_cannot_reach_sys_net_itself(lab: Lab) -> None:
    with serving(lab, "sys-net", "--tcp", "7002"):
        assert lab.call("laptop", probes.ask_tcp, SYS_NET, 7002) == "timeout"
        assert lab.call("sys-net", probes.ask_tcp, SYS_NET, 7002).startswith("sys-net")


def test_internet_cannot_reach_the_lan(lab: Lab) -> None:
    assert lab.call("server", probes.ask_tcp, "192.168.1.20", PORT) == "timeout"
    assert lab.call("server", probes.ask_tcp, "2001:db8:1::14", PORT) == "timeout"


def test_qube_cannot_reach_its_neighbour_or_its_net_qube(lab: Lab) -> None:
    assert lab.call("personal", probes.ask_tcp, WORK, PORT) == "timeout"
    assert lab.call("personal", probes.ask_tcp, SYS_FIREWALL, PORT) == "unreachable"


def test_antispoof_drops_a_stolen_address(lab: Lab) -> None:
    # Untracked packets are not masqueraded: else work's own base firewall would put its address right.
    evade = "add table ip thief; add chain ip thief out { type filter hook output priority raw; }; "
    lab.run("work", ["nft", evade + "add rule ip thief out notrack"], check=True)
    before = dropped(lab, "sys-firewall")
    try:
        lab.call("work", send_from, PERSONAL, "192.168.1.20", PORT)
        wait_until(lambda: dropped(lab, "sys-firewall") > before, "sys-firewall drops the spoofed packet")
        lab.call("work", send_from, WORK, "192.168.1.20", PORT)
        assert dropped(lab, "sys-firewall") == before + 1
    finally:
        lab.run("work", ["nft", "delete table ip thief"], check=True)


def test_dom0_has_no_network(lab: Lab) -> None:
    shown = lab.run("dom0", ["ip", "-brief", "link"], capture_output=True, text=True).stdout
    assert [line.split()[0] for line in shown.splitlines()] == ["lo"]
