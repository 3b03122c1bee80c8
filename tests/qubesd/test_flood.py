# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""A qube that writes the one word of its QubesDB that dom0 watches, all the time: what that costs everybody else."""

import contextlib
import os
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from portfwd.base.qubesdb_client import QubesDB
from tests.qubesd.test_forwards import SET, closed, opened
from tests.qubesd.test_vpn import WAY_OUT
from tests.qubesd.world import World, qube

_SECONDS = 3.0
_RATE = 100.0
_QUBES = tuple(f"app-{number}" for number in range(4))
_FORWARDS = "".join(
    f"action=forward forwardtype=external proto=tcp srcports={{}}{number:03} dstports=8{number:03}\n"
    for number in range(150)
)


@pytest.fixture(scope="module")
def busy() -> Iterator[World]:
    """Four qubes with 150 forwards each behind a chain of two net qubes."""
    topology = {
        "qubes": [
            qube("sys-net", None, provides_network=True, nics=True),
            qube("sys-firewall", "sys-net", provides_network=True),
            *(qube(name, "sys-firewall") for name in _QUBES),
        ],
        "default_netvm": "sys-firewall",
    }
    made = World(topology)
    try:
        for name in ("sys-net", "sys-firewall", *_QUBES):
            made.running(name)
        for number, name in enumerate(_QUBES):
            made.api(name, f"{SET}+forward", _FORWARDS.format(*[f"{20 + number}"] * 150))
            opened(made, "sys-net", "sys-firewall", name)
        yield made
    finally:
        made.close()


@contextlib.contextmanager
def flood(world: World, name: str, *words: str) -> Iterator[None]:
    """Write these words in turn, a hundred times a second, over a connection of its own."""
    over = threading.Event()

    def write() -> None:
        database = QubesDB(str(world.folder / "run" / f"qubesdb.{name}.sock"))
        due = time.monotonic()
        with contextlib.closing(database):
            for number in range(100_000):
                if over.wait(max(0.0, due - time.monotonic())):
                    return
                database.write(WAY_OUT, words[number % len(words)])
                due += 1 / _RATE

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def cost(world: World) -> tuple[float, list[float]]:
    """Seconds of processor that qubesd took in some seconds, and how long each admin.vm.List of somebody waited."""
    ticks = os.sysconf("SC_CLK_TCK")

    def used() -> float:
        words = Path(f"/proc/{world.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / ticks

    before, end, waited = used(), time.monotonic() + _SECONDS, []
    while time.monotonic() < end:
        began = time.monotonic()
        world.api("dom0", "admin.vm.List")
        waited.append(time.monotonic() - began)
        time.sleep(0.03)
    return used() - before, waited


def told(what: str, seconds: float, waited: list[float]) -> str:
    p95 = statistics.quantiles(waited, n=20)[-1]
    return f"{what}: {seconds:.2f} s of processor, p50 {statistics.median(waited):.4f}, p95 {p95:.4f}"


@pytest.mark.parametrize(
    ("writer", "words"),
    [
        ("sys-firewall", ("uplink",)),
        ("sys-firewall", ("uplink", "none")),
        ("app-0", ("tunnel", "uplink")),
    ],
    ids=["the-same-word", "words-that-mean-the-same", "a-qube-that-is-no-net-qube"],
)
def test_f20_a_qube_that_writes_its_way_out_all_the_time_costs_nobody_else_anything(
    busy: World, writer: str, words: tuple[str, ...]
) -> None:
    """Each word had all qubes read, planned and told anew, five times a second."""
    calm, waited = cost(busy)
    with flood(busy, writer, *words):
        time.sleep(0.5)
        flooded, beside = cost(busy)
    print(told("calm", calm, waited), told("beside the flood", flooded, beside), sep="\n")
    # A hundred notices a second are qubesd's own business and cost a tenth of this; processor time, for it does not
    # depend on what else this machine does.
    assert flooded - calm < 0.08 * _SECONDS, (calm, flooded)


def test_f20_a_word_that_flips_a_hundred_times_a_second_is_one_tunnel(busy: World) -> None:
    """Each change shut and opened all ports: the machine did nothing else."""
    busy.api("sys-firewall", "admin.vm.feature.Set+port-forward.vpn", "")
    with flood(busy, "sys-firewall", "tunnel", "uplink"):
        closed(busy, "sys-net", "sys-firewall", *_QUBES)
        flooded, beside = cost(busy)
        closed(busy, "sys-net", "sys-firewall", *_QUBES)
    print(told("beside words that flip", flooded, beside))
    assert flooded < 0.2 * _SECONDS
    busy.qdb("sys-firewall").write(WAY_OUT, "uplink")
    opened(busy, "sys-net", "sys-firewall", *_QUBES)
