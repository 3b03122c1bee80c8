# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""What the computer on fakes consists of: qubes that are made, start and halt, dom0, and the passing of time."""

import itertools
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from portfwd.wire import limits
from tests.crash.dying import DyingDatabase, Fuse
from tests.fakes.app import FakeVM
from tests.fakes.nft_rules import Verdict
from tests.fakes.service import Service
from tests.oracle.doors import Row, doors_of
from tests.oracle.fake_net import FakeNet
from tests.oracle.node import Node
from tests.oracle.rules import Doors, Home, Qube

QUBES = {
    "sys-net": None,
    "sys-usb": None,
    "sys-firewall": "sys-net",
    "sys-spare": "sys-usb",
    "sys-vpn": "sys-firewall",
    "work": "sys-firewall",
    "personal": "sys-firewall",
    "media": "sys-vpn",
    "untrusted": "sys-spare",
}
_ROUNDS = 20
"""So often an agent may find something to do after one event, and die."""


def addresses(number: int) -> dict[int, str]:
    """The addresses that the qube with this number has in the beginning."""
    return {4: f"10.137.0.{number}", 6: f"fd09:24ef:4179::a89:{number:x}"}


class FakeComputer(FakeNet):
    """See Driver."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self._random = random.Random(seed)
        self._time = 1_800_000_000.0
        self._folder = Path(tempfile.mkdtemp(prefix="oracle-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
        self._fuse = Fuse()
        self._away = False
        self._runs, self._boots, self._ids = itertools.count(1), 1, itertools.count(4)
        for name, netvm in QUBES.items():
            self._make(name, netvm)
        for name in QUBES:
            self._boot(name)
        self.service = self._new_service()
        self.wire()
        self._refresh()

    @property
    def domains(self) -> list[FakeVM]:
        """For the service of dom0."""
        return list(self.vms.values())

    def save(self) -> None:
        """As qubesd's application: its qubes.xml is not imitated."""

    def close(self) -> None:
        """Leave nothing behind."""
        for name in list(self.nodes):
            self._halt(name)
        shutil.rmtree(self._folder)

    def now(self) -> int:
        """See Driver."""
        return int(self._time)

    def settle(self, home: Home) -> Iterator[None]:
        """See Driver."""
        del home
        yield
        if not self._away:
            self.service.expire()
        self._refresh()
        for _ in range(_ROUNDS):
            nodes = [node for name, node in self.nodes.items() if name not in self.paused]
            self._random.shuffle(nodes)
            worked = False
            for node in nodes:
                if node.work(self._time):
                    worked = True
                    yield
            if not worked:
                return
            # dom0 watches what agents say of their way out.
            self._refresh()
        raise AssertionError("agents find no rest")

    def doors(self, qube: str) -> Doors:
        """See Driver."""
        nft = self.nodes[qube].nft
        doors: Doors = {}
        for family, ip in ((4, "ip"), (6, "ip6")):
            table = nft.ruleset.get((ip, "qubes-port-forward"))
            rows: dict[str, list[Row]] = {}
            for name, found in table.sets.items() if table is not None else ():
                for key, element in found.live(nft.now).items():
                    data = (element.data.chain,) if isinstance(element.data, Verdict) else element.data or ()
                    rows.setdefault(name, []).append((key, data))  # type: ignore[arg-type]
            doors |= doors_of(family, rows)
        return doors

    def _clock(self) -> float:
        return self._time

    def _new_service(self) -> Service:
        return Service(self, f"boot-{self._boots}", self._clock, self._clock, holders=self._folder / "holders")

    def _changed(self) -> None:
        self.wire()
        self._refresh()

    def _refresh(self) -> None:
        if not self._away and self.service.refresh() is None:
            raise AssertionError("the refresh failed")

    def _feature(self, qube: str, name: str, value: str) -> None:
        self.vms[qube].features.pop(name, None)
        if value:
            self.vms[qube].features[name] = value
        self._changed()

    def _make(self, name: str, netvm: str | None, address: str | None = None) -> FakeVM:
        number = self.numbers[name] = next(self._ids)
        own = addresses(number)
        vm = FakeVM(self._folder / name, name, self.vms[netvm] if netvm else None, address or own[4])
        vm.ip6 = own[6]  # type: ignore[assignment]
        vm.running, vm.provides_network = False, name.startswith("sys-")
        vm.database.close()
        self.vms[name] = vm
        return vm

    def _new_qube(self, name: str, netvm: str | None, address: str | None = None) -> Qube:
        vm = self._make(name, netvm, address)
        self._changed()
        return Qube(name, netvm, {4: vm.ip, 6: str(vm.ip6)}, running=False)

    def _boot(self, name: str) -> None:
        vm = self.vms[name]
        node = self.nodes[name] = Node(name, self._clock, present=limits.FEATURE_AGENT in vm.features)
        vm.running, vm.xid = True, next(self._runs)
        database: Any = DyingDatabase(node.database.connect(), self._fuse)
        vm.database = database

    def _halt(self, name: str) -> None:
        self.paused.discard(name)
        self.vms[name].running = False
        self.vms[name].database.close()
        self.nodes.pop(name).close()
