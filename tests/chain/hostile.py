# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""What a hostile qube does to dom0: programs in the place of the agent's services, and rubbish in its QubesDB."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from lab.inside.root import PROBE_SCRIPT
from portfwd.base.qubesdb_client import QubesDB
from portfwd.wire import limits
from tests.chain.world import World

MARK = "EVIL"
"""Stands in every text of the hostile qube; none of it may reach the user."""
SERVICES = (
    limits.REPORT_SERVICE,
    limits.CONNECTIONS_SERVICE,
    limits.PREVIEW_SERVICE,
    limits.KILL_SERVICE,
    limits.PROBE_SERVICE,
)
_ESCAPES = f"\\033[2J\\033]0;{MARK}\\007\\r"
_HEADS = {
    limits.REPORT_SERVICE: "version=1 entries=1\\n",
    limits.CONNECTIONS_SERVICE: "version=1 connections=2 more=0\\n",
    limits.PREVIEW_SERVICE: "version=1 elements=2 more=0\\n",
    limits.KILL_SERVICE: "version=1 result=en",
    limits.PROBE_SERVICE: "version=1 ways=2 agent=yes\\n",
}
"""How a good answer begins."""


def _everywhere(script: str) -> dict[str, str]:
    return dict.fromkeys(SERVICES, script)


# The last command of each is an exec: qrexec ends one process.
BAD = {
    "garbage": _everywhere("exec head -c 5000 /dev/urandom\n"),
    "endless bytes": _everywhere("exec cat /dev/zero\n"),
    "endless lines": _everywhere(f"exec yes \"$(printf '{_ESCAPES}version=1 entries=1')\"\n"),
    "escapes": _everywhere(f"printf '{_ESCAPES}version=1 entries=0 {MARK}\\n'\n"),
    "escapes inside": {name: f"printf '{head}{_ESCAPES}\\n'\n" for name, head in _HEADS.items()},
    "nothing": _everywhere("exit 0\n"),
    "silent": _everywhere("exec sleep 1000\n"),
    "closed and alive": _everywhere("exec >&-; exec sleep 1000\n"),
    "half": {name: f"printf '{head}'\n" for name, head in _HEADS.items()},
    "half and silent": {name: f"printf '{head}'; exec sleep 1000\n" for name, head in _HEADS.items()},
}
"""What a qube answers, by service."""
DESERTS = f"({PROBE_SCRIPT.strip()}) | (head -n 4; exec sleep 20)\n"
"""A probe that is counted as it should be, of which nothing is told: all that two families say before it is sent."""
STRAYS = tuple(f"{limits.STATUS}{number}" for number in range(1500))
"""With huge values together more than a client of QubesDB takes as one answer."""
MOST = 10**20 - 1
"""The largest number of the formats."""


def lies(target: bool, rules: Sequence[str]) -> dict[str, str]:
    """Answers in the right form about these rules: the largest numbers, and as many lines as there may be."""
    keys = [f"{rule}.{family}.tcp" for rule in rules for family in (4, 6)]
    accept, relay = f"listening=yes packets={MOST} bytes={MOST} connections={MOST}", f"hits={MOST} last={MOST}"
    report = [f"version=1 entries={len(keys)}"]
    report += [f"{key} {accept if target else relay}" for key in keys]
    count = limits.REPORT_CONNECTIONS_MAX
    clients = [f"{rules[n % len(rules)]}.4.tcp client=192.168.1.20 port={n} to=8443" for n in range(count)]
    elements = [f"ip some-map {{ {n} . {'0' * 100} }}" for n in range(limits.REPORT_LINES_MAX)]
    return {
        limits.REPORT_SERVICE: _prints(report),
        limits.CONNECTIONS_SERVICE: _prints([f"version=1 connections={count} more={MOST}", *clients]),
        limits.PREVIEW_SERVICE: _prints([f"version=1 elements={len(elements)} more={MOST}", *elements]),
    }


def _prints(lines: Sequence[str]) -> str:
    return "exec cat <<'END'\n" + "".join(f"{line}\n" for line in lines) + "END\n"


@contextlib.contextmanager
def answering(world: World, qube: str, scripts: Mapping[str, str]) -> Iterator[None]:
    """A qube whose services are these scripts."""
    before = world.lab.call(qube, _replace_services, dict(scripts))
    try:
        yield
    finally:
        world.lab.call(qube, _restore_services, before)


def _replace_services(scripts: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """In a qube; what was there before, by name."""
    before = {}
    for name, script in scripts.items():
        path = Path("/etc/qubes-rpc", name)
        if path.is_symlink():
            before[name] = ("link", str(path.readlink()))
        else:
            before[name] = ("file", path.read_text()) if path.exists() else ("none", "")
        path.unlink(missing_ok=True)
        path.write_text(script)
    return before


def _restore_services(before: Mapping[str, tuple[str, str]]) -> None:
    for name, (kind, content) in before.items():
        path = Path("/etc/qubes-rpc", name)
        path.unlink()
        if kind == "link":
            path.symlink_to(content)
        elif kind == "file":
            path.write_text(content)


@contextlib.contextmanager
def spoilt(world: World, qube: str, value: bytes, strays: Sequence[str]) -> Iterator[None]:
    """A qube with this value in the place of every word of its agent, and under further keys."""
    world.lab.call(qube, _spoil, value, strays)
    try:
        yield
    finally:
        world.lab.call(qube, _remove, strays)
        world.lab.agent(qube, "restart")
        world.settle()


def _spoil(value: bytes, strays: Sequence[str]) -> None:
    with contextlib.closing(QubesDB()) as database:
        for path in [*database.list(limits.STATUS_BASE), *strays]:
            database.write(path, value)


def _remove(strays: Sequence[str]) -> None:
    with contextlib.closing(QubesDB()) as database:
        for path in strays:
            database.rm(path)


def peak_memory() -> int:
    """In dom0: the most kB that qubesd has ever used."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (folder / "comm").read_text() == "qubesd\n":
                words = (folder / "status").read_text().split()
                return int(words[words.index("VmHWM:") + 1])
    raise AssertionError("qubesd does not run")
