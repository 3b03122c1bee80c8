# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The place of a qube for the dialog of a forward, made from the network and all forwards."""

from collections.abc import Iterable

from portfwd.api.status import Interface
from portfwd.client.forward_state import RuleStatus
from portfwd.client.network import NetworkQube
from portfwd.gui.state.draft import Holder, Place
from portfwd.gui.state.picture import chain
from portfwd.model.forward import ForwardType
from portfwd.wire.values import Family, QubeName


def place_of(qube: QubeName, qubes: Iterable[NetworkQube], statuses: Iterable[RuleStatus]) -> Place:
    """The place of a qube; a port is taken only where both qubes share the entrance.

    Other forwards contribute only the uplinks of that entrance: which of them this one's clients can use depends on
    its own source and families.
    """
    known = {each.name: each for each in qubes}
    above = chain(qube, known)[1:]
    outermost = above[-1] if above else None
    # The outermost net qube needs no IPv6 from Qubes: it has its network's.
    ip6 = all(name in known and known[name].ip6 for name in (qube, *above[:-1]))
    families = frozenset(Family if ip6 else (Family.V4,))
    holders = []
    uplinks: tuple[Interface, ...] = ()
    for status in statuses:
        others = chain(status.qube, known)[1:]
        internal = status.rule.forwardtype is ForwardType.INTERNAL
        if not above or not others or (others[0] != above[0] if internal else others[-1] != outermost):
            continue
        # A paused forward holds no port.
        if status.rule.enabled:
            holders.append(Holder(status.rule.forwardtype, status.rule.protos, status.rule.srcports, status.qube))
        if not internal and status.entrance == outermost and status.uplinks:
            uplinks = status.uplinks
    return Place(qube, above[0] if above else None, outermost, families, uplinks, tuple(holders))
