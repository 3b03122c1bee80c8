# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""./run bench forwards: 5,000 forwards of 50 qubes through a chain of three net qubes, and how others fare meanwhile.

In a laboratory of its own with real agents. All the while a client in dom0 asks qubesd for `admin.vm.List`, one call
after the other, and notes how long each takes: that is how long somebody else waits because of us.
"""

import asyncio
import contextlib
import json
import os
import select
import socket
import statistics
import struct
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from bench.commands import TOPOLOGY as TWO_NET_QUBES
from bench.commands import run_timed, wait_until
from bench.report import machine
from lab.client import Lab
from lab.dom0 import QUBESD, exchange

QUBES, EACH = 50, 100
ROUNDS = 5
_PAUSE = 0.01
_IDLE = 5.0
_ANSWER = 4000
_CONTROL = "\0bench-idle"
Call = tuple[float, float]
TOPOLOGY = (
    TWO_NET_QUBES
    + """[qubes.sys-inner]
netvm = "sys-firewall"
provides_network = true
"""
)
PAGE = """# Benchmark of many forwards

Written by `./run bench forwards`: {machine}.

{forwards} forwards of {qubes} qubes in the laboratory, each through sys-net, sys-firewall and sys-inner to its
qube, with a real agent in each of the {machines} qubes; all share the processors named above with qubesd. `add` ends
when dom0 has told every hop, `remove` when every hop has confirmed. All the while a client in dom0 calls
`admin.vm.List`, {pause} ms after the last answer, and in turn an idle server: a program beside qubesd that has nothing
else to do and answers as many bytes. What a call waits because of us is what it waits longer than that one: the rest is
the processors', which the {machines} agents (and whoever else is on the machine) ask for at the same time.

{table}
qubesd plans and compares in one thread of its own, in turns of 0.5 ms. What is left to its loop is in slices under
50 ms, which `tests/dom0/test_many.py` measures in time of the processor: that is the same on a machine that has more to
do. A rule is stored by one fsync of its file, as the stock stores a property.

| memory | MB |
|---|---:|
{memory}"""


def idle_server(control: socket.socket) -> None:
    """In dom0: a program like qubesd that has nothing else to do answers with as many bytes, until it is ended."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.write(b"x" * _ANSWER)
        await writer.drain()
        writer.close()

    async def serve() -> None:
        async with await asyncio.start_unix_server(answer, _CONTROL):
            control.sendall(b".")
            await asyncio.get_running_loop().run_in_executor(None, control.recv, 1)

    asyncio.run(serve())


def ask_qubesd() -> None:
    """What somebody else asks."""
    exchange(b"admin.vm.List+ dom0 name dom0\0")


def ask_idle_server() -> None:
    """The same call as to qubesd."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(_CONTROL)
        client.sendall(b"admin.vm.List+ dom0 name dom0\0")
        client.shutdown(socket.SHUT_WR)
        while client.recv(65536):
            pass


def watch(control: socket.socket) -> None:
    """In dom0: call admin.vm.List, and the idle server, until told to stop; then send both lists of calls.

    A call is its beginning and its length, in seconds.
    """
    calls: tuple[list[Call], list[Call]] = ([], [])
    asks: tuple[Callable[[], object], ...] = (ask_qubesd, ask_idle_server)
    control.sendall(b".")
    while not select.select([control], [], [], _PAUSE)[0]:
        for found, ask in zip(calls, asks, strict=True):
            begin = time.monotonic()
            ask()
            found.append((begin, time.monotonic() - begin))
    with control.makefile("wb") as answer:
        answer.write(json.dumps(calls).encode())


class Others:
    """What was done when, and what calls of somebody else took that began meanwhile."""

    def __init__(self) -> None:
        self._done: dict[str, tuple[list[float], list[tuple[float, float]]]] = {}
        """How long each took (milliseconds), and from when to when."""

    @contextlib.contextmanager
    def beside(self, words: str) -> Iterator[None]:
        """Note what is done."""
        begin = time.monotonic()
        yield
        end = time.monotonic()
        took, spans = self._done.setdefault(words, ([], []))
        took.append((end - begin) * 1000)
        spans.append((begin, end))

    def table(self, calls: Sequence[Sequence[Call]]) -> str:
        """The page's."""
        text = "| | times | ms, median | ms, most | calls | to qubesd: ms, median | p99 | most "
        text += "| to the idle one: ms, median | p99 | most |\n"
        text += f"|---|{'---:|' * 10}\n"
        for words, (took, spans) in self._done.items():
            text += f"| {words} | {len(took)} | {statistics.median(took):.0f} | {max(took):.0f} "
            for place, some in enumerate(calls):
                waits = sorted(wait * 1000 for at, wait in some if any(b <= at < e for b, e in spans)) or [0.0]
                late = waits[int(len(waits) * 0.99)]
                text += "" if place else f"| {len(waits)} "
                text += f"| {statistics.median(waits):.1f} | {late:.1f} | {waits[-1]:.1f} "
            text += "|\n"
        return text


def memory(words: str) -> float:
    """In a machine: the most that the first process with these words in its command line has had, in MB."""
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if folder.name.isdigit() and words in (folder / "cmdline").read_text().replace("\0", " "):
                return _most(int(folder.name))
    return 0.0


def memory_of_qubesd() -> float:
    """In dom0: the same of the process that listens on its socket, which has the command line of dom0's first one."""
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(QUBESD)
        credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return _most(struct.unpack("3i", credentials)[0])


def _most(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def measure(lab: Lab, report: Callable[[str], None]) -> Others:
    """Everything, in turn."""
    others = Others()
    names = [f"qube-{number:02}" for number in range(QUBES)]
    with others.beside("nothing"):
        time.sleep(_IDLE)
    report(f"{QUBES * EACH} forwards")
    for place, name in enumerate(names):
        ports = range(10000 + place * EACH, 10000 + (place + 1) * EACH)
        rules = "".join(f"action=forward forwardtype=external proto=tcp srcports={port}\n" for port in ports)
        with others.beside(f"{EACH} forwards for one more qube, stored and told"):
            lab.api(name, "admin.vm.firewall.Set", "forward", rules)
    report("waiting for the last hop")
    with others.beside("until every hop has confirmed"):
        wait_until(lab, lambda told: len(told) == QUBES * EACH and {f["state"] for f in told} == {"no-server"})
    commands = {
        "`qvm-port-forward list`": ["list"],
        "`qvm-port-forward add`": ["add", names[-1], "8080/tcp", "--no-wait"],
        "`qvm-port-forward remove`": ["remove", names[-1], "8080/tcp"],
    }
    report(f"{ROUNDS} rounds")
    for _ in range(ROUNDS):
        for words, argv in commands.items():
            with others.beside(words):
                lab.call("dom0", run_timed, ["qvm-port-forward", *argv])
    return others


@contextlib.contextmanager
def _started(lab: Lab, function: Callable[[socket.socket], None]) -> Iterator[socket.socket]:
    """One of the two above, in dom0; it has said that it is there."""
    ours, theirs = socket.socketpair()
    with ours:
        running = lab.start_call("dom0", function, theirs)
        theirs.close()
        ours.recv(1)
        yield ours
        ours.close()
        running.wait()


def run(report: Callable[[str], None]) -> str:
    """The page."""
    described = machine()
    with tempfile.TemporaryDirectory() as folder:
        topology = Path(folder) / "many.toml"
        topology.write_text(
            TOPOLOGY + "".join(f'[qubes.qube-{number:02}]\nnetvm = "sys-inner"\n' for number in range(QUBES))
        )
        report(f"bringing a laboratory with {QUBES + 3} qubes up")
        with Lab(f"bench-{os.getpid()}", str(topology)) as lab:
            with _started(lab, idle_server) as idle, _started(lab, watch) as watcher:
                others = measure(lab, report)
                watcher.shutdown(socket.SHUT_WR)
                with watcher.makefile("rb") as answer:
                    calls = json.loads(answer.read())
                idle.shutdown(socket.SHUT_WR)
            used = {
                "qubesd": lab.call("dom0", memory_of_qubesd),
                "agent of sys-net": lab.call("sys-net", memory, "portfwd.agent"),
                "agent of a qube": lab.call("qube-00", memory, "portfwd.agent"),
            }
    return PAGE.format(
        machine=described,
        forwards=QUBES * EACH,
        qubes=QUBES,
        machines=QUBES + 3,
        pause=round(_PAUSE * 1000),
        table=others.table(calls),
        memory="".join(f"| {words} | {megabytes:.0f} |\n" for words, megabytes in used.items()),
    )
