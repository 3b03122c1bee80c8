# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The first process of a machine: builds its root, sets its network up, starts its services, and obeys the hypervisor.

Runs as PID 1 of the machine's PID namespace, forked from the hypervisor, in fresh namespaces. The hypervisor talks over
a stream socket, a line of JSON each way: {"op": "boot"} or {"op": "service", "service": NAME, "action": WORD}
-> {"ok": true} or {"ok": false, "error": TEXT}.
The first line it sends, unasked, tells that root and network namespace are there; {"ready": NAME} may come at any time
after that, when a service is ready.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from lab.base import namespaces as ns
from lab.inside import firewall, network, root, vpn
from lab.inside.commands import PATIENCE
from lab.inside.services import Service, Services, log
from portfwd.base.qubesdb_client import Error as QubesDBError
from portfwd.base.qubesdb_client import QubesDB

QDB_SOCKET = "/var/run/qubes/qubesdb.sock"
QDB_LINK = "/run/vchan/111.sock"
TOPOLOGY = "/run/lab-topology.json"
BOOT_ID = "/run/boot_id"
AGENT = "port-forward-agent"
# Seconds. Generous: a loaded machine is slow, and nobody waits this long when all is well.
SYNC_DEADLINE = 20.0
STOCK_DEADLINE = 20.0
QUBESD_DEADLINE = 60.0


@dataclass(frozen=True)
class Machine:
    """What the hypervisor hands to a new machine. kind: qube, dom0, host or router.

    late: how many seconds late a unit of a qube is done when the qube starts: `network` (its own forwarding), `agent`.
    """

    name: str
    kind: str
    layout: root.Layout
    new_root: Path
    cards: tuple[network.Card, ...] = ()
    agent: bool = False
    late: Mapping[str, float] = field(default_factory=dict)


def main(machine: Machine, channel: socket.socket) -> NoReturn:
    """Be the machine. Never returns: the machine ends with this process."""
    try:
        ns.keep_only([channel.fileno()])
        os.setsid()
        os.umask(0o022)
        ns.set_process_name(f"init {machine.name}")
        root.enter(machine.new_root, machine.layout)
        socket.sethostname(machine.name)
        network.set_defaults()
        services = Services(lambda name: _send(channel, {"ready": name}))
    except Exception as error:
        traceback.print_exc()
        _answer(channel, str(error) or repr(error))
        ns.leave(1)
    _answer(channel, None)
    _obey(machine, channel, services)


def _answer(channel: socket.socket, error: str | None) -> None:
    _send(channel, {"ok": True} if error is None else {"ok": False, "error": error})


def _send(channel: socket.socket, words: Mapping[str, object]) -> None:
    channel.sendall(json.dumps(words).encode() + b"\n")


def _obey(machine: Machine, channel: socket.socket, services: Services) -> NoReturn:
    received = b""
    while True:
        if not services.step(channel=channel.fileno()):
            continue
        data = channel.recv(4096)
        if not data:
            # The hypervisor let go of this machine.
            ns.leave(0)
        received += data
        while b"\n" in received:
            line, received = received.split(b"\n", 1)
            request = json.loads(line)
            try:
                if request["op"] == "boot":
                    _boot(machine, services)
                else:
                    services.control(request["service"], request["action"])
                _answer(channel, None)
            except Exception as error:
                traceback.print_exc()
                _answer(channel, str(error) or repr(error))


def _boot(machine: Machine, services: Services) -> None:
    if machine.kind == "qube":
        _boot_qube(machine, services)
    elif machine.kind == "dom0":
        _boot_dom0(services)
    else:
        if machine.kind == "router":
            network.become_router()
        network.set_up_cards(machine.cards)
        services.add(Service(vpn.SERVER, argv=(sys.executable, "-I", "-m", "lab.inside.vpn", "server")))


def _boot_qube(machine: Machine, services: Services) -> None:
    services.start(Service("qubesdb-daemon", run=_qubesdb_daemon))
    keys = wait_for_qubesdb(services)
    for key, value in keys.items():
        if key.startswith("/qubes-service/") and value == "1":
            Path("/run/qubes-service", key.rpartition("/")[2]).touch()
    network.load_base_firewall()
    # From here on the units run side by side, up to network.target; the agent is not waited for at all.
    if keys.get("/qubes-service/qubes-firewall") == "1":
        stock = Service(firewall.SERVICE, argv=(sys.executable, "-I", "-m", "lab.inside.firewall"))
        (services.start if firewall.WANTED.exists() else services.add)(stock)
        services.wait(stock, STOCK_DEADLINE)
    agent = Service(AGENT, argv=(sys.executable, "-I", "-m", "portfwd.agent"))
    if machine.agent:
        services.start(agent, machine.late.get("agent", 0.0))
    else:
        services.add(agent)
    network.set_up_uplink(keys)
    deadline = time.monotonic() + machine.late.get("network", 0.0)
    while time.monotonic() < deadline:
        services.step(deadline)
    network.set_forwarding(keys)
    network.set_up_cards(machine.cards)
    _run_rc_local()
    tunnel = Service(vpn.CLIENT, argv=(sys.executable, "-I", "-m", "lab.inside.vpn", "client"))
    (services.start if vpn.CONFIG.exists() else services.add)(tunnel)
    log("boot complete")


def _boot_dom0(services: Services) -> None:
    qubesd = Service("qubesd", run=_qubesd)
    services.start(qubesd)
    if not services.wait(qubesd, QUBESD_DEADLINE):
        raise OSError("qubesd did not become ready, see the log of dom0")


def _qubesdb_daemon() -> int:
    from lab.qubesdb.daemon import main as daemon

    return daemon(["--vm", "--socket", QDB_SOCKET, "--link", QDB_LINK])


def _qubesd() -> int:
    from lab.qubesd.daemon import main as qubesd

    return qubesd(["--topology", TOPOLOGY, "--xen", "/run/xen.sock"])


def wait_for_qubesdb(services: Services) -> dict[str, str]:
    """All entries of this qube's QubesDB, as soon as its daemon has them. OSError after the deadline."""
    deadline = time.monotonic() + SYNC_DEADLINE
    while time.monotonic() < deadline:
        keys = read_qubesdb()
        if "/name" in keys:
            return keys
        services.step(time.monotonic() + 0.01)
    raise OSError("QubesDB did not arrive from dom0")


def read_qubesdb() -> dict[str, str]:
    """All entries of this qube's QubesDB now; empty while its daemon is not there."""
    with contextlib.suppress(OSError, QubesDBError):
        if Path(QDB_SOCKET).is_socket():
            with contextlib.closing(QubesDB()) as database:
                entries = database.multiread("/")
            return {str(key): bytes(value).decode("utf-8", "replace") for key, value in entries.items()}
    return {}


def set_up_uplink_again() -> None:
    """After a change of net qube in a running qube (udev's work): read QubesDB anew and set up eth0."""
    network.set_up_uplink(read_qubesdb())


def _run_rc_local() -> None:
    script = Path("/rw/config/rc.local")
    if os.access(script, os.X_OK):
        try:
            done = subprocess.run([script], check=False, timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            log(f"rc.local was ended after {PATIENCE:.0f} s")
            return
        if done.returncode != 0:
            log(f"rc.local ended with {done.returncode}")
