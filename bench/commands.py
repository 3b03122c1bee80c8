# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""./run bench commands: how long a list of 200 forwards over 40 qubes takes, and what the start of each command costs.

All in one run in a laboratory of its own, each beside `python3 -c pass`, in turn, so that what else the machine does
hits both. The 40 qubes are real: each has an agent that is asked for its report.
"""

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from lab.client import Lab

QUBES, EACH = 40, 5
ROUNDS = 15
AIM_LIST, AIM_START = 300.0, 150.0
"""Milliseconds: of `list` as its user waits, and of CPU for any command's start."""
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


def measure(lab: Lab, report: Callable[[str], None]) -> str:
    """The table."""
    names = [f"qube-{number:02}" for number in range(QUBES)]
    for place, name in enumerate(names):
        ports = range(10000 + place * EACH, 10000 + (place + 1) * EACH)
        rules = "".join(f"action=forward forwardtype=external proto=tcp srcports={port}\n" for port in ports)
        lab.api(name, "admin.vm.firewall.Set", "forward", rules)
    report("forwards are stored; waiting for the last hop")
    pending, deadline = True, time.monotonic() + 120
    while pending and time.monotonic() < deadline:
        told = json.loads(
            lab.run("dom0", ["qvm-port-forward", "list", "--json"], capture_output=True, text=True).stdout
        )
        pending = len(told["forwards"]) != QUBES * EACH or any(f["state"] != "no-server" for f in told["forwards"])
    if pending:
        raise RuntimeError("not all forwards are open")
    python = [sys.executable, "-c", "pass"]
    starts = [["qvm-port-forward", command, "--help"] for command in COMMANDS] + [["qvm-firewall", "--help"]]
    cases = [python, ["qvm-port-forward", "list"], ["qvm-port-forward", "list", names[0]], *starts]
    report(f"{ROUNDS} rounds of {len(cases)} programs")
    costs = lab.call("dom0", rounds, cases, ROUNDS)
    base = statistics.median(cpu for _, cpu in costs[0])
    text = "| program | ms, median | ms, p90 | ms of CPU | CPU / python3 -c pass |\n|---|---:|---:|---:|---:|\n"
    for argv, each in zip(cases, costs, strict=True):
        walls, cpu = sorted(wall for wall, _ in each), statistics.median(cpu for _, cpu in each)
        words = "python3 -c pass" if argv is python else " ".join(argv)
        middle, late = statistics.median(walls), walls[int(len(walls) * 0.9)]
        text += f"| `{words}` | {middle:.0f} | {late:.0f} | {cpu:.0f} | {cpu / base:.1f} |\n"
    return text


def main() -> int:
    """Print the table."""
    started = time.monotonic()

    def report(words: str) -> None:
        print(f"{time.monotonic() - started:5.1f} s  {words}", file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory() as folder:
        topology = Path(folder) / "many.toml"
        topology.write_text(
            TOPOLOGY + "".join(f'[qubes.qube-{number:02}]\nnetvm = "sys-firewall"\n' for number in range(QUBES))
        )
        report(f"bringing a laboratory with {QUBES} qubes up")
        with Lab(f"bench-{os.getpid()}", str(topology)) as lab:
            text = measure(lab, report)
    print(
        f"{QUBES * EACH} forwards over {QUBES} qubes. Aims: list {AIM_LIST:.0f} ms, a start {AIM_START:.0f} ms of CPU"
    )
    print(f"load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores\n\n{text}", end="")
    return 0
