# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""A few qubes with the attributes that qubesd's objects have, kept in memory and in real files."""

import asyncio
from pathlib import Path
from typing import Any

from lab.qubesd.base.firewall_file import properties_of, read_rules
from portfwd.dom0.storage.forwards import NOTES, Forwards
from portfwd.dom0.storage.store import StoredForward
from portfwd.model.ordinary import OrdinaryRule
from tests.fakes.qubesdb import FakeConnection, FakeQubesDB


class FakeFeatures(dict[str, str]):
    """Features without templates."""

    def check_with_template(self, name: str, default: Any = None) -> Any:
        return self.get(name, default)


class FakeFirewall:
    """The ordinary rules and the forwards of one qube in its real firewall.xml."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.saves = 0
        self._rules = read_rules(path)
        self._kept = Forwards(path, lambda: properties_of(self._rules), path.parent / NOTES)
        self._kept.read()

    @property
    def forwards(self) -> tuple[StoredForward, ...]:
        """What the file says now: nobody tells of an edit by hand."""
        self._kept.reread()
        return self._kept.present

    @property
    def unstored(self) -> str:
        return self._kept.unstored

    @property
    def ordinary(self) -> tuple[OrdinaryRule, ...]:
        return self._rules

    def set_rules(self, *rules: OrdinaryRule) -> None:
        self._rules = rules
        self._kept.reread()
        self._kept.save()

    def save_forwards(self, forwards: tuple[StoredForward, ...]) -> None:
        self.saves += 1
        self._kept.save(forwards)

    def begin_anew(self, forwards: tuple[StoredForward, ...]) -> Path | None:
        return self._kept.begin_anew(forwards)

    def write_again(self) -> None:
        self._kept.write_again()

    def reread(self) -> None:
        self._kept.reread()


class FakeVM:
    """One qube."""

    def __init__(self, folder: Path, name: str, netvm: "FakeVM | None", ip: str) -> None:
        self.name, self.netvm, self.ip, self.ip6 = name, netvm, ip, None
        self.klass, self.xid, self.start_time = "AppVM", 1, 1.0
        self.running, self.provides_network = True, name.startswith("sys-")
        self.features = FakeFeatures({"supported-service.qubes-port-forward": "1"})
        self.tags: set[str] = set()
        folder.mkdir(parents=True, exist_ok=True)
        self.firewall = FakeFirewall(folder / "firewall.xml")
        self.database = FakeQubesDB().connect()
        self.services: dict[str, str] = {}
        """qrexec service -> the shell script that answers it."""

    @property
    def visible_ip(self) -> str:
        return self.ip

    async def run_service(self, service: str, *, user: str, **streams: Any) -> asyncio.subprocess.Process:
        assert user == "root"
        if not self.running or service not in self.services:
            raise ValueError(f"{self.name} has no {service}")
        return await asyncio.create_subprocess_exec("sh", "-c", self.services[service], **streams)

    def is_running(self) -> bool:
        return self.running

    def is_paused(self) -> bool:
        return False

    @property
    def untrusted_qdb(self) -> FakeConnection | None:
        return self.database if self.running else None


class FakeApp:
    """sys-net <- sys-firewall <- work, personal."""

    def __init__(self, folder: Path) -> None:
        self.net = FakeVM(folder / "sys-net", "sys-net", None, "10.137.0.4")
        self.firewall = FakeVM(folder / "sys-firewall", "sys-firewall", self.net, "10.137.0.5")
        self.work = FakeVM(folder / "work", "work", self.firewall, "10.137.0.6")
        self.personal = FakeVM(folder / "personal", "personal", self.firewall, "10.137.0.7")
        self.domains = [self.net, self.firewall, self.work, self.personal]
        self.saves = 0

    def save(self) -> None:
        self.saves += 1
