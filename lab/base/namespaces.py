# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The kernel calls that Python does not offer: namespaces, mounts, the parent-death signal.

Thin wrappers over libc; every failure is an OSError with the call's own words. Sources: unshare(2), setns(2), mount(2),
pivot_root(2), mount_setattr(2), prctl(2).
"""

import contextlib
import ctypes
import os
import select
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

CLONE_NEWNS = 0x00020000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 0x40000

# Order matters: the user namespace first (it gives the right to join the others), mount last (paths change with it).
KINDS = ("user", "pid", "net", "uts", "ipc", "mnt")

_MNT_DETACH = 2
_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15
_SIGKILL = 9
# The numbers of these calls are the same on x86-64 and arm64 except pivot_root.
_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_SYS_OPENAT2 = 437
_SYS_MOUNT_SETATTR = 442
_RESOLVE_IN_ROOT = 0x10
_AT_FDCWD = -100
_AT_RECURSIVE = 0x8000
_MOUNT_ATTR_RDONLY = 0x1

_libc = ctypes.CDLL(None, use_errno=True)


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """Move this process (for the PID namespace: its later children) into new namespaces."""
    _check(_libc.unshare(ctypes.c_int(flags)), "unshare")


def setns(fd: int) -> None:
    """Join the namespace behind an open /proc/PID/ns/KIND."""
    _check(_libc.setns(ctypes.c_int(fd), ctypes.c_int(0)), "setns")


def mount(source: str, target: Path, kind: str = "", flags: int = 0, options: str = "") -> None:
    """Mount, or change a mount (flags as in mount(2))."""
    result = _libc.mount(
        source.encode(), os.fsencode(target), kind.encode() or None, ctypes.c_ulong(flags), options.encode() or None
    )
    _check(result, f"mount {kind or source} on {target}")


def unmount(target: Path) -> None:
    """Detach a mount and everything below it, now; the kernel frees it when the last user is gone."""
    _check(_libc.umount2(os.fsencode(target), ctypes.c_int(_MNT_DETACH)), f"unmount {target}")


def make_read_only(target: Path) -> None:
    """Make a mount and all mounts below it read-only, keeping their other flags (Linux 5.12 or later)."""
    attr = _MountAttr(attr_set=_MOUNT_ATTR_RDONLY)
    result = _libc.syscall(
        ctypes.c_long(_SYS_MOUNT_SETATTR),
        ctypes.c_int(_AT_FDCWD),
        os.fsencode(target),
        ctypes.c_uint(_AT_RECURSIVE),
        ctypes.byref(attr),
        ctypes.c_size_t(ctypes.sizeof(attr)),
    )
    _check(result, f"mount_setattr {target}")


def open_beneath(root: int, path: Path) -> int:
    """A descriptor (O_PATH) of what a process with this root directory sees at `path`, symbolic links included."""
    how = _OpenHow(flags=os.O_PATH | os.O_CLOEXEC, resolve=_RESOLVE_IN_ROOT)
    result: int = _libc.syscall(
        ctypes.c_long(_SYS_OPENAT2),
        ctypes.c_int(root),
        os.fsencode(path),
        ctypes.byref(how),
        ctypes.c_size_t(ctypes.sizeof(how)),
    )
    _check(min(result, 0), f"open {path}")
    return result


def change_root(new_root: Path) -> None:
    """Make new_root (a mount point) the root of this mount namespace and drop the old root."""
    number = _SYS_PIVOT_ROOT.get(os.uname().machine)
    if number is None:
        raise OSError(f"the laboratory does not know the machine type {os.uname().machine}")
    os.chdir(new_root)
    # pivot_root(".", ".") stacks the old root on the new one, so no directory for it is needed (see pivot_root(2)).
    _check(_libc.syscall(ctypes.c_long(number), b".", b"."), "pivot_root")
    unmount(Path())
    os.chdir("/")


def die_with_parent() -> None:
    """Be killed when the parent process ends."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0), "prctl")


def set_process_name(name: str) -> None:
    """Set the name that ps shows (15 characters)."""
    _check(_libc.prctl(_PR_SET_NAME, name.encode()[:15], 0, 0, 0), "prctl")


def open_namespaces(pid: int) -> list[int]:
    """File descriptors of the process's namespaces, in the order of KINDS; the caller closes them."""
    return [os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC) for kind in KINDS]


def join(fds: Iterable[int]) -> None:
    """Join the namespaces of open_namespaces(); only children are in the PID namespace.

    The process must have a single thread (setns(2)). A namespace it is already in is left alone.
    """
    for kind, fd in zip(KINDS, fds, strict=True):
        own = Path("/proc/self/ns", "pid_for_children" if kind == "pid" else kind).stat()
        if not os.path.samestat(own, os.fstat(fd)):
            setns(fd)
    os.chdir("/")


def keep_only(fds: Iterable[int]) -> None:
    """Close every file descriptor except the standard three and those given."""
    kept = sorted({0, 1, 2, *fds})
    for low, high in zip(kept, [*kept[1:], os.sysconf("SC_OPEN_MAX")], strict=True):
        os.closerange(low + 1, high)


def readable(fd: int, seconds: float) -> bool:
    """Whether there is something to read, or the end, within that time. Any descriptor number will do."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(max(0.0, seconds) * 1000))


def read_all(fd: int, seconds: float) -> bytes:
    """Everything up to the end of file. TimeoutError when that does not come in time."""
    deadline = time.monotonic() + seconds
    data = b""
    while readable(fd, deadline - time.monotonic()):
        chunk = os.read(fd, 65536)
        if not chunk:
            return data
        data += chunk
    raise TimeoutError("no end of file")


def wait_for_end(pid: int, seconds: float) -> bool:
    """Whether a child that has not been reaped ends within that time; the caller reaps it."""
    fd = os.pidfd_open(pid)
    try:
        return readable(fd, seconds)
    finally:
        os.close(fd)


def processes() -> list[int]:
    """The ids of all processes of this /proc."""
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def process_state(pid: int) -> tuple[str, int, int]:
    """The state letter, the parent and the kernel's flags of a process (proc(5)). OSError if there is none."""
    state, parent, *_, flags = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:7]
    return state, int(parent), int(flags)


def reap_adopted() -> None:
    """Reap the dead that this process has adopted out of deeper PID namespaces.

    The first process of a container, or a subreaper, gets them when whoever forked them there was killed; until they
    are reaped, the kernel keeps the first process of their namespace. Nobody else waits for such a one.
    """
    own, depth = os.getpid(), _depth(os.getpid())
    for pid in processes():
        with contextlib.suppress(OSError):
            state, parent, _ = process_state(pid)
            if (state, parent) == ("Z", own) and _depth(pid) > depth:
                os.waitpid(pid, os.WNOHANG)


def _depth(pid: int) -> int:
    """How many PID namespaces a process is in, counted from this /proc."""
    status = Path(f"/proc/{pid}/status").read_text()
    return len(next(line for line in status.splitlines() if line.startswith("NSpid:")).split())


def fork() -> int:
    """os.fork(), after writing out what was printed so far, which the child would print once more."""
    _flush()
    return os.fork()


def leave(status: int) -> NoReturn:
    """End a forked process without running the parent's exit handlers."""
    _flush()
    os._exit(status)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        # Whoever read it may be gone.
        with contextlib.suppress(OSError):
            stream.flush()
