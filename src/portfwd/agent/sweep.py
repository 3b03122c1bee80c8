# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Which connections must end. PURE: (flows, entries, surroundings) -> doomed flows and the guard's elements.

A connection lives as long as some entry would let it in now; it does not matter which entry did so then.
"""

from collections.abc import Iterable

from portfwd.agent.elements import Surroundings, addresses_of
from portfwd.agent.flows import Flow
from portfwd.agent.skeleton import DEAD_IN, DEAD_OUT, MARK_BITS, MARK_DOWN, MARK_IN, MARK_UP, TABLE, nft_family
from portfwd.wire.entry import Entry
from portfwd.wire.values import Kind, Side, SourceWord

GUARD_SECONDS = 600
"""How long revoked connections are watched for: longer than TCP goes on retransmitting to a peer that it has lost."""


def doomed(flows: Iterable[Flow], entries: Iterable[Entry], around: Surroundings) -> list[Flow]:
    """The flows that no entry allows any more."""
    # By port where an entry has just one: thousands of flows must not each be held against thousands of entries.
    exact: dict[tuple[object, ...], list[Entry]] = {}
    wide: dict[tuple[object, ...], list[Entry]] = {}
    for entry in entries:
        place = (entry.family, entry.proto, _mark(entry))
        if len(entry.listen) == 1:
            exact.setdefault((*place, entry.listen.first), []).append(entry)
        else:
            wide.setdefault(place, []).append(entry)
    judged: dict[tuple[object, ...], bool] = {}
    lost = []
    for flow in flows:
        place = (flow.family, flow.proto, flow.mark & MARK_BITS)
        alike = (*place, flow.client, flow.port, flow.server, flow.server_port)
        if alike not in judged:
            candidates = (*exact.get((*place, flow.port), ()), *wide.get(place, ()))
            judged[alike] = any(_allows(entry, flow, around) for entry in candidates)
        if not judged[alike]:
            lost.append(flow)
    return lost


def _mark(entry: Entry) -> int:
    if entry.kind is Kind.ACCEPT:
        return MARK_IN
    return MARK_UP if entry.side is Side.UPLINK else MARK_DOWN


def _allows(entry: Entry, flow: Flow, around: Surroundings) -> bool:
    if entry.maps_to(flow.port) is None:
        return False
    if entry.kind is Kind.RELAY and (flow.server, flow.server_port) != (entry.to, entry.maps_to(flow.port)):
        return False
    if entry.source is SourceWord.ANYONE:
        return True
    if entry.source is SourceWord.NEIGHBOURS:
        return entry.side is Side.DOWNSTREAM or any(flow.client in network.prefix for network in around.near)
    return any(flow.client in prefix for prefix in addresses_of(entry, around))


def mourning(flows: Iterable[Flow]) -> str:
    """The nft text that adds doomed flows to the guard's sets."""
    places: dict[tuple[str, str], dict[str, None]] = {}
    for flow in flows:
        ip = nft_family(flow.family)
        inward = f"{flow.proto.value} . {flow.client} . {flow.port} timeout {GUARD_SECONDS}s"
        places.setdefault((ip, DEAD_IN), {})[inward] = None
        if flow.mark & MARK_BITS != MARK_IN:
            outward = f"{flow.server} . {flow.proto.value} . {flow.server_port} . {flow.client}"
            places.setdefault((ip, DEAD_OUT), {})[f"{outward} timeout {GUARD_SECONDS}s"] = None
    return "".join(
        f"add element {ip} {TABLE} {name} {{ {', '.join(elements)} }}\n" for (ip, name), elements in places.items()
    )
