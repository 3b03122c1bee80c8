# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The use cases of dom0 without qubesd's loop: the databases are those of fake qubes, one step after the other."""

from collections.abc import Iterable
from typing import Any

from portfwd.base.qubesdb_client import Store
from portfwd.dom0.planning.plan import Plan
from portfwd.dom0.planning.snapshot import read_way_out
from portfwd.dom0.usecases.service import ForwardService
from portfwd.wire.values import QubeName


def their_own(running: Iterable[Any]) -> dict[QubeName, Store]:
    """The databases as the objects of qubes have them open."""
    found = ((QubeName(str(vm.name)), vm.untrusted_qdb) for vm in running)
    return {name: database for name, database in found if database is not None}


class TheirOwn:
    """In the place of the registry: nothing to open, nothing to close."""

    def of(self, running: Iterable[Any]) -> dict[QubeName, Store]:
        return their_own(running)

    def keep(self, running: object) -> None:
        pass

    def drop(self, name: str) -> None:
        pass

    def close(self) -> None:
        pass


class Service(ForwardService):
    """With a refresh that is one call (dom0/running.py has it as a coroutine)."""

    def __init__(self, *words: Any, **more: Any) -> None:
        super().__init__(*words, **more, databases_of=their_own)

    def refresh(self) -> Plan | None:
        """Make every qube's QubesDB equal to the plan; what was planned."""
        reporting = self.reporting()
        self.record({name: read_way_out(name, database) for name, database in reporting.items()}, reporting)
        work = self.prepare()
        if work is None:
            return None
        orders = work.plan()
        self.published({name: orders.publish(name, database) for name, database in work.databases.items()})
        return orders.planned
