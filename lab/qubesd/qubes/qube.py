# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Qubes, the list of them, and what they need of the application, under the names that qubesd's own objects have.

What happens to a qube over time is elsewhere (lab.qubesd.life).
"""

from __future__ import annotations

import asyncio
import enum
import ipaddress
import logging
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from lab.qubesd.base.errors import QubesValueError, QubesVMNotRunningError
from lab.qubesd.base.events import Handlers
from lab.qubesd.base.features import Features, Tags
from lab.qubesd.base.holder import Holder, Property, as_bool, as_ipv4, as_ipv6, as_label, as_mac, as_qube, as_text
from lab.qubesd.outside.databases import DatabaseHost
from lab.qubesd.outside.service_call import ServiceCall
from lab.qubesd.outside.xen import Hypervisor
from lab.qubesd.qubes.firewall import Firewall
from lab.qubesd.qubes.qdb_watch import QdbWatch
from portfwd.base.qubesdb_client import Database, Error

DNS = ("10.139.1.1", "10.139.1.2")
NETMASK = "255.255.255.255"
IPV6_PREFIX = "fd09:24ef:4179::"


class Application(Protocol):
    """What qubes, and all that happens to them, need of the application."""

    base_dir: Path
    notes: Path | None
    vm_handlers: Handlers
    app_handlers: Handlers
    domains: Domains
    network_lock: asyncio.Lock
    xen: Hypervisor
    databases: DatabaseHost

    @property
    def default_netvm(self) -> Qube | None:
        """The net qube of those for which none is set."""

    def add(self, klass: str, name: str, label: str, template: Qube | None = None, **more: Any) -> Qube:
        """Create a qube."""

    def remove(self, vm: Qube) -> None:
        """Remove a halted qube."""

    def save(self) -> None:
        """Keep what has changed."""

    def report(self, task: asyncio.Future[None]) -> None:
        """Log the error of a task that nobody waits for."""


class Domains:
    """All qubes, dom0 too, in the order of their names."""

    def __init__(self) -> None:
        self._by_name: dict[str, LocalVM] = {}

    def __iter__(self) -> Iterator[LocalVM]:
        return iter([self._by_name[name] for name in sorted(self._by_name)])

    def __len__(self) -> int:
        return len(self._by_name)

    def __contains__(self, key: object) -> bool:
        return key in self._by_name if isinstance(key, str) else key in self._by_name.values()

    def __getitem__(self, name: str) -> Any:
        return self._by_name[name]

    def get(self, name: str) -> Any:
        """The qube of that name, or None."""
        return self._by_name.get(name)

    def by_uuid(self, wanted: uuid.UUID) -> LocalVM | None:
        """The qube with that UUID."""
        return next((vm for vm in self if vm.uuid == wanted), None)

    def qubes(self) -> list[Qube]:
        """All but dom0."""
        return [vm for vm in self if isinstance(vm, Qube)]

    def get_vms_connected_to(self, netvm: Qube) -> set[Qube]:
        """All qubes behind a net qube, at any depth."""
        found: set[Qube] = set()
        waiting = [netvm]
        while waiting:
            new = set(waiting.pop().connected_vms) - found
            found |= new
            waiting += new
        return found

    def put(self, vm: LocalVM) -> None:
        self._by_name[vm.name] = vm

    def drop(self, vm: LocalVM) -> None:
        del self._by_name[vm.name]


class Power(enum.StrEnum):
    """The states of a domain, in the words of admin.vm.List."""

    HALTED = "Halted"
    TRANSIENT = "Transient"
    RUNNING = "Running"
    PAUSED = "Paused"
    HALTING = "Halting"


def numbered_ipv4(prefix: str, number: int) -> ipaddress.IPv4Address:
    """PREFIX.x.y for the number of a qube; from 255 on without the bytes 0 and 255."""
    high, low = divmod(number, 256) if number < 255 else divmod(number - 1, 254)
    return ipaddress.IPv4Address(f"{prefix}.{high}.{low if number < 255 else low + 1}")


def accept_netvm(qube: Qube, untrusted_text: str) -> Qube | None:
    """The net qube of that name, when this qube may have it; None for an empty text."""
    value: Qube | None = as_qube("netvm")(qube, untrusted_text)
    qube.check_netvm(value)
    return value


def _accept_provides_network(qube: Qube, untrusted_text: str) -> bool:
    value = as_bool(qube, untrusted_text)
    if not value and any(qube.connected_vms):
        raise QubesValueError("The qube is still used by other qubes, change theirs 'netvm' first")
    return value


class LocalVM(Holder):
    """What dom0 and the other qubes have in common."""

    template: Any = None
    name = Property()
    qid = Property("int")
    uuid = Property()
    klass = Property(default=lambda vm: type(vm).__name__)
    label = Property("label", accept=as_label)

    def __init__(
        self,
        app: Application,
        values: Mapping[str, Any],
        features: Mapping[str, str] | None = None,
        tags: Iterable[str] = (),
    ) -> None:
        super().__init__(app.vm_handlers, app.domains, app.network_lock)
        self.app = app
        self.values.update(values)
        self.features = Features(self, features or {})
        self.tags = Tags(self, tags)
        self.log = logging.getLogger(f"vm.{self.name}")

    def __str__(self) -> str:
        return str(self.name)

    def __repr__(self) -> str:
        return f"<{self.klass} {self.name}>"

    @property
    def untrusted_qdb(self) -> Database | None:
        """dom0's connection to the QubesDB of this qube; None while there is none."""
        return None

    def get_power_state(self) -> str:
        return Power.RUNNING.value

    def is_running(self) -> bool:
        return True

    def is_paused(self) -> bool:
        return False

    def is_halted(self) -> bool:
        return False


class AdminVM(LocalVM):
    """dom0."""


class Qube(LocalVM):
    """A qube with a network part."""

    netvm = Property("vm", lambda q: q.app.default_netvm, accept_netvm)
    ip = Property("str", lambda q: q.own_ipv4() if q.is_networked() else None, as_ipv4)
    ip6 = Property("str", lambda q: q.own_ipv6() if q.is_networked() and q.has_ipv6() else None, as_ipv6)
    mac = Property("str", lambda _q: "00:16:3e:5e:6c:00", as_mac)
    provides_network = Property("bool", lambda _q: False, _accept_provides_network)
    visible_ip = Property("str", lambda q: q.features.check_with_template("net.fake-ip") or q.ip)
    visible_ip6 = Property("str", lambda q: q.ip6)
    visible_gateway = Property(
        "str", lambda q: q.features.check_with_template("net.fake-gateway") or (q.netvm.gateway if q.netvm else None)
    )
    visible_gateway6 = Property("str", lambda q: q.netvm.gateway6 if q.netvm and q.has_ipv6() else None)
    visible_netmask = Property(
        "str", lambda q: q.features.check_with_template("net.fake-netmask") or (NETMASK if q.netvm else None)
    )
    gateway = Property("str", lambda q: q.visible_ip if q.provides_network else None)
    gateway6 = Property("str", lambda q: q.visible_ip6 if q.provides_network and q.has_ipv6() else None)
    dns = Property("str", lambda q: " ".join(DNS) if q.is_networked() else None)
    autostart = Property("bool", lambda _q: False, as_bool)
    default_user = Property("str", lambda _q: "user", as_text)
    template_for_dispvms = Property("bool", lambda _q: False, as_bool)
    xid = Property("int", lambda q: q.domid)
    start_time = Property("str", lambda q: f"{q.started:.2f}" if q.is_running() else None)

    folder = "appvms"
    firewall_conf = "firewall.xml"

    def __init__(self, app: Application, values: Mapping[str, Any], nics: bool = False, **kwargs: Any) -> None:
        super().__init__(app, values, **kwargs)
        self.nics = nics
        self.power = Power.HALTED
        self.domid = -1
        self.started = 0.0
        self.startup_lock = asyncio.Lock()
        self.stopped: asyncio.Event = asyncio.Event()
        self._firewall: Firewall | None = None
        self._qdb: Database | None = None
        self.qdb_watch = QdbWatch(self._connect, self._on_qdb_change, self.log)

    # Power

    def get_power_state(self) -> str:
        return self.power.value

    def is_running(self) -> bool:
        return self.power is not Power.HALTED

    def is_paused(self) -> bool:
        return self.power is Power.PAUSED

    def is_halted(self) -> bool:
        return self.power is Power.HALTED

    # Network

    @property
    def connected_vms(self) -> Iterator[Qube]:
        """The qubes whose net qube this is."""
        return (vm for vm in self.app.domains.qubes() if vm.netvm is self)

    def uses_default_netvm(self) -> bool:
        return "netvm" not in self.values

    def is_networked(self) -> bool:
        return bool(self.provides_network) or self.netvm is not None

    def has_ipv6(self) -> bool:
        return bool(self.features.check_with_netvm("ipv6", False))

    def own_ipv4(self) -> ipaddress.IPv4Address:
        """The address that follows from the qube's number."""
        return numbered_ipv4("10.137", self.qid)

    def own_ipv6(self) -> ipaddress.IPv6Address:
        """The address that follows from the qube's number."""
        return ipaddress.IPv6Address(f"{IPV6_PREFIX}a89:{self.qid:x}")

    def check_netvm(self, value: Qube | None) -> None:
        """Refuse a net qube that provides no network or that would close a loop."""
        if value is None:
            return
        if not getattr(value, "provides_network", False):
            raise QubesValueError(f"The {value} qube does not provide network")
        if value is self or value in self.app.domains.get_vms_connected_to(self):
            raise QubesValueError("Loops in network are unsupported")

    # Services

    async def run_service(self, service: str, *, user: str, stdin: int, stdout: int, stderr: int) -> ServiceCall:
        """Start a qrexec service in this qube, as called by dom0. Raises QubesException when it does not run.

        In the laboratory every service runs as root, whatever `user` is.
        """
        if self.power is not Power.RUNNING:
            raise QubesVMNotRunningError(self)
        del user
        return ServiceCall.start(self.name, service, (stdin, stdout, stderr))

    # Files and databases

    @property
    def dir_path(self) -> str:
        return str(self.app.base_dir / self.folder / self.name)

    @property
    def firewall(self) -> Firewall:
        """The rules, read from the file at the first use. StoreError when the file is damaged."""
        if self._firewall is None:
            self._firewall = Firewall(
                self.name, Path(self.dir_path) / self.firewall_conf, self.app.notes, self._on_firewall, self.log
            )
        return self._firewall

    def close_firewall(self) -> None:
        """Forget the rules and their timer."""
        if self._firewall is not None:
            self._firewall.close()
        self._firewall = None

    @property
    def untrusted_qdb(self) -> Database | None:
        if not self.is_running():
            return None
        if self._qdb is None:
            try:
                self._qdb = self._connect()
            except Error:
                return None
        return self._qdb

    def _connect(self) -> Database:
        return self.app.databases.open(self.name)

    def _on_qdb_change(self, watched: str, path: str) -> None:
        self.fire_event(f"domain-qdb-change:{watched}", path=path)

    def _on_firewall(self) -> None:
        self.fire_event("firewall-changed")

    def watch_qdb_path(self, path: str) -> None:
        """Have each change of a path fire domain-qdb-change:PATH, in this run and in later ones."""
        self.qdb_watch.add(path)

    def close_qdb(self) -> None:
        """Forget the connections, as the domain is gone."""
        self.qdb_watch.stop()
        if self._qdb is not None:
            self._qdb.close()
        self._qdb = None
