# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Qubes: their properties, addresses and QubesDB entries, under the attribute names that qubesd's own objects have.

What happens to a qube over time is elsewhere: lifecycle (start, stop, pause) and network (net qube, firewall entries).
"""

from __future__ import annotations

import asyncio
import enum
import ipaddress
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab.qubesd.errors import QubesValueError, QubesVMNotRunningError
from lab.qubesd.features import Features, Tags
from lab.qubesd.firewall import Firewall
from lab.qubesd.holder import Holder, Property, as_bool, as_ipv4, as_ipv6, as_label, as_mac, as_qube, as_text
from lab.qubesd.qdb_watch import QdbWatch
from lab.qubesd.service_call import ServiceCall
from portfwd.base.qubesdb_client import Database, Error

if TYPE_CHECKING:
    from lab.qubesd.app import App

PRELOADED = "preload-dispvm"
"""The feature of a disposable template that lists its preloaded disposables."""
DNS = ("10.139.1.1", "10.139.1.2")
_NETMASK = "255.255.255.255"
_IPV6_PREFIX = "fd09:24ef:4179::"


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


def _accept_netvm(qube: Qube, untrusted_text: str) -> Qube | None:
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
        app: App,
        values: Mapping[str, Any],
        features: Mapping[str, str] | None = None,
        tags: Iterable[str] = (),
    ) -> None:
        super().__init__(app.vm_handlers, app)
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

    netvm = Property("vm", lambda q: q.app.default_netvm, _accept_netvm)
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
        "str", lambda q: q.features.check_with_template("net.fake-netmask") or (_NETMASK if q.netvm else None)
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

    def __init__(self, app: App, values: Mapping[str, Any], nics: bool = False, **kwargs: Any) -> None:
        super().__init__(app, values, **kwargs)
        self.nics = nics
        self.power = Power.HALTED
        self.domid = -1
        self.started = 0.0
        self.startup_lock = asyncio.Lock()
        self.stopped: asyncio.Event = asyncio.Event()
        self._firewall: Firewall | None = None
        self._qdb: Database | None = None
        self.qdb_watch = QdbWatch(self)

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
        return "netvm" not in self.values and not isinstance(self, TemplateVM)

    def is_networked(self) -> bool:
        return bool(self.provides_network) or self.netvm is not None

    def has_ipv6(self) -> bool:
        return bool(self.features.check_with_netvm("ipv6", False))

    def own_ipv4(self) -> ipaddress.IPv4Address:
        """The address that follows from the qube's number."""
        return numbered_ipv4("10.137", self.qid)

    def own_ipv6(self) -> ipaddress.IPv6Address:
        """The address that follows from the qube's number."""
        return ipaddress.IPv6Address(f"{_IPV6_PREFIX}a89:{self.qid:x}")

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
            self._firewall = Firewall(self, Path(self.dir_path) / self.firewall_conf)
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
                self._qdb = self.app.databases.open(self.name)
            except Error:
                return None
        return self._qdb

    def watch_qdb_path(self, path: str) -> None:
        """Have each change of a path fire domain-qdb-change:PATH, in this run and in later ones."""
        self.qdb_watch.add(path)

    def close_qdb(self) -> None:
        """Forget the connections, as the domain is gone."""
        self.qdb_watch.stop()
        if self._qdb is not None:
            self._qdb.close()
        self._qdb = None

    def create_qdb_entries(self) -> None:
        """Write what a qube reads about itself, then fire domain-qdb-create."""
        database = self.untrusted_qdb
        if database is None:
            raise Error(f"QubesDB of {self.name} is not there")
        for path, value in self._qdb_entries().items():
            database.write(path, value)
        self.fire_event("domain-qdb-create")

    def _qdb_entries(self) -> dict[str, str]:
        outermost = "NetVM" if self.netvm is None else "ProxyVM"
        of_class = "TemplateVM" if self.klass == "TemplateVM" else "AppVM"
        entries = {
            "/name": self.name,
            "/type": self.klass,
            "/qubes-vm-type": outermost if self.provides_network else of_class,
            "/default-user": self.default_user,
            "/qubes-base-template": str(self.template or ""),
            "/qubes-vm-persistence": "rw-only" if self.template else "full",
        }
        dns = dict(zip(("primary-dns", "secondary-dns"), DNS, strict=True))
        if self.provides_network:
            net = {"network": self.gateway, "gateway": self.gateway, "gateway6": self.gateway6, "netmask": _NETMASK}
            entries |= {f"/qubes-netvm-{key}": str(value) for key, value in (net | dns).items() if value}
            entries |= {"/qubes-service/qubes-network": "1", "/qubes-service/qubes-firewall": "1"}
        if self.netvm is not None:
            own = {"mac": self.mac, "ip": self.visible_ip, "netmask": self.visible_netmask} | dns
            own |= {"gateway": self.visible_gateway, "ip6": self.visible_ip6, "gateway6": self.visible_gateway6}
            entries |= {f"/qubes-{key}": str(value) for key, value in own.items() if value}
        return entries


class AppVM(Qube):
    """A qube whose system is that of a template."""

    template = Property("vm", lambda _q: None, as_qube("template"))


class StandaloneVM(Qube):
    """A qube with a system of its own."""


class TemplateVM(Qube):
    """The system of other qubes. It has no network unless told so."""

    folder = "vm-templates"
    netvm = Property("vm", lambda _q: None, _accept_netvm)


class DispVM(Qube):
    """A disposable."""

    template = Property("vm", lambda _q: None, as_qube("template"))
    dispid = Property("int")
    auto_cleanup = Property("bool", lambda _q: False, as_bool)
    is_preload = Property("bool", lambda q: q.preload_requested or q.name in preloaded(q.template))
    preload_requested = False

    def own_ipv4(self) -> ipaddress.IPv4Address:
        return numbered_ipv4("10.138", self.dispid)

    def own_ipv6(self) -> ipaddress.IPv6Address:
        return ipaddress.IPv6Address(f"{_IPV6_PREFIX}a8a:{self.dispid:x}")


def preloaded(template: Qube | None) -> list[str]:
    """The names of a template's preloaded disposables; none for a disposable without template."""
    return [] if template is None else str(template.features.get(PRELOADED, "")).split()


CLASSES: dict[str, type[Qube]] = {c.__name__: c for c in (AppVM, StandaloneVM, TemplateVM, DispVM)}
"""The classes that can be created."""
