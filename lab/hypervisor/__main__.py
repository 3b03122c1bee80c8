# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The hypervisor's process: `python -m lab.hypervisor FOLDER LIFELINE`, started by lab.client alone.

stdin: the topology file's text. stdout: lines of JSON, {"step": TEXT}... and then {"ready": true} or {"failed": TEXT}.
It goes into the background by itself. LIFELINE is the number of an open descriptor whose end of file ends the
laboratory, or -1.
"""

import contextlib
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path

from lab.base import namespaces as ns
from lab.base.enter import ENVIRONMENT
from lab.base.state import State
from lab.base.topology import parse
from lab.hypervisor.hypervisor import Hypervisor
from lab.hypervisor.server import Loop

# Seconds that a start may take: the slowest machine with the largest topology.
START_DEADLINE = 120.0
_SPACES = ns.CLONE_NEWNS | ns.CLONE_NEWNET | ns.CLONE_NEWPID | ns.CLONE_NEWUTS | ns.CLONE_NEWIPC


def main() -> int:
    """Take the lock, go into new namespaces, and leave the hypervisor behind in the background."""
    os.umask(0o022)
    state = State(Path(sys.argv[1]))
    lifeline = int(sys.argv[2])
    text = sys.stdin.read()
    try:
        lock = state.lock()
        if lock is None:
            raise OSError(f"laboratory {state.name} runs already")
        _enter_namespaces()
    except OSError as error:
        _tell(failed=str(error))
        return 1
    pid = os.fork()
    if pid == 0:
        ns.leave(_run(state, text, lifeline, lock))
    (state.folder / "pid").write_text(f"{pid}\n", encoding="ascii")
    return 0


def _enter_namespaces() -> None:
    uid, gid = os.geteuid(), os.getegid()
    if uid == 0:
        # Root in a container may lack the right; it then does as an ordinary user does.
        with contextlib.suppress(PermissionError):
            ns.unshare(_SPACES)
            return
    try:
        ns.unshare(ns.CLONE_NEWUSER)
        Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1", encoding="ascii")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1", encoding="ascii")
        ns.unshare(_SPACES)
    except OSError as error:
        hint = "ordinary users may not make user namespaces here (sysctl kernel.apparmor_restrict_unprivileged_userns, "
        hint += "kernel.unprivileged_userns_clone, user.max_user_namespaces); as root it works"
        raise OSError(f"{error}; {hint}") from None


def _run(state: State, text: str, lifeline: int, lock: int) -> int:
    log = os.open(state.log("hypervisor"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 2)
    ns.keep_only([lock, *([lifeline] if lifeline >= 0 else [])])
    os.chdir("/")
    os.environ.update(ENVIRONMENT)
    try:
        ns.set_process_name("hypervisor")
        ns.mount("none", Path("/"), "", ns.MS_REC | ns.MS_PRIVATE)
        ns.mount("proc", Path("/proc"), "proc", ns.MS_NOSUID | ns.MS_NODEV | ns.MS_NOEXEC)
        ns.mount("mounts", state.mounts, "tmpfs", ns.MS_NOSUID | ns.MS_NODEV, "mode=0755")
        return _serve(state, text, lifeline)
    except Exception as error:
        traceback.print_exc()
        _tell(failed=str(error) or repr(error))
        return 1
    finally:
        with contextlib.suppress(OSError):
            ns.unmount(state.mounts)
        state.remove()


def _serve(state: State, text: str, lifeline: int) -> int:
    loop = Loop()
    began = time.monotonic()
    hypervisor = Hypervisor(loop, state, parse(text), text, lambda step: _tell(step=step))

    def end(*_: object) -> None:
        hypervisor.over = True

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, end)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    if lifeline >= 0:
        loop.add(lifeline, end)
    hypervisor.start()
    told = False
    while not hypervisor.over:
        loop.step(None if told else 0.5)
        hypervisor.reap()
        if not told and hypervisor.ready():
            _tell(ready=True)
            told = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        elif not told and hypervisor.failed is not None:
            raise OSError(hypervisor.failed)
        elif not told and time.monotonic() > began + START_DEADLINE:
            raise OSError("the qubes did not all start in time")
    return 0


def _tell(**message: object) -> None:
    with contextlib.suppress(OSError):
        print(json.dumps(message), flush=True)


sys.exit(main())
