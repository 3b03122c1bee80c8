# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The hypervisor: which machines there are, and the operations of its protocol (lab/hypervisor/__init__.py)."""

import os
import re
import shutil
import socket
import time
import traceback
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from lab.base import namespaces as ns
from lab.base.state import State, short_path
from lab.base.topology import Nic, Topology, read_nic
from lab.hypervisor import cables, cards
from lab.hypervisor.calls import fork, serve_in_background
from lab.hypervisor.machine import Running, launch, wait_created
from lab.hypervisor.server import Connection, Loop, listen
from lab.hypervisor.vifs import Vifs, set_delay
from lab.inside import init, root
from lab.inside.network import Card
from lab.qrexec.policy import DOM0
from lab.qrexec.router import listen as qrexec_listen
from lab.qrexec.switchboard import Switchboard
from portfwd.wire.errors import RefusedError, shown

Words = dict[str, Any]
Report = Callable[[str], None]

# It becomes part of paths.
_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9_.-]{0,30}")


class Hypervisor:
    """All machines of a laboratory. Its operations are called from one thread, by the loop."""

    def __init__(self, loop: Loop, state: State, topology: Topology, text: str, report: Report) -> None:
        self._loop = loop
        self._state = state
        self._topology = topology
        self._text = text
        self._report = report
        self._nics = {qube.name: qube.nics for qube in topology.qubes}
        self._agentless = {qube.name for qube in topology.qubes if not qube.agent}
        self._machines: dict[str, Running] = {}
        self._subscribers: list[Connection] = []
        self._domid = 0
        self._offload = False
        self._programs: dict[str, Path] = {}
        self._listeners: dict[str, socket.socket] = {}  # also "control" and "xen"
        self._switchboard = Switchboard(fork)
        self._vifs = Vifs(loop)
        self._late: dict[str, dict[str, float]] = {"network": {}, "agent": {}}
        self.over = False
        self.failed: str | None = None
        self._operations: dict[str, Callable[[Connection, Words], None]] = {
            "create": self._create,
            "boot": self._boot,
            "attach": self._attach,
            "detach": self._detach,
            "settle": lambda c, _: self._vifs.when_idle(c.answer),
            "slow": self._slow,
            "destroy": self._destroy,
            "pause": self._pause,
            "unpause": self._unpause,
            "service": self._service,
            "agent": self._agent,
            "card": self._card,
            "list": self._list,
            "machines": self._list_machines,
            "topology": lambda c, _: c.answer(topology=self._text),
            "ns": self._ns,
            "subscribe": self._subscribe,
            "down": self._down,
        }

    def start(self) -> None:
        """Make everything that is there before qubesd: sockets, networks, hosts, routers, dom0. OSError."""
        mounts = self._state.mounts
        for folder in ("new-root", "vchan", "rw"):
            (mounts / folder).mkdir()
        self._programs["qube"] = root.make_programs(mounts / "bin-qube", root.QUBE_PROGRAMS)
        self._programs["dom0"] = root.make_programs(mounts / "bin-dom0", root.DOM0_PROGRAMS)
        self._listen("control", self._state.control)
        self._listen("xen", mounts / "xen.sock")
        cables.build_networks(self._topology)
        self._offload = cables.can_offload()
        self._report(f"networks {', '.join(self._topology.networks) or '-'}")
        plans = [self._plan_host(host.name, "host", (host.nic,)) for host in self._topology.hosts]
        plans += [self._plan_host(r.name, "router", (r.wan, r.lan)) for r in self._topology.routers]
        plans.append(self._plan_dom0())
        for plan in plans:
            self._add(launch(plan, self._next_domid() if plan.kind != "dom0" else 0, self._state.log(plan.name)))
        for plan in plans:
            self._finish(self._machines[plan.name])
        for plan in plans[:-1]:
            self._machines[plan.name].boot(self._booted(plan.name, lambda _: None))
        self._machines["dom0"].boot(self._booted("dom0", lambda _: None))
        self._report(f"hosts {', '.join(p.name for p in plans[:-1]) or '-'}")

    def ready(self) -> bool:
        """Whether dom0, the hosts and every qube that starts by itself are up."""
        wanted = {qube.name for qube in self._topology.qubes if qube.autostart}
        up = all(machine.up for machine in self._machines.values())
        return up and wanted <= set(self._machines) and self._vifs.idle

    def reap(self) -> None:
        """Take note of every child that ended; a machine whose first process ended is gone."""
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for machine in list(self._machines.values()):
                if machine.pid == pid:
                    self._gone(machine)

    def handle(self, connection: Connection, words: Words) -> None:
        """Do what a client asks; a refusal and a failure are answers."""
        operation = self._operations.get(str(words.get("op")))
        try:
            if operation is None:
                raise RefusedError(f"op {shown(words.get('op'))} is not known")
            operation(connection, words)
        except RefusedError as error:
            connection.answer(ok=False, error=str(error))
        except OSError as error:
            traceback.print_exc()
            if words.get("op") in ("create", "attach"):
                self.failed = self.failed or f"{words['op']} {words.get('name')}: {error}"
            connection.answer(ok=False, error=str(error))

    def _listen(self, name: str, path: Path) -> None:
        listener = listen(path)
        self._listeners[name] = listener
        self._loop.add(listener.fileno(), lambda: self._accept(listener))

    def _accept(self, listener: socket.socket) -> None:
        client, _ = listener.accept()
        Connection(self._loop, client, self.handle, self._closed)

    def _closed(self, connection: Connection) -> None:
        if connection in self._subscribers:
            self._subscribers.remove(connection)

    def _next_domid(self) -> int:
        self._domid += 1
        return self._domid

    def _add(self, machine: Running) -> None:
        self._machines[machine.name] = machine

    def _finish(self, machine: Running) -> None:
        """Wait until a launched machine exists, and connect its cards. OSError, and then it is gone."""
        try:
            wait_created(machine)
            for card in machine.plan.cards:
                cards.connect(machine, card)
        except OSError:
            del self._machines[machine.name]
            machine.kill()
            raise
        self._loop.add(machine.channel.fileno(), lambda: self._heard(machine))

    def _heard(self, machine: Running) -> None:
        if not machine.take_answers():
            self._loop.remove(machine.channel.fileno())

    def _booted(self, name: str, reply: Callable[[str | None], None]) -> Callable[[str | None], None]:
        begun = time.monotonic()

        def done(error: str | None) -> None:
            seconds = time.monotonic() - begun
            if error is None:
                self._report(f"{name} is up ({seconds:.2f} s)")
            else:
                self._report(f"{name} FAILED: {error}")
                self.failed = self.failed or f"{name}: {error}"
            reply(error)

        return done

    def _find(self, words: Words) -> Running:
        name = words.get("name")
        machine = self._machines.get(str(name))
        if machine is None:
            raise RefusedError(f"machine {shown(name)} does not exist or is not running")
        return machine

    def _find_running(self, words: Words) -> Running:
        machine = self._find(words)
        if machine.state != "running":
            raise RefusedError(f"machine {shown(machine.name)} is {machine.state}, it must run")
        return machine

    def _gone(self, machine: Running) -> None:
        """Clear away what a dead machine leaves in others, and tell."""
        self._loop.remove(machine.channel.fileno())
        del self._machines[machine.name]
        machine.close()
        shutil.rmtree(self._vchan(machine.domid), ignore_errors=True)
        cards.remove_leftovers(machine)
        self._unplug_dead(machine)
        for subscriber in list(self._subscribers):
            subscriber.send({"event": "died", "name": machine.name})

    def _create(self, connection: Connection, words: Words) -> None:
        name = str(words.get("name"))
        if not _NAME.fullmatch(name):
            raise RefusedError(f"{shown(name)} is not the name of a qube")
        if name in self._machines:
            raise RefusedError(f"machine {shown(name)} exists already")
        nics = self._nics.get(name, ()) if words.get("nics") else ()
        domid = self._next_domid()
        machine = launch(self._plan_qube(name, domid, str(words.get("type")), nics), domid, self._state.log(name))
        self._add(machine)
        self._finish(machine)
        connection.answer(domid=machine.domid)

    def _boot(self, connection: Connection, words: Words) -> None:
        machine = self._find(words)
        machine.boot(self._booted(machine.name, connection.reply))

    def _service(self, connection: Connection, words: Words) -> None:
        machine = self._find_running(words)
        machine.control(str(words.get("service")), str(words.get("action")), connection.reply)

    def _agent(self, connection: Connection, words: Words) -> None:
        name, installed = str(words.get("name")), bool(words.get("installed"))
        if installed:
            self._agentless.discard(name)
        else:
            self._agentless.add(name)
        machine = self._machines.get(name)
        if machine is None or machine.state != "running":
            connection.answer()
        else:
            machine.control(init.AGENT, "start" if installed else "stop", connection.reply)

    def _card(self, connection: Connection, words: Words) -> None:
        machine, name, action = self._find_running(words), str(words.get("card")), words.get("action")
        if action == "unplug":
            cards.unplug(machine, name)
        elif action == "rename":
            new, old = str(words.get("new")), cards.find(machine, name).nic
            addresses = {"ip": str(old.ip), **({"ip6": str(old.ip6)} if old.ip6 else {})}
            cards.rename(machine, name, self._described(new, {"network": old.network, **addresses}))
        elif action in ("plug", "move"):
            card = self._described(name, {key: words[key] for key in ("network", "ip", "ip6") if words.get(key)})
            (cards.plug if action == "plug" else cards.move)(machine, card)
        else:
            raise RefusedError(f"action {shown(action)} is not known")
        self._nics[machine.name] = tuple(card.nic for card in machine.cards.values())
        connection.answer()

    def _described(self, name: str, words: Words) -> Card:
        return cards.card_of(self._topology, read_nic(name, words, self._topology.networks))

    def _attach(self, connection: Connection, words: Words) -> None:
        machine, backend = self._find(words), self._find({"name": words.get("backend")})
        if self._vifs.postpone(machine.name, lambda: self.handle(connection, words)):
            return
        wire = cables.read_vif(machine.domid, machine.vif_index, words)
        self._unplug(machine)
        self._vifs.attach(machine, backend, wire, self._offload)
        connection.answer()

    def _detach(self, connection: Connection, words: Words) -> None:
        machine = self._find(words)
        if not self._vifs.postpone(machine.name, lambda: self.handle(connection, words)):
            self._unplug(machine)
            machine.vif_index += bool(words.get("abandon"))
            connection.answer()

    def _unplug(self, machine: Running) -> None:
        cables.detach(machine, None if machine.cable is None else self._machines.get(machine.cable.backend))

    def _unplug_dead(self, machine: Running) -> None:
        if not self._vifs.postpone(machine.name, lambda: self._unplug_dead(machine)):
            self._unplug(machine)

    def _slow(self, connection: Connection, words: Words) -> None:
        set_delay(words, {"vif": self._vifs.delays, **self._late})
        connection.answer()

    def _destroy(self, connection: Connection, words: Words) -> None:
        machine = self._find(words)
        self._loop.remove(machine.channel.fileno())
        machine.kill()
        self._gone(machine)
        connection.answer()

    def _pause(self, connection: Connection, words: Words) -> None:
        self._find_running(words).pause()
        connection.answer()

    def _unpause(self, connection: Connection, words: Words) -> None:
        machine = self._find(words)
        if machine.state != "paused":
            raise RefusedError(f"machine {shown(machine.name)} is not paused")
        machine.unpause()
        connection.answer()

    def _list(self, connection: Connection, _: Words) -> None:
        qubes = [m for m in self._machines.values() if m.plan.kind == "qube"]
        connection.answer(domains=[m.described for m in qubes])

    def _list_machines(self, connection: Connection, _: Words) -> None:
        connection.answer(machines=[m.described | {"kind": m.plan.kind} for m in self._machines.values()])

    def _ns(self, connection: Connection, words: Words) -> None:
        connection.answer(fds=self._find(words).namespaces, kinds=list(ns.KINDS))

    def _subscribe(self, connection: Connection, _: Words) -> None:
        self._subscribers.append(connection)
        connection.answer()

    def _down(self, connection: Connection, _: Words) -> None:
        connection.answer()
        self.over = True

    def _layout(self, name: str, programs: str | None, binds: dict[str, Path], **files: str) -> root.Layout:
        hosts = root.hosts_file(name, self._topology)
        own = {"/etc/hostname": f"{name}\n", "/etc/hosts": hosts, "/etc/resolv.conf": ""}
        return root.Layout(name, None if programs is None else self._programs[programs], binds, {**own, **files})

    def _plan_host(self, name: str, kind: str, nics: tuple[Nic, ...]) -> init.Machine:
        layout = self._layout(name, None, {})
        return init.Machine(name, kind, layout, self._new_root(), self._cards_of(nics))

    def _plan_dom0(self) -> init.Machine:
        mounts = self._state.mounts
        binds = {"/run/vchan": mounts / "vchan", "/run/xen.sock": mounts / "xen.sock", **self._qrexec("dom0")}
        if root.X_SOCKETS.is_dir():
            binds[str(root.X_SOCKETS)] = root.X_SOCKETS
        files = {
            init.TOPOLOGY: self._topology.qubesd_json(),
            init.BOOT_ID: f"{uuid.uuid4()}\n",
            "/etc/qubes-release": "Qubes release 4.3 (R4.3)\n",
        }
        return init.Machine("dom0", "dom0", self._layout("dom0", "dom0", binds, **files), self._new_root())

    def _plan_qube(self, name: str, domid: int, klass: str, nics: tuple[Nic, ...]) -> init.Machine:
        mounts = self._state.mounts
        private = mounts / "rw" / name
        if klass == "DispVM" and private.exists():
            shutil.rmtree(private)
        (private / "config/network-hooks.d").mkdir(parents=True, exist_ok=True)
        (vchan := self._vchan(domid)).mkdir()
        binds = {"/run/vchan": vchan, "/rw": private, **self._qrexec(name)}
        layout = replace(self._layout(name, "qube", binds, **root.QUBE_SERVICES), links=root.QUBE_LINKS)
        agent = name not in self._agentless
        late = {unit: seconds[name] for unit, seconds in self._late.items() if name in seconds}
        return init.Machine(name, "qube", layout, self._new_root(), self._cards_of(nics), agent, late)

    def _vchan(self, domid: int) -> Path:
        """The folder of a domain's vchans, which dom0's QubesDB daemon takes for the domain's life."""
        return self._state.mounts / "vchan" / str(domid)

    def _cards_of(self, nics: tuple[Nic, ...]) -> tuple[Card, ...]:
        return tuple(cards.card_of(self._topology, nic) for nic in nics)

    def _qrexec(self, name: str) -> dict[str, Path]:
        """A machine's own qrexec socket: which one is called tells who calls."""
        path = self._state.mounts / "qrexec" / f"{name}.sock"
        if path.exists():
            return {"/run/qrexec.sock": path}
        path.parent.mkdir(exist_ok=True)
        with short_path(path) as short:
            listener = qrexec_listen(short)

        def accept() -> None:
            connection, _ = listener.accept()
            self._loop.add(connection.fileno(), lambda: carry_out(connection))

        def carry_out(connection: socket.socket) -> None:
            self._loop.remove(connection.fileno())
            if name != DOM0 or not self._switchboard.take(connection, self._root_of):
                serve_in_background(self._state, self._machines[DOM0].pid, name, connection)

        self._listeners[name] = listener
        self._loop.add(listener.fileno(), accept)
        return {"/run/qrexec.sock": path}

    def _root_of(self, name: str) -> Path | None:
        machine = self._machines.get(name)
        there = machine is not None and machine.plan.kind == "qube" and machine.state != "created"
        return Path(f"/proc/{machine.pid}/root") if machine is not None and there else None

    def _new_root(self) -> Path:
        # One folder for all: each machine mounts its root there in its own mount namespace.
        return self._state.mounts / "new-root"
