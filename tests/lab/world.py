# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Helpers of these tests: a server in a machine, packets with a chosen source, waiting with a deadline."""

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from lab.client import Lab

SMALL = str(Path(__file__).parent / "small.toml")
DEADLINE = 60.0


@contextlib.contextmanager
def serving(lab: Lab, machine: str, *words: str) -> Iterator[None]:
    """The laboratory's small server, running in a machine."""
    argv = [sys.executable, "-I", "-m", "lab.inside.server", *words]
    with lab.popen(machine, argv, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == "serving\n"
            yield
        finally:
            server.kill()


def wait_until(true: Callable[[], bool], what: str) -> None:
    """Look again and again until it is true."""
    deadline = time.monotonic() + DEADLINE
    while not true():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.01)


def send_from(source: str, dest: str, port: int) -> None:
    """Send one datagram with this source address, whether it is the machine's own or not."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_TRANSPARENT, 1)
        sender.bind((source, 0))
        sender.sendto(b"hello", (dest, port))


def interfaces() -> list[str]:
    """The interfaces of the machine."""
    return sorted(name for _, name in socket.if_nameindex())


def processes_below(pid: int) -> set[int]:
    """The process and everything below it, by the host's numbers."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found
