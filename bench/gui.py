# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""./run bench gui: the dashboard with 1,000 forwards over 100 qubes of a laboratory."""

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.commands import TOPOLOGY, wait_until
from bench.report import machine
from lab.client import Lab
from lab.inside.root import PROJECT

QUBES, EACH, ROUNDS = 100, 10, 5
PAGE = """# Benchmark of the dashboard

Written by `./run bench gui`: {machine}.

{forwards} forwards over {qubes} qubes in the laboratory, each with an agent that is asked; the program as a user starts
it, on a platform without a screen (Qt's offscreen), {rounds} times.

| what | median | worst | aim |
|---|---:|---:|---:|
{table}
An event is a change of one forward by someone else. The dashboard then asked about {asked} of {qubes} qubes, and drew
{touched} of {forwards} rows anew.
"""


def start(expected: int, qube: str) -> dict[str, Any]:
    """In dom0: one run of the program."""
    argv = [sys.executable, "-m", "bench.gui_window", str(time.monotonic()), str(expected), qube]
    read_end, write_end = os.pipe()
    env = {
        **os.environ,
        "PYTHONPATH": f"{PROJECT}:{PROJECT / 'src'}",
        "QT_QPA_PLATFORM": "offscreen",
        "QT_LOGGING_RULES": "*=false",
    }
    pid = os.posix_spawn(argv[0], argv, env, file_actions=[(os.POSIX_SPAWN_DUP2, write_end, 1)])
    os.close(write_end)
    with os.fdopen(read_end) as pipe:
        told = pipe.read()
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0:
        raise RuntimeError("the program failed")
    found: dict[str, Any] = json.loads(told)
    return found


def run(report: Callable[[str], None]) -> str:
    """The page."""
    described = machine()
    names = [f"qube-{number:03}" for number in range(QUBES)]
    with tempfile.TemporaryDirectory() as folder:
        topology = Path(folder) / "many.toml"
        topology.write_text(TOPOLOGY + "".join(f'[qubes.{name}]\nnetvm = "sys-firewall"\n' for name in names))
        report(f"bringing a laboratory with {QUBES} qubes up")
        with Lab(f"bench-{os.getpid()}", str(topology)) as lab:
            for place, name in enumerate(names):
                ports = range(10000 + place * EACH, 10000 + (place + 1) * EACH)
                rules = "".join(f"action=forward forwardtype=external proto=tcp srcports={port}\n" for port in ports)
                lab.api(name, "admin.vm.firewall.Set", "forward", rules)
            report("forwards are stored; waiting for the last hop")
            wait_until(lab, lambda told: len(told) == QUBES * EACH and {f["state"] for f in told} == {"no-server"})
            found = []
            for number in range(ROUNDS):
                found.append(lab.call("dom0", start, QUBES * EACH, names[number]))
                report(f"round {number + 1}: all rows after {found[-1]['filled']:.2f} s")
    return PAGE.format(
        machine=described,
        forwards=QUBES * EACH,
        qubes=QUBES,
        rounds=ROUNDS,
        table=_table(found),
        asked=max(len(set(each["event"]["asked"])) for each in found),
        touched=max(sum(each["event"]["touched"]) for each in found),
    )


def _table(found: list[dict[str, Any]]) -> str:
    rows: list[tuple[str, list[float], str]] = [
        ("start of the program -> the window is there", [1000 * each["shown"] for each in found], "1,000 ms"),
        ("start of the program -> all rows, as their agents told", [1000 * each["filled"] for each in found], ""),
        ("one step of scrolling, drawing included: middle", [each["scroll"]["p50"] for each in found], "16 ms"),
        ("one step of scrolling: 99 of 100", [each["scroll"]["p99"] for each in found], "16 ms"),
        ("the picture of the network", [1000 * each["picture"] for each in found], ""),
        ("an event -> its row shows it", [1000 * each["event"]["row"] for each in found], ""),
    ]
    return "".join(
        f"| {what} | {statistics.median(values):.0f} ms | {max(values):.0f} ms | {aim} |\n"
        for what, values, aim in rows
    )
