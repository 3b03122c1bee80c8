# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""One running qube on fakes: what stands in for the agent's loop, around the agent's real parts."""

import math
from collections.abc import Callable

from portfwd.agent.desired import Desired, Reporter, read_desired
from portfwd.agent.rules.elements import Network, Surroundings
from portfwd.agent.rules.firewall import Firewall
from portfwd.base.qubesdb_client import DisconnectedError
from portfwd.wire import limits
from portfwd.wire.acknowledgement import AgentState, WayOut
from portfwd.wire.values import Family
from tests.crash.dying import DyingFlows, DyingNft, Fuse, KilledError
from tests.fakes.base import base_tables
from tests.fakes.flows import FakeFlows
from tests.fakes.nft import FakeNft
from tests.fakes.nft_trace import FakeHost
from tests.fakes.packets import Connections
from tests.fakes.qubesdb import FakeQubesDB

_LATE = 2.0
"""As in the agent: seconds that a set of entries may stay half written."""


class Node:
    """One running qube: its database, its kernel, its agent."""

    def __init__(self, name: str, clock: Callable[[], float], present: bool = True) -> None:
        self.name = name
        self.fuse = Fuse()
        self.way_out = WayOut.UPLINK
        self.database = FakeQubesDB()
        self.own = self.database.connect()
        self.nft = FakeNft(clock)
        self.connections = Connections()
        self.host = FakeHost(self.nft, (), ())
        self.wires: object = None
        self.load_base()
        self.start_agent()
        self.present = present

    def load_base(self) -> None:
        """Load the base firewall of a qube that has just started."""
        for family in Family:
            self.nft.run(base_tables(family))

    def start_agent(self) -> None:
        """A new process, which knows nothing."""
        self.present = True
        self.fuse.arm(0)
        self.host.connections = self.connections
        self.firewall = Firewall(DyingNft(self.nft, self.fuse), DyingFlows(FakeFlows(self.host), self.fuse))
        self._desired = Desired()
        self._half: float | None = None
        self._seen: bytes | None = None
        self._due = 0.0
        self._reporter = Reporter(self.own)

    def wake(self) -> None:
        """Something happened that the agent hears of beside QubesDB: links, nftables, the end of a process."""
        self._due = 0.0

    def work(self, now: float) -> bool:
        """What the agent's loop does when something has happened; False when nothing has. It may die meanwhile."""
        try:
            return self.present and self._work_connected(now)
        except KilledError:
            self.start_agent()
            return True

    def _work_connected(self, now: float) -> bool:
        try:
            return self._work(now)
        except DisconnectedError:
            # It connects anew and reads everything again.
            return self._work(now)

    def _work(self, now: float) -> bool:
        commit = self.own.read(limits.BASE)
        if now < self._due and commit == self._seen:
            return False
        self._seen = commit
        desired = read_desired(self.own)
        if desired.complete:
            self._half = None
        else:
            self._half = now if self._half is None else self._half
        if desired.complete or now - (self._half or now) >= _LATE:
            self._desired = desired
        near = tuple(
            Network(card.name, address.network)
            for card in self.host.interfaces.values()
            if card.group == 0
            for address in card.addresses
        )
        results = self.firewall.bring(self._desired.entries, Surroundings(now, near, home=near))
        ends = [float(e.expire) for e in self._desired.entries if e.expire is not None and e.expire > now]
        half = [] if self._half is None else [self._half + _LATE]
        guard = self.firewall.tend(now)
        self._due = min([*ends, *half, *([] if guard is None else [guard])], default=math.inf)
        self._reporter.report(self._desired.generation, AgentState.APPLIED, results, "", self.way_out)
        return True

    def close(self) -> None:
        """Give the descriptors back."""
        self.own.close()
