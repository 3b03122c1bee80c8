# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""One qrexec call, carried out in a process of its own: gives the router (lab.qrexec) what it needs to know."""

import os
import signal
import socket
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.base import namespaces as ns
from lab.base.state import State
from lab.client import Lab
from lab.qrexec import service as service_program
from lab.qrexec.policy import DOM0, Domain
from lab.qrexec.router import STARTER, Child, Router


@dataclass(frozen=True)
class _Forked:
    """A service that runs in a forked process."""

    pid: int

    def wait(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def serve(state: State, dom0_pid: int, source: str, connection: socket.socket) -> None:
    """Serve the call that the qube source makes on this connection, to its end."""
    lab = Lab(state.name, state=state)

    def domains() -> Mapping[str, Domain]:
        if source == DOM0:
            # No policy is asked, which alone wants to know more than names; and qubesd may be the one that waits.
            return {machine.name: Domain("AppVM") for machine in lab.machines() if machine.kind == "qube"}
        found = {DOM0: Domain("AdminVM")}
        for line in lab.api("dom0", "admin.vm.List").splitlines():
            qube, *words = line.split(" ")
            known = dict(word.partition("=")[::2] for word in words)
            if qube != DOM0:
                tags = frozenset(lab.api(qube, "admin.vm.tag.List").split())
                found[qube] = Domain(known["class"], tags, known["state"] == "Running")
        return found

    def spawn(qube: str, argv: Sequence[str], env: Mapping[str, str], stdin: int, stdout: int, stderr: int) -> Child:
        if qube not in (DOM0, *(machine.name for machine in lab.machines())):
            lab.api(qube, "admin.vm.Start")
        if list(argv[: len(STARTER)]) != STARTER:
            return lab.popen(qube, argv, env=env, stdin=stdin, stdout=stdout, stderr=stderr)
        # What it would run is at hand here: no interpreter has to start for a service that is a socket.
        words = argv[len(STARTER) :]
        return _Forked(lab.start_main(qube, lambda: service_program.main(words), env, (stdin, stdout, stderr)))

    # dom0's files, as this process sees them from outside.
    outside = Path(f"/proc/{dom0_pid}/root")
    folders = [outside / "run/qubes/policy.d", outside / "etc/qubes/policy.d"]
    router = Router(spawn, domains, folders, log=lambda text: print(text, file=sys.stderr, flush=True))
    router.serve(source, connection)


def fork(kept: Iterable[int]) -> int:
    """Fork the hypervisor, which reaps the child: its id, or 0 in the child.

    Nothing else of the hypervisor's stays open there, or its clients would not see it let go of them.
    """
    child = os.fork()
    if child == 0:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        ns.keep_only(kept)
    return child


def serve_in_background(state: State, dom0_pid: int, source: str, connection: socket.socket) -> None:
    """serve() in a forked process."""
    if fork([connection.fileno()]) == 0:
        try:
            serve(state, dom0_pid, source, connection)
        except Exception:
            traceback.print_exc()
        finally:
            ns.leave(0)
    connection.close()
