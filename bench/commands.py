# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""./run bench commands: how long a list of 200 forwards over 40 qubes takes, and what the start of each command costs.

All in one run in a laboratory of its own, each beside `python3 -c pass`, in turn, so that what else the machine does
hits both. The 40 qubes are real: each has an agent that is asked for its report.
"""

import contextlib
import json
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.report import machine
from lab.client import Lab
from lab.show.demo import SYS_NET, serve

QUBES, EACH = 40, 5
ROUNDS = 15
COMMANDS = ("list", "add", "edit", "remove", "pause", "resume", "show", "kill", "plan", "check")
TOPOLOGY = """
[networks]
lan = { ip = "192.168.1.0/24" }
[hosts]
laptop = { network = "lan", ip = "192.168.1.20" }
[qubes.sys-net]
provides_network = true
nics.ens6 = { network = "lan", ip = "192.168.1.10" }
[qubes.sys-firewall]
netvm = "sys-net"
provides_network = true
"""
PAGE = """# Benchmark of the commands

Written by `./run bench commands`: {machine}.

{forwards} forwards over {qubes} qubes in the laboratory. Every `list` asks the agents of each qube and of both net
qubes. The programs take turns, {rounds} rounds. Aims: `list` in 300 ms as its user waits, the
interpreter's start included, and 150 ms of CPU for the start of any command.

{table}
To count connections an agent walks the kernel's connection table, unless its qube has no connection at all. In the
laboratory all qubes share one kernel and its table, sized for the whole machine; each walk goes over all of it. A real
qube has a table of its own, sized for the qube.
"""
Cost = tuple[float, float]
"""Milliseconds that passed, and of CPU."""


def run_timed(argv: Sequence[str]) -> Cost:
    """In a machine of the laboratory: run a program to its end, its output thrown away."""
    begin = time.monotonic()
    null = os.open(os.devnull, os.O_RDWR)
    pid = os.posix_spawnp(
        argv[0], list(argv), os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, null, n) for n in (0, 1, 2)]
    )
    _, status, used = os.wait4(pid, 0)
    took = time.monotonic() - begin
    os.close(null)
    if os.waitstatus_to_exitcode(status) != 0:
        raise RuntimeError(f"{' '.join(argv)} ended with {os.waitstatus_to_exitcode(status)}")
    return took * 1000, (used.ru_utime + used.ru_stime) * 1000


def rounds(cases: Sequence[Sequence[str]], number: int) -> list[list[Cost]]:
    """In a machine: each program in turn, `number` times; for each what it cost."""
    found: list[list[Cost]] = [[] for _ in cases]
    for _ in range(number):
        for costs, argv in zip(found, cases, strict=True):
            costs.append(run_timed(argv))
    return found


def hold(host: str, ports: Sequence[int], control: socket.socket) -> None:
    """In the laptop: connect to each port, tell so, and keep the connections until the control socket ends."""
    held = [socket.create_connection((host, port), 5) for port in ports]
    with control:
        control.sendall(b"connected")
        control.recv(1)
    for connection in held:
        connection.close()


@contextlib.contextmanager
def in_use(lab: Lab, names: Sequence[str], report: Callable[[str], None]) -> Iterator[None]:
    """A server in every qube, and a connection of the laptop to each."""
    with contextlib.ExitStack() as ends:
        report("a server in every qube")
        for place, name in enumerate(names):
            server = serve(lab, name, "--tcp", f"{first_port(place)}")
            ends.callback(server.wait)
            ends.callback(server.terminate)
        ours, theirs = socket.socketpair()
        holder = lab.start_call("laptop", hold, SYS_NET, [first_port(place) for place in range(len(names))], theirs)
        theirs.close()
        ends.callback(holder.wait)
        ends.enter_context(ours)
        ends.callback(lambda: ours.shutdown(socket.SHUT_RDWR))
        if ours.recv(16) != b"connected":
            raise RuntimeError("the laptop did not get through")
        yield


def first_port(place: int) -> int:
    """Of the forwards of one qube, which lie side by side."""
    return 10000 + place * EACH


def wait_until(lab: Lab, good: Callable[[list[dict[str, Any]]], bool]) -> None:
    """Ask for the list until it is as it should be. Raises RuntimeError."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        told = lab.run("dom0", ["qvm-port-forward", "list", "--json"], capture_output=True, text=True).stdout
        if good(json.loads(told)["forwards"]):
            return
    raise RuntimeError("not all forwards became as they should be")


def row(words: str, costs: list[Cost], base: float) -> str:
    """One line of the table."""
    walls, cpu = sorted(wall for wall, _ in costs), statistics.median(cpu for _, cpu in costs)
    middle, late = statistics.median(walls), walls[int(len(walls) * 0.9)]
    return f"| {words} | {middle:.0f} | {late:.0f} | {cpu:.0f} | {cpu / base:.1f} |\n"


def measure(lab: Lab, report: Callable[[str], None]) -> str:
    """The table."""
    names = [f"qube-{number:02}" for number in range(QUBES)]
    for place, name in enumerate(names):
        ports = range(first_port(place), first_port(place + 1))
        rules = "".join(f"action=forward forwardtype=external proto=tcp srcports={port}\n" for port in ports)
        lab.api(name, "admin.vm.firewall.Set", "forward", rules)
    report("forwards are stored; waiting for the last hop")
    wait_until(lab, lambda told: len(told) == QUBES * EACH and {f["state"] for f in told} == {"no-server"})
    python = [sys.executable, "-c", "pass"]
    lists = [["qvm-port-forward", "list"], ["qvm-port-forward", "list", names[0]]]
    starts = [["qvm-port-forward", command, "--help"] for command in COMMANDS] + [["qvm-firewall", "--help"]]
    cases = [python, *lists, *starts]
    report(f"{ROUNDS} rounds of {len(cases)} programs")
    costs = lab.call("dom0", rounds, cases, ROUNDS)
    with in_use(lab, names, report):
        wait_until(lab, lambda told: sum(f["open_connections"] or 0 for f in told) == QUBES)
        report(f"{ROUNDS} rounds of list, a connection open to every qube")
        busy = lab.call("dom0", rounds, lists[:1], ROUNDS)
    base = statistics.median(cpu for _, cpu in costs[0])
    text = "| program | ms, median | ms, p90 | ms of CPU | CPU / python3 -c pass |\n|---|---:|---:|---:|---:|\n"
    for argv, each in zip(cases, costs, strict=True):
        text += row("`python3 -c pass`" if argv is python else f"`{' '.join(argv)}`", each, base)
    return text + row("`qvm-port-forward list`, a connection open to every qube", busy[0], base)


def run(report: Callable[[str], None]) -> str:
    """The page."""
    described = machine()
    with tempfile.TemporaryDirectory() as folder:
        topology = Path(folder) / "many.toml"
        topology.write_text(
            TOPOLOGY + "".join(f'[qubes.qube-{number:02}]\nnetvm = "sys-firewall"\n' for number in range(QUBES))
        )
        report(f"bringing a laboratory with {QUBES} qubes up")
        with Lab(f"bench-{os.getpid()}", str(topology)) as lab:
            table = measure(lab, report)
    return PAGE.format(machine=described, forwards=QUBES * EACH, qubes=QUBES, rounds=ROUNDS, table=table)
