# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Ends the connections that no entry allows any more, a limited number at a time.

Clients can hold any number of connections open, and ending tens of thousands takes seconds. In between the agent's loop
serves whatever else has happened.
"""

import logging
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import islice

from portfwd.agent.rules.elements import Surroundings
from portfwd.agent.rules.skeleton import MARK_OURS
from portfwd.agent.rules.sweep import Judge, lingers
from portfwd.kernel.conntrack import Flow, FlowTable, Which
from portfwd.wire.entry import Entry
from portfwd.wire.values import Proto

log = logging.getLogger(__name__)

STEP = 1000
"""Connections that are looked at in one step: some 0.05 s when all of them end."""


class Revoker:
    """Walks the connection table in steps.

    `watch` has the guard watch for connections before conntrack forgets them; `tell` tells their clients.
    """

    def __init__(
        self, flows: FlowTable, watch: Callable[[list[Flow], float], None], tell: Callable[[list[Flow]], None]
    ) -> None:
        self._flows, self._watch, self._tell = flows, watch, tell
        self._entries: list[Entry] = []
        self._judge = Judge((), Surroundings(0))
        self._before: list[Judge] = []
        self._walk: Iterator[tuple[int, list[Flow]]] | None = None
        self._again = False
        self._ended = 0
        self._refused: OSError | None = None

    @property
    def walking(self) -> bool:
        """Whether there are connections that have not been looked at yet."""
        return self._walk is not None

    @property
    def failed(self) -> bool:
        """Whether the last walk broke off, and some connections have not been looked at."""
        return self._walk is None and bool(self._before)

    def begin(self, entries: list[Entry], around: Surroundings, protos: Collection[Proto]) -> None:
        """Walk over everything, since something may not be allowed any more. judge_by() is to follow.

        `entries` and `around` are those until now; `protos`: in which something may have to end. A walk that has begun
        goes on, and another one follows it.
        """
        if self.walking:
            self._again = True
        else:
            self._walk = self._everything(set(Proto) if self._before else protos)
        self._before.append(Judge(entries, around))

    def retry(self) -> None:
        """Walk over everything again after a failure. judge_by() is to follow."""
        self._walk = self._everything(set(Proto))

    def judge_by(self, entries: list[Entry], around: Surroundings) -> None:
        """Take these entries for what allows connections, also in a walk that has begun."""
        self._entries, self._judge = entries, Judge(entries, around)

    def step(self, now: float) -> None:
        """Look at STEP connections, or a few more.

        Raises OSError when the walk has failed: connections could not be looked at, or some could not be ended.
        """
        seen = 0
        while self._walk is not None and seen < STEP:
            try:
                number, ours = next(self._walk, (0, []))
                self._end([flow for flow in ours if not self._judge.allowing(flow)], now)
            except OSError:
                self._walk, self._again = None, False
                raise
            seen += number
            if not number:
                self._end_of_walk()

    def _end_of_walk(self) -> None:
        if self._again:
            self._again = False
            self._walk = self._everything(set(Proto))
            return
        self._walk = None
        if self._ended:
            log.info("ended %d connections of forwards that are gone", self._ended)
            self._ended = 0
        if self._refused is not None:
            refused, self._refused = self._refused, None
            raise refused
        self._before.clear()

    def _everything(self, protos: Collection[Proto]) -> Iterator[tuple[int, list[Flow]]]:
        """All connections in batches: how many were looked at, and which of them are ours.

        First what both sides have taken up: the rest may be any number that strangers have begun. Where a script has
        overwritten the whole mark, what the entries of before allowed is taken for ours.
        """
        rest = [Which(assured=False)] if len(protos) == len(Proto) else [Which(proto, False) for proto in protos]
        for which in (Which(assured=True), *rest):
            for flows in _batches(self._flows.unmarked(MARK_OURS, which)):
                yield len(flows), [f for f in flows if any(judge.allowing(f) for judge in self._before)]
            for flows in _batches(self._flows.marked(MARK_OURS, which)):
                yield len(flows), flows

    def _end(self, lost: list[Flow], now: float) -> None:
        if not lost:
            return
        self._watch(lost, now)
        for flow in lost:
            try:
                if not lingers(flow, self._entries):
                    self._flows.forget(flow)
                self._ended += 1
            except OSError as error:
                # EBUSY: in a flow table, which kernels before 6.1.32 do not take it out of.
                self._refused = error
        self._tell(lost)


def _batches(flows: Iterable[Flow]) -> Iterator[list[Flow]]:
    them = iter(flows)
    while batch := list(islice(them, STEP)):
        yield batch
