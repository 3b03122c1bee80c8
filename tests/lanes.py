# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Two lanes: ./run test --fast leaves out what is slow, and the kernel refuses it namespaces.

So a new test is in the fast lane, and fails there when it needs a laboratory, unless it says so itself.
A lane without named tests runs in several processes: the whole suite waits more than it computes. Each process has
laboratories of its own; who has nothing left to do takes over from the others.
"""

import ctypes
import errno
import os
import struct
from pathlib import Path

import pytest

TESTS = Path(__file__).parent

_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_SECCOMP = 22
_SECCOMP_MODE_FILTER = 2
_NEW_NAMESPACES = 0x7E020080
"""All CLONE_NEW* of clone(2)."""
_CALLS = {
    "x86_64": (0xC000003E, {"clone": 56, "unshare": 272, "setns": 308, "clone3": 435}),
    "aarch64": (0xC00000B7, {"clone": 220, "unshare": 97, "setns": 268, "clone3": 435}),
}
"""The audit name and the numbers of the calls that make or join namespaces, per type of machine."""

SLOW_FOLDERS = {"chain", "crash", "follow", "lab", "packages", "qubesd"}
"""Every test in these is slow; in others a module or a parameter is, by `pytest.mark.slow`."""
LABORATORIES = {"kernel", "lab"}
"""Fixtures that are made of namespaces: whoever takes one is slow."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help="leave out what needs a laboratory, root, tools or patience")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        # Sockets have short paths, and messages quote no long ones.
        base = Path(config.option.basetemp)
        config.option.basetemp = str(base.with_name(base.name.removeprefix("popen-gw")))
    config.addinivalue_line("markers", "slow: needs namespaces, root, nft, the tools that build packages, or seconds")
    if config.option.fast:
        refuse_namespaces()


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS and not hasattr(config, "workerinput")
    if whole and config.option.numprocesses is None and not config.option.usepdb:
        config.option.numprocesses = (os.cpu_count() or 1) * (1 if config.option.fast else 2)
        config.option.dist = "worksteal"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return True if config.option.fast and collection_path in {TESTS / name for name in SLOW_FOLDERS} else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.option.fast:
        slow = [item for item in items if is_slow(item)]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if not is_slow(item)]


def is_slow(item: pytest.Item) -> bool:
    """Whether it is marked so, or takes a laboratory (those of slow folders are not even read)."""
    return bool(item.get_closest_marker("slow") or LABORATORIES & set(getattr(item, "fixturenames", ())))


def refuse_namespaces() -> None:
    """From now on this process and all that it starts get EPERM for a namespace, made or joined (seccomp(2)).

    clone3(2) does not exist for them, since a filter cannot see its flags; libc then takes clone(2).
    """
    name, calls = _CALLS[os.uname().machine]
    load, equal, bits, give = 0x20, 0x15, 0x45, 0x06
    allow, refuse, missing = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
    # Each step: operation, steps to pass over when true, when false, operand. The data: number, machine, ..., flags.
    program = [
        (load, 0, 0, 4),
        (equal, 0, 7, name),
        (load, 0, 0, 0),
        (equal, 6, 0, calls["unshare"]),
        (equal, 5, 0, calls["setns"]),
        (equal, 5, 0, calls["clone3"]),
        (equal, 0, 2, calls["clone"]),
        (load, 0, 0, 16),
        (bits, 1, 0, _NEW_NAMESPACES),
        (give, 0, 0, allow),
        (give, 0, 0, refuse),
        (give, 0, 0, missing),
    ]
    steps = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in program))
    filter_ = ctypes.create_string_buffer(struct.pack("@HP", len(program), ctypes.addressof(steps)))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in ((_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), (_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, filter_, 0, 0)):
        if libc.prctl(*arguments) != 0:
            raise OSError(ctypes.get_errno(), "the fast lane cannot refuse namespaces")
