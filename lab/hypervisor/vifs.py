# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Cables come up in steps, as on Xen: an attach is answered when both ends are there, and only then does the net qube's
own script (lab/inside/vif.py) begin. Until it has run the vif is down, in group 0 and without route; if it fails, the
vif stays so. A detach waits for the script, and gives up after a time.
"""

import os
import select
import signal
import time
import traceback
from collections.abc import Callable, Mapping

from lab.base import namespaces as ns
from lab.hypervisor import cables
from lab.hypervisor.calls import fork
from lab.hypervisor.machine import Cable, Running, Script
from lab.hypervisor.server import Loop
from lab.inside import vif
from portfwd.wire.errors import RefusedError

SCRIPT_DEADLINE = 20.0
"""Seconds that a detach waits for a script that still runs."""
_DELAY_MAX = 60.0


class Vifs:
    """All cables of the laboratory, and the scripts that are under way.

    `delays`: how many seconds late the scripts of a net qube begin.
    """

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self.delays: dict[str, float] = {}
        self._running: list[Cable] = []
        self._waiting: list[Callable[[], None]] = []

    @property
    def idle(self) -> bool:
        """Whether no script runs."""
        return not self._running

    def attach(self, machine: Running, backend: Running, wire: vif.Vif, offload: bool) -> None:
        """Connect a qube with its net qube and start the net qube's script. OSError, and then nothing is left."""
        cable = Cable(backend.name, wire)
        cables.attach(machine, backend, cable)
        cable.script = _start(backend, cable.vif, offload, self.delays.get(backend.name, 0.0))
        self._running.append(cable)
        self._loop.add(cable.script.end, lambda: self._over(cable))

    def detach(self, machine: Running, backend: Running | None, *, abandon: bool = False) -> None:
        """Take a qube's cable away; nothing happens when there is none, and the net qube may be gone already.

        abandon: the toolstack gives up waiting for the net qube, and the next cable gets another index.
        """
        if (cable := machine.cable) is not None and cable.script is not None:
            # Who is dead runs no script: its processes are gone with it.
            if not select.select([cable.script.end], [], [], SCRIPT_DEADLINE)[0]:
                os.kill(cable.script.pid, signal.SIGKILL)
            self._over(cable)
        machine.vif_index += abandon
        cables.detach(machine, backend)

    def when_idle(self, reply: Callable[[], None]) -> None:
        """Reply as soon as no script runs."""
        self._waiting.append(reply)
        self._tell()

    def _over(self, cable: Cable) -> None:
        if cable.script is not None:
            self._loop.remove(cable.script.end)
            os.close(cable.script.end)
            cable.script = None
            self._running.remove(cable)
            self._tell()

    def _tell(self) -> None:
        while self._waiting and self.idle:
            self._waiting.pop(0)()


def set_delay(words: Mapping[str, object], places: Mapping[str, dict[str, float]]) -> None:
    """Keep the seconds of a request for slowness where its word `what` says. Raises RefusedError."""
    delays, seconds = places.get(str(words.get("what"))), words.get("seconds")
    if delays is None or not isinstance(seconds, (int, float)) or not 0 <= seconds <= _DELAY_MAX:
        raise RefusedError(f"slow needs what ({', '.join(places)}) and seconds, {_DELAY_MAX:.0f} at most")
    delays[str(words.get("name"))] = float(seconds)


def _start(backend: Running, wire: vif.Vif, offload: bool, delay: float) -> Script:
    """Run the script in a process of its own, whose end closes the pipe."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    child = fork([write_end, *backend.namespaces])
    if child == 0:
        try:
            time.sleep(delay)
            backend.call(vif.online, wire, offload)
        except Exception:
            # As with a script of udev: nobody hears of it, and everything stays as it was left.
            traceback.print_exc()
        finally:
            ns.leave(0)
    os.close(write_end)
    return Script(child, read_end)
