# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Which connections must end. PURE: (flows, entries, surroundings) -> doomed flows and the guard's elements.

A connection lives as long as some entry would let it in now; it does not matter which entry did so then.
"""

from collections.abc import Iterable

from portfwd.agent.rules.elements import Surroundings, addresses_of
from portfwd.agent.rules.kinds import kind_of
from portfwd.agent.rules.skeleton import (
    DEAD_IN,
    DEAD_OUT,
    MARK_BITS,
    MARK_DOWN,
    MARK_IN,
    MARK_UP,
    TABLE,
    UPLINK_BITS,
    UPLINK_SHIFT,
    nft_family,
)
from portfwd.kernel.conntrack import Flow
from portfwd.wire.entry import Entry
from portfwd.wire.values import Proto, Side, SourceWord

GUARD_SECONDS = 600
"""Seconds for which revoked connections are guarded: longer than TCP retransmits to a lost peer."""


def divide(flows: Iterable[Flow], entries: Iterable[Entry], around: Surroundings) -> tuple[list[Flow], list[Flow]]:
    """The flows that some entry allows, and those that none does.

    The mark says by which side a flow came; of one without our bits that is not known, and a relay of any will do.
    """
    judge = Judge(entries, around)
    kept: list[Flow] = []
    lost: list[Flow] = []
    for flow in flows:
        (kept if judge.allowing(flow) else lost).append(flow)
    return kept, lost


class Judge:
    """Compares flows with entries, by port, since comparing thousands of each pair by pair would take long."""

    def __init__(self, entries: Iterable[Entry], around: Surroundings) -> None:
        self._around = around
        self._exact: dict[tuple[object, ...], list[Entry]] = {}
        self._wide: dict[tuple[object, ...], list[Entry]] = {}
        self._judged: dict[tuple[object, ...], list[Entry]] = {}
        for entry in entries:
            place = (entry.family, entry.proto, _mark(entry))
            if len(entry.listen) == 1:
                self._exact.setdefault((*place, entry.listen.first), []).append(entry)
            else:
                self._wide.setdefault(place, []).append(entry)

    def allowing(self, flow: Flow) -> list[Entry]:
        """The entries that would let this flow in now."""
        mark = flow.mark & MARK_BITS
        number = flow.mark & UPLINK_BITS
        alike = (flow.family, flow.proto, mark, number, flow.client, flow.port, flow.server, flow.server_port)
        if alike not in self._judged:
            candidates: list[Entry] = []
            for side in (mark,) if mark else (MARK_UP, MARK_DOWN):
                place = (flow.family, flow.proto, side)
                candidates += (*self._exact.get((*place, flow.port), ()), *self._wide.get(place, ()))
            self._judged[alike] = [entry for entry in candidates if _allows(entry, flow, self._around)]
        return self._judged[alike]


def lingers(flow: Flow, entries: Iterable[Entry]) -> bool:
    """Whether a doomed flow is best left to conntrack: UDP that this qube, the target, hands on by its user's DNAT.

    It bears our mark, and finds no door any more (skeleton.handed_on). Forgotten, it would come in anew by the DNAT as
    soon as nobody watches for it. Where its door stands for others it would find that.
    """
    if flow.proto is not Proto.UDP or flow.mark & MARK_BITS != MARK_IN or flow.dialled == flow.server:
        return False
    doors = (e for e in entries if _mark(e) == MARK_IN and e.family is flow.family and e.proto is flow.proto)
    return not any(flow.port in door.listen for door in doors)


def _mark(entry: Entry) -> int:
    return kind_of(entry).mark(entry)


def _allows(entry: Entry, flow: Flow, around: Surroundings) -> bool:
    interface = _came_by(flow, around)
    if not kind_of(entry).leads(entry, flow, interface, around):
        return False
    if entry.source is SourceWord.ANYONE:
        return True
    if entry.source is SourceWord.NEIGHBOURS:
        near = (n for n in around.near if flow.client in n.prefix)
        return entry.side is Side.DOWNSTREAM or any(interface in (None, network.interface) for network in near)
    return any(flow.client in prefix for prefix in addresses_of(entry, around))


def _came_by(flow: Flow, around: Surroundings) -> str | None:
    """The uplink by which a connection came in; None where its mark has no number."""
    number = (flow.mark & UPLINK_BITS) >> UPLINK_SHIFT
    return next((name for name, held in around.numbers.items() if held == number), None)


def guard_elements(flows: Iterable[Flow]) -> str:
    """The nft text that adds doomed flows to the guard's sets."""
    places: dict[tuple[str, str], dict[str, None]] = {}
    for flow in flows:
        ip = nft_family(flow.family)
        inward = f"{flow.proto.value} . {flow.client} . {flow.port} timeout {GUARD_SECONDS}s"
        places.setdefault((ip, DEAD_IN), {})[inward] = None
        if flow.mark & MARK_BITS == MARK_IN and flow.translated:
            # A program of this qube answers at another port than was dialled.
            inward = f"{flow.proto.value} . {flow.client} . {flow.server_port} timeout {GUARD_SECONDS}s"
            places[ip, DEAD_IN][inward] = None
        if flow.mark & MARK_BITS != MARK_IN or flow.translated:
            outward = f"{flow.server} . {flow.proto.value} . {flow.server_port} . {flow.client}"
            places.setdefault((ip, DEAD_OUT), {})[f"{outward} timeout {GUARD_SECONDS}s"] = None
    return "".join(
        f"add element {ip} {TABLE} {name} {{ {', '.join(elements)} }}\n" for (ip, name), elements in places.items()
    )
