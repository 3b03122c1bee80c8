# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Where a qube stands, from what is known of the network and of all forwards: what the dialog of a forward needs."""

from collections.abc import Iterable

from portfwd.client.network import Qube
from portfwd.client.status import RuleStatus
from portfwd.gui.state.draft import Holder, Place
from portfwd.gui.state.picture import chain
from portfwd.model.forward import ForwardType
from portfwd.wire.values import IPAddress, QubeName


def place_of(qube: QubeName, qubes: Iterable[Qube], statuses: Iterable[RuleStatus]) -> Place:
    """What is known; a port is taken only where both qubes share the entrance."""
    known = {each.name: each for each in qubes}
    above = chain(qube, known)[1:]
    outermost = above[-1] if above else None
    told = tuple(statuses)
    holders = []
    addresses: tuple[IPAddress, ...] = ()
    for status in told:
        others = chain(status.qube, known)[1:]
        internal = status.rule.forwardtype is ForwardType.INTERNAL
        if not above or not others or (others[0] != above[0] if internal else others[-1] != outermost):
            continue
        # One that is paused holds no port.
        if status.rule.enabled:
            holders.append(Holder(status.rule.forwardtype, status.rule.protos, status.rule.srcports, status.qube))
        if not internal and status.addresses:
            addresses = status.addresses
    return Place(qube, above[0] if above else None, outermost, addresses, tuple(holders))
