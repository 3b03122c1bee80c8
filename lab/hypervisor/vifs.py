# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Cables come up in steps, as on Xen: an attach is answered when both ends are there, and only then does the net qube's
own script (lab/inside/vif.py) begin. Until it has run the vif is down, in group 0 and without route; if it fails, the
vif stays so. What concerns the cable next waits for the script, and gives up after a time; nobody else waits meanwhile.
"""

import contextlib
import os
import signal
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from lab.base import namespaces as ns
from lab.hypervisor import cables
from lab.hypervisor.calls import fork
from lab.hypervisor.machine import Cable, Running
from lab.hypervisor.server import Loop
from lab.inside import vif
from portfwd.wire.errors import RefusedError

SCRIPT_DEADLINE = 20.0
"""Seconds that a detach or another attach waits for a script that still runs."""
_DELAY_MAX = 60.0


@dataclass(frozen=True)
class _Script:
    """A script that runs: its process, a pipe that is closed with its end, and what is to be called then."""

    pid: int
    end: int
    waiting: list[Callable[[], None]] = field(default_factory=list)


class Vifs:
    """The scripts of net qubes that are under way, by the names of the qubes whose cables they are for.

    `delays`: how many seconds late the scripts of a net qube begin.
    """

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self.delays: dict[str, float] = {}
        self._running: dict[str, _Script] = {}
        self._waiting: list[Callable[[], None]] = []

    @property
    def idle(self) -> bool:
        """Whether no script runs."""
        return not self._running

    def attach(self, machine: Running, backend: Running, wire: vif.Vif, offload: bool) -> None:
        """Connect a qube with its net qube and start the net qube's script. OSError, and then nothing is left.

        Not while another one for this qube runs (see postpone).
        """
        cables.attach(machine, backend, Cable(backend.name, wire))
        script = _start(backend, wire, offload, self.delays.get(backend.name, 0.0))
        self._running[machine.name] = script
        self._loop.add(script.end, lambda: self._over(machine.name))

    def postpone(self, qube: str, again: Callable[[], None]) -> bool:
        """Whether a script for a qube still runs, maybe for its run before. Then `again` is called when it is over."""
        script = self._running.get(qube)
        if script is None:
            return False
        script.waiting.append(again)
        self._loop.later(SCRIPT_DEADLINE, lambda: self._give_up(qube, script))
        return True

    def _give_up(self, qube: str, script: _Script) -> None:
        if self._running.get(qube) is script:
            with contextlib.suppress(ProcessLookupError):
                os.kill(script.pid, signal.SIGKILL)
            self._over(qube)

    def when_idle(self, reply: Callable[[], None]) -> None:
        """Reply as soon as no script runs."""
        self._waiting.append(reply)
        self._tell()

    def _over(self, qube: str) -> None:
        script = self._running.pop(qube)
        self._loop.remove(script.end)
        os.close(script.end)
        for again in script.waiting:
            again()
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


def _start(backend: Running, wire: vif.Vif, offload: bool, delay: float) -> _Script:
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
    return _Script(child, read_end)
