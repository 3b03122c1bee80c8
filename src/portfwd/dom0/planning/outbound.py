# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Whether the ordinary rules of a client qube let it use an internal forward. PURE.

A net qube translates the destination before it looks at the client's rules (nftables hooks: prerouting before forward),
so these are held against the address and ports of the forward's target, not against those of its entrance. Rules are
read as the net qube reads them: the first that matches decides, and what none matches is dropped.
"""

import ipaddress
from collections.abc import Iterable, Sequence

from portfwd.api.status import Outbound
from portfwd.model.ordinary import Action, OrdinaryRule, SpecialTarget
from portfwd.wire.entry import Relay
from portfwd.wire.values import Family, IPAddress, PortRange, Proto, family_of

_DNS_PORT = 53
_EVERYTHING = OrdinaryRule(Action.ACCEPT)


def outbound(
    rules: Sequence[OrdinaryRule], relays: Iterable[Relay], families: Iterable[Family], now: float
) -> Outbound:
    """The word for a qube with these ordinary rules and addresses of these families. `now` is in epoch seconds.

    `relays` are the entries of the entrance.
    """
    live = [rule for rule in rules if not rule.expired(now)]
    if live and live[0] == _EVERYTHING:
        return Outbound.OPEN
    known = set(families)
    found: set[frozenset[Action]] = set()
    for entry in relays:
        if entry.family in known:
            found.update(_outcomes(live, port, entry.to, entry.proto) for port in _edges(live, entry.ports))
    if any(len(outcome) > 1 for outcome in found):
        return Outbound.UNKNOWN
    if {Action.DROP} not in found:
        return Outbound.OPEN
    return Outbound.REFUSED if len(found) == 1 else Outbound.PARTLY


def _edges(rules: Iterable[OrdinaryRule], ports: PortRange) -> list[int]:
    """The ports of a range at which the answer may change."""
    edges = {ports.first, _DNS_PORT, _DNS_PORT + 1}
    for rule in rules:
        if rule.dstports is not None:
            edges |= {rule.dstports.first, rule.dstports.last + 1}
    return [port for port in edges if port in ports]


def _outcomes(rules: Iterable[OrdinaryRule], port: int, address: IPAddress, proto: Proto) -> frozenset[Action]:
    """The possible actions for a packet: a single one when the rules decide it."""
    found = set()
    for rule in rules:
        matches = _matches(rule, port, address, proto)
        if matches is not False:
            found.add(rule.action)
        if matches:
            return frozenset(found)
    return frozenset(found | {Action.DROP})


def _matches(rule: OrdinaryRule, port: int, address: IPAddress, proto: Proto) -> bool | None:
    """Whether a rule matches a packet; None when dom0 cannot know."""
    if rule.proto is not None and rule.proto.value != proto.value:
        return False
    if rule.dstports is not None and not rule.dstports.first <= port <= rule.dstports.last:
        return False
    if rule.specialtarget is SpecialTarget.DNS and port != _DNS_PORT:
        return False
    if rule.dsthost is not None and "/" in rule.dsthost:
        network = ipaddress.ip_network(rule.dsthost, strict=False)
        if family_of(network) is not family_of(address) or address not in network:
            return False
    elif rule.dsthost is not None:
        return None
    return None if rule.specialtarget is not None else True
