# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The application object: all qubes, the global properties, and the file in which they outlive qubesd.

That file has the format of a topology, so a laboratory's first start and a restart of qubesd read the same thing.
"""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lab.qubesd.base.errors import (
    QubesException,
    QubesPropertyValueError,
    QubesVMAlreadyExistsError,
    QubesVMInUseError,
    QubesVMNotHaltedError,
)
from lab.qubesd.base.events import Handlers
from lab.qubesd.base.holder import Holder, Property, as_qube, check_name
from lab.qubesd.outside.databases import DatabaseHost
from lab.qubesd.outside.xen import Domain, Hypervisor
from lab.qubesd.qubes.classes import CLASSES, DispVM
from lab.qubesd.qubes.qube import AdminVM, Domains, Power, Qube
from portfwd.wire.limits import FEATURE_AGENT

QID_MAX = 10000
_NOT_INHERITED = ("name", "qid", "uuid", "label", "template", "ip", "ip6", "template_for_dispvms", "autostart")


def _accept_default_netvm(app: App, untrusted_text: str) -> Qube | None:
    value: Qube | None = as_qube("default_netvm")(app, untrusted_text)
    for vm in app.domains.qubes() if value is not None else ():
        if vm.uses_default_netvm() and (value is vm or value in app.domains.get_vms_connected_to(vm)):
            raise QubesPropertyValueError(f"Network loop on '{vm}'")
    return value


class App(Holder):
    """qubesd's view of the world. `base_dir` is /var/lib/qubes, `boot_id` names this run of the host."""

    default_netvm = Property("vm", lambda _app: None, _accept_default_netvm)

    def __init__(self, base_dir: Path, xen: Hypervisor, databases: DatabaseHost, boot_id: str = "") -> None:
        self.vm_handlers, self.app_handlers = Handlers(), Handlers()
        self.domains = Domains()
        self.network_lock = asyncio.Lock()
        super().__init__(self.app_handlers, self.domains, self.network_lock)
        self.base_dir = base_dir
        self.boot_id = boot_id
        self.xen = xen
        self.databases = databases
        self.notes: Path | None = None
        self.log = logging.getLogger("app")
        self._save_waits = False
        dom0 = AdminVM(self, {"name": "dom0", "qid": 0, "uuid": uuid.UUID(int=0), "label": "black"})
        self.domains.put(dom0)

    def __str__(self) -> str:
        return "app"

    # Qubes

    def add(self, klass: str, name: str, label: str, template: Qube | None = None, **more: Any) -> Qube:
        """Create a qube, with its folder, and fire domain-add. A disposable without a name gets one."""
        values: dict[str, Any] = {"qid": self._free("qid"), "uuid": uuid.uuid4(), "label": label}
        features: dict[str, str] = {}
        if "template" in CLASSES[klass].properties():
            values["template"] = template
        if klass == "DispVM":
            values["dispid"] = self._free("dispid")
            name = name or f"disp{values['dispid']}"
            if template is not None:
                inherited = {k: v for k, v in template.values.items() if k not in _NOT_INHERITED}
                values = inherited | values
                features = {k: v for k, v in template.features.items() if not k.startswith("preload-dispvm")}
        if name in self.domains:
            raise QubesVMAlreadyExistsError(f"Qube already exists: {name}")
        values["name"] = check_name(name)
        vm = CLASSES[klass](self, values | more, features=features)
        if isinstance(vm, DispVM) and template is not None:
            vm.firewall.clone(template.firewall)
        self._announce(vm)
        return vm

    def remove(self, vm: Qube) -> None:
        """Remove a halted qube that no other one needs, and its folder."""
        if not vm.is_halted():
            raise QubesVMNotHaltedError(vm)
        if any(user is vm for q in self.domains.qubes() if q is not vm for user in (q.netvm, q.template)):
            raise QubesVMInUseError(
                vm, f"Domain is in use: {str(vm)!r};  see 'journalctl -u qubesd -e' in dom0 for details"
            )
        self.fire_event("domain-pre-delete", pre_event=True, vm=vm)
        self.domains.drop(vm)
        if self.default_netvm is vm:
            self.values.pop("default_netvm")
        self.fire_event("domain-delete", vm=vm)
        vm.close_firewall()
        shutil.rmtree(vm.dir_path, ignore_errors=True)
        self.save()

    def _announce(self, vm: Qube) -> None:
        self.domains.put(vm)
        Path(vm.dir_path).mkdir(parents=True, exist_ok=True)
        vm.events_enabled = True
        self.fire_event("domain-add", vm=vm)

    def _free(self, name: str) -> int:
        used = {vm.values.get(name) for vm in self.domains}
        return next(number for number in range(1, QID_MAX) if number not in used)

    # File

    @property
    def state_file(self) -> Path:
        """Where the qubes are kept."""
        return self.base_dir / "qubes.json"

    def load(self, topology: Mapping[str, Any], running: Mapping[str, Domain] | None = None) -> None:
        """Take in qubes and global properties, without any event but domain-load at the end.

        `running` are the domains that already exist, as after a restart of qubesd.
        """
        for described in topology["qubes"]:
            self.domains.put(self._described(described))
        for described in topology["qubes"]:
            vm = self.domains[described["name"]]
            for name in ("netvm", "template"):
                # A netvm that is not said is the default one; said as null it is none.
                if name in described and name in vm.properties():
                    vm.values[name] = self._existing(described[name])
        if topology.get("default_netvm"):
            self.values["default_netvm"] = self._existing(topology["default_netvm"])
        for name, domain in (running or {}).items():
            if isinstance(vm := self.domains.get(name), Qube):
                vm.domid, vm.power = domain.domid, Power.PAUSED if domain.paused else Power.RUNNING
        for vm in self.domains:
            vm.events_enabled = True
            if isinstance(vm, Qube):
                Path(vm.dir_path).mkdir(parents=True, exist_ok=True)
        self.events_enabled = True
        for vm in self.domains.qubes():
            if vm.is_running():
                vm.qdb_watch.start()
        for vm in self.domains:
            vm.fire_event("domain-load")

    def dump(self) -> dict[str, Any]:
        """The same as load() takes."""
        return {
            "boot_id": self.boot_id,
            "qubes": [_describe(vm) for vm in self.domains.qubes()],
            "default_netvm": self.default_netvm.name if self.default_netvm else None,
        }

    def save(self) -> None:
        """Write the file soon; many changes in a row are one write."""
        if not self._save_waits:
            self._save_waits = True
            asyncio.get_running_loop().call_soon(self.save_now)

    def save_now(self) -> None:
        """Write the file."""
        self._save_waits = False
        self.base_dir.mkdir(parents=True, exist_ok=True)
        new = self.state_file.with_suffix(".new")
        new.write_text(json.dumps(self.dump(), indent=1) + "\n")
        new.replace(self.state_file)

    def _described(self, described: Mapping[str, Any]) -> Qube:
        klass = CLASSES[described.get("klass", "AppVM")]
        values: dict[str, Any] = {"name": check_name(described["name"]), "label": described.get("label", "red")}
        values["qid"] = described.get("qid") or self._free("qid")
        values["uuid"] = uuid.UUID(described["uuid"]) if "uuid" in described else uuid.uuid4()
        if issubclass(klass, DispVM):
            values["dispid"] = described.get("dispid") or self._free("dispid")
        features = {key: str(value) for key, value in described.get("features", {}).items()}
        if described.get("agent"):
            features.setdefault(FEATURE_AGENT, "1")
        vm = klass(self, values, nics=bool(described.get("nics")), features=features, tags=described.get("tags", []))
        vm.started = float(described.get("started", 0.0))
        for name, prop in klass.properties().items():
            if prop.kind != "vm" and prop.accept is not None and described.get(name) is not None:
                vm.values[name] = prop.accept(vm, str(described[name]))
        return vm

    def _existing(self, name: str | None) -> Qube | None:
        if name is None:
            return None
        vm: Qube | None = self.domains.get(name)
        if vm is None:
            raise QubesException(f"qube {name!r} of the topology does not exist")
        return vm

    def report(self, task: asyncio.Future[None]) -> None:
        """Log the error of a task that nobody waits for."""
        with suppress(asyncio.CancelledError):
            if (error := task.exception()) is not None:
                self.log.error("in the background: %s", error)


def _describe(vm: Qube) -> dict[str, Any]:
    described: dict[str, Any] = {"klass": vm.klass, "nics": vm.nics, "started": vm.started}
    for name, value in vm.values.items():
        described[name] = value if value is None or isinstance(value, (bool, int)) else str(value)
    return described | {"features": dict(vm.features), "tags": list(vm.tags)}
