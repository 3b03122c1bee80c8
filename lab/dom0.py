# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""What a client of the laboratory does inside dom0, as functions for Lab.call: Admin API calls, looks at everything."""

import contextlib
import os
import signal
import socket
import time
from collections.abc import Container, Iterable, Iterator
from pathlib import Path

from portfwd.base.qubesdb_client import Database, Error, QubesDB
from portfwd.wire import limits
from portfwd.wire.acknowledgement import Acknowledgement, Result
from portfwd.wire.entry import Commit
from portfwd.wire.errors import RefusedError

QUBESD = "/run/qubesd.sock"
API_TIMEOUT = 120.0
"""Seconds."""
# Seconds between two looks.
_LOOK = 0.005


def exchange(request: bytes) -> bytes:
    """Send one Admin API request, give everything that came back."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(API_TIMEOUT)
        client.connect(QUBESD)
        client.sendall(request)
        client.shutdown(socket.SHUT_WR)
        with client.makefile("rb") as answer:
            return answer.read()


def gather() -> dict[str, dict[str, str]]:
    """What a drawing needs of every qube, by name: state, netvm, ip, ip6, label, forwards (lines)."""
    return {name: {"state": state, **_properties(name), "forwards": _forwards(name)} for name, state in list_qubes()}


def list_qubes() -> Iterator[tuple[str, str]]:
    """Each qube's name and state."""
    listed = exchange(b"admin.vm.List+ dom0 name dom0\0")
    for line in listed.partition(b"\0")[2].decode("ascii", "replace").splitlines():
        name, *words = line.split(" ")
        known = dict(word.partition("=")[::2] for word in words)
        if known.get("class") != "AdminVM":
            yield name, known.get("state", "")


def _properties(name: str) -> dict[str, str]:
    answer = exchange(f"admin.vm.property.GetAll+ dom0 name {name}\0".encode())
    properties = {}
    for line in answer.partition(b"\0")[2].decode("ascii", "replace").splitlines():
        key, *rest = line.split(" ", 3)
        properties[key] = rest[2] if len(rest) == 3 else ""
    return {key: properties.get(key, "") for key in ("netvm", "ip", "ip6", "label")}


def _forwards(name: str, view: str = "") -> str:
    answer = exchange(f"admin.vm.firewall.Get+forward{view} dom0 name {name}\0".encode())
    return answer[2:].decode("ascii", "replace") if answer.startswith(b"0\0") else ""


def converge(seconds: float, dead: frozenset[str], unplugged: frozenset[str] = frozenset()) -> list[str]:
    """Wait until every hop has done what dom0 wants; what is still missing when the time is over.

    That is: each line of each qube's plan is a problem, paused, or an entry that stands in its hop's QubesDB with the
    agent's word that it is open, and each agent has acknowledged the last commit in its QubesDB, also where that takes
    something away. Paused qubes, and those in `dead`, are not waited for; nor is the way to a qube that is paused or
    `unplugged`, which may have no interface.
    """
    deadline = time.monotonic() + seconds
    while True:
        missing = list(_missing(dead, unplugged))
        if not missing or time.monotonic() > deadline:
            return missing
        time.sleep(_LOOK)


def _missing(dead: frozenset[str], unplugged: frozenset[str]) -> Iterator[str]:
    qubes = dict(list_qubes())
    paused = {name for name, state in qubes.items() if state == "Paused"}
    away = paused | unplugged
    present = set(_addresses(name for name, state in qubes.items() if state != "Halted" and name not in away))
    silent = dead | paused
    for name, state in qubes.items():
        # Not the status: for that dom0 asks every qube on the way what its programs do.
        for line in _forwards(name, ".plan").splitlines():
            if not line.startswith("rule="):
                continue
            words = dict(word.split("=", 1) for word in line.partition(" text=")[0].split(" "))
            if words["state"] == "planned" and words["hop"] not in silent and not _open(words, line, present):
                yield line
        if state != "Halted" and name not in silent and (late := _late(name)):
            yield f"hop={name} {late}"


def _addresses(names: Iterable[str]) -> Iterator[bytes]:
    """Those that these qubes run with, which may be others than dom0 has for their next start."""
    for name in names:
        with contextlib.suppress(Error, OSError), contextlib.closing(open_database(name)) as database:
            yield from (found for key in ("/qubes-ip", "/qubes-ip6") if (found := database.read(key)))


def _open(words: dict[str, str], line: str, present: Container[bytes]) -> bool:
    """Whether the entry of a line of the plan stands in the hop's QubesDB, and the agent says ok.

    Or that it has no way to an address that no qube has, or none that can be reached.
    """
    key = f"{words['rule']}.{words['family']}.{words['proto']}"
    value = line[line.index("kind=") : line.index(" state=")]
    try:
        with contextlib.closing(open_database(words["hop"])) as database:
            written, result = database.read(limits.ENTRIES + key), database.read(limits.STATUS + key)
    except (Error, OSError):
        return False
    waits = words.get("to", "").encode() not in present and result == Result.NO_ROUTE.value.encode()
    return written == value.encode() and (waits or result == Result.OK.value.encode())


def _late(name: str) -> str:
    try:
        with contextlib.closing(open_database(name)) as database:
            commit, answer = database.read(limits.BASE), database.read(limits.STATUS_BASE)
        if commit is None:
            return ""
        wanted = Commit.parse(commit.decode()).generation
        if answer is None or Acknowledgement.parse(answer.decode()).generation != wanted:
            return f"has not acknowledged generation {wanted}"
    except (Error, OSError, RefusedError) as error:
        return f"cannot be asked: {error}"
    return ""


def open_database(name: str) -> Database:
    """dom0's side of a qube's QubesDB. Raises Error."""
    return QubesDB(f"/var/run/qubes/qubesdb.{name}.sock")


def entries(name: str) -> dict[str, str]:
    """What stands in a running qube's QubesDB for its agent: key of the entry -> value."""
    with contextlib.closing(open_database(name)) as database:
        found = database.multiread(limits.ENTRIES)
    return {path.removeprefix(limits.ENTRIES): value.decode("ascii", "replace") for path, value in found.items()}


def kill_database(name: str) -> None:
    """Kill dom0's QubesDB daemon of a qube; as with the real one, only a restart of the qube brings it back."""
    os.kill(int(Path(f"/run/qubes/qubesdb.{name}.pid").read_text()), signal.SIGKILL)
