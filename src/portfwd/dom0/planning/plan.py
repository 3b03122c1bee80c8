# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""plan(snapshot) -> Plan: what each qube on each path must do. PURE: asks nobody anything, changes nothing.

Every active rule ends in exactly one of the two lists: its entries stand on every hop of its path, or one Problem says
why none does. So a rule is never half open, and none disappears silently.
"""

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from portfwd.api.status import ProblemKind
from portfwd.dom0.planning.claims import Claim, Entrances, Holders, Seat
from portfwd.dom0.planning.room import Room
from portfwd.dom0.planning.snapshot import Qube, Snapshot
from portfwd.dom0.storage.store import StoredForward
from portfwd.model.forward import ForwardRule, ForwardType, Lifetime
from portfwd.wire import limits
from portfwd.wire.entry import Accept, Entry, Relay
from portfwd.wire.sources import source_fault
from portfwd.wire.values import (
    Family,
    IPAddress,
    Proto,
    QubeName,
    RuleId,
    Side,
    Source,
    SourceWord,
    family_of,
    source_family,
)


@dataclass(frozen=True, slots=True)
class Problem:
    """One rule that opens nothing, the qube that prevents it, and the sentence for the user.

    `owner` is the qube whose claim is in the way, if one is; not every caller may be told.
    """

    qube: QubeName
    rule: RuleId
    kind: ProblemKind
    at: QubeName
    text: str
    owner: Seat | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """Entries per qube, the same entries per rule (from the entrance to the qube), problems, and holders of ports."""

    entries: Mapping[QubeName, tuple[Entry, ...]]
    paths: Mapping[RuleId, tuple[tuple[QubeName, Entry], ...]]
    problems: tuple[Problem, ...]
    held: Holders = field(default_factory=Holders)

    def owners(self, name: QubeName) -> frozenset[QubeName]:
        """The qubes whose forwards have entries on a qube."""
        return frozenset(self.paths[entry.rule][-1][0] for entry in self.entries.get(name, ()))


def is_over(stored: StoredForward, qube: Qube, snapshot: Snapshot) -> bool:
    """Whether a rule's lifetime has ended."""
    expire = stored.rule.expire
    if expire is Lifetime.REBOOT:
        return stored.session != snapshot.boot_id
    if expire is Lifetime.SHUTDOWN:
        return stored.session not in ("", qube.session)
    if expire is None:
        return False
    return expire <= snapshot.now or (qube.name, stored.rule.id(qube.name)) in snapshot.over


def claims(snapshot: Snapshot) -> Iterator[Claim]:
    """The claims of all live, enabled rules by the configured network, whatever runs at the moment.

    A halted qube keeps its ports; otherwise the owner of a port would depend on the order of starting.
    """
    for qube in snapshot.qubes.values():
        for stored in qube.forwards:
            if stored.rule.enabled and not is_over(stored, qube, snapshot):
                yield claim_of(qube, stored, snapshot)


def claim_of(qube: Qube, stored: StoredForward, snapshot: Snapshot) -> Claim:
    """The claim of one rule; without a net qube the entrance is the qube itself, which clashes with no other."""
    path = snapshot.path(qube.name) or (qube,)
    rule = stored.rule
    external = rule.forwardtype is ForwardType.EXTERNAL
    entrance = path[-1] if external else path[0]
    inner = tuple(hop.name for hop in path[:-1]) if external and qube.netvm is not None else ()
    only = source_family(rule.srchost)
    seat = Seat(
        qube.name,
        Side.UPLINK if external else Side.DOWNSTREAM,
        (entrance.name, *inner),
        tuple(sorted(Family)) if only is None else (only,),
        rule.protos,
        rule.srcports,
        rule.dstports,
    )
    return Claim(stored, seat)


def doubtful(snapshot: Snapshot) -> frozenset[QubeName]:
    """The qubes whose forwards or way out cannot be read now; they neither lose nor gain a port by that."""
    doubts = {QubeName(name) for name in snapshot.unread}
    for qube in snapshot.qubes.values():
        path = snapshot.path(qube.name) if qube.forwards else ()
        cut = bool(qube.forwards) and qube.netvm is not None and (not path or path[-1].netvm is not None)
        if qube.damage or cut:
            doubts.add(qube.name)
    return frozenset(doubts)


def entrances_of(snapshot: Snapshot, doubts: Container[QubeName]) -> Entrances:
    """The entrances with only those ports taken that are kept for qubes in doubt."""
    entrances = Entrances()
    for seat in sorted((seat for seat in snapshot.held.seats if seat.qube in doubts), key=str):
        entrances.take(seat)
    return entrances


def plan(snapshot: Snapshot) -> Plan:
    """Work out every entry and every problem."""
    entries: dict[QubeName, list[Entry]] = {}
    paths: dict[RuleId, tuple[tuple[QubeName, Entry], ...]] = {}
    problems: list[Problem] = []
    doubts = doubtful(snapshot)
    entrances, room = entrances_of(snapshot, doubts), Room(snapshot)
    held = {seat for seat in snapshot.held.seats if seat.qube in doubts}
    for claim in sorted(claims(snapshot), key=snapshot.held.order):
        qube = snapshot.qubes[claim.qube]
        rule_id = claim.rule.id(qube.name)
        useless = useless_for(qube, claim.rule)
        idle = bool(useless) or qube.name in doubts
        clash = None if idle else entrances.take(claim.seat)
        if clash is None and not idle:
            held.add(claim.seat)
        try:
            if useless:
                raise _StopError(*useless)
            if clash is not None:
                text = taken(clash.at, clash.owner.describe())
                raise _StopError(ProblemKind.CONFLICT, clash.at, text, clash.owner)
            if (full := room.take(claim.rule, claim.hops, claim.seat.families)) is not None:
                kind = ProblemKind.TOO_WIDE if full.wide else ProblemKind.TOO_MANY
                raise _StopError(kind, full.at, full.text)
            paths[rule_id] = tuple(_entries(claim, qube, snapshot))
            for name, entry in paths[rule_id]:
                entries.setdefault(name, []).append(entry)
        except _StopError as stop:
            problems.append(Problem(qube.name, rule_id, stop.kind, stop.at, stop.text, stop.owner))
    by_qube = {name: tuple(found) for name, found in entries.items()}
    present = snapshot.held if held == snapshot.held.seats else Holders(held)
    return Plan(MappingProxyType(by_qube), MappingProxyType(paths), tuple(problems), present)


def taken(at: QubeName, who: str) -> str:
    """The sentence for a port that is taken at a hop; `who` describes the holder."""
    return f"port is taken at '{at}' by {who}"


class _StopError(Exception):
    def __init__(self, kind: ProblemKind, at: QubeName, text: str, owner: Seat | None = None) -> None:
        super().__init__(text)
        self.kind, self.at, self.text, self.owner = kind, at, text, owner


def _entries(claim: Claim, qube: Qube, snapshot: Snapshot) -> list[tuple[QubeName, Entry]]:
    path = snapshot.path(qube.name)
    if not path or (qube.netvm is not None and path[-1].netvm is not None):
        missing = path[-1].netvm if path else qube.netvm
        text = f"net qube '{missing}' cannot be read" if missing else f"'{qube.name}' has no net qube"
        raise _StopError(ProblemKind.NO_NET_QUBE, qube.name, text)
    hops = path if claim.seat.side is Side.UPLINK else path[:1]
    _check(qube, hops)
    if claim.seat.side is Side.UPLINK:
        _check_tunnels(hops)
    found: list[tuple[QubeName, Entry]] = []
    for family in claim.seat.families:
        targets = [address for hop in (qube, *hops[:-1]) if (address := hop.address(family)) is not None]
        if len(targets) == len(hops):
            for proto in claim.rule.protos:
                found += _way(claim, qube, hops, targets, proto)
    if not found:
        versions = " or ".join(f"IPv{int(f)}" for f in claim.seat.families)
        bare = next(h for h in (qube, *hops) if not any(h.address(f) for f in claim.seat.families) or h is hops[-1])
        raise _StopError(ProblemKind.NO_ADDRESS, bare.name, f"'{bare.name}' has no {versions} address")
    return found


def useless_for(qube: Qube, rule: ForwardRule) -> tuple[ProblemKind, QubeName, str] | None:
    """Why nobody could ever use a rule of a qube, whatever runs (it holds no port); None when somebody could."""
    if fault := source_fault(rule.srchost):
        return ProblemKind.NO_CLIENTS, qube.name, f"nobody can be {rule.srchost}: {fault}"
    if qube.netvm is None and qube.provides_network:
        return ProblemKind.OUTERMOST, qube.name, _outermost(qube.name)
    return None


def _outermost(name: QubeName) -> str:
    return (
        f"'{name}' is the outermost net qube itself, and a forward leads from it to a qube behind it; for a port of "
        f"its own, accept it in chain custom-input of table qubes there (/rw/config/qubes-firewall-user-script)"
    )


def _check(qube: Qube, hops: tuple[Qube, ...]) -> None:
    """Refuse the whole path when a hop forbids forwards, is halted or has no agent."""
    for hop in hops:
        if hop.tor_gateway:
            raise _StopError(ProblemKind.TOR_GATEWAY, hop.name, f"'{hop.name}' is a Tor gateway and takes no forwards")
        if hop.denies:
            raise _StopError(ProblemKind.DENIED, hop.name, f"'{hop.name}' forbids forwards by its feature")
    for hop in (*reversed(hops), qube):
        if not hop.running:
            raise _StopError(ProblemKind.HALTED, hop.name, f"'{hop.name}' is not running")
        if not hop.agent:
            raise _StopError(ProblemKind.NO_AGENT, hop.name, f"'{hop.name}' has no port forwarding agent")


def _check_tunnels(hops: tuple[Qube, ...]) -> None:
    """Refuse to cross a VPN qube, unless its user allows that."""
    for hop in reversed(hops):
        if hop.tunnel and not hop.transit:
            text = f"'{hop.name}' is a VPN qube (feature {limits.FEATURE_VPN})"
            text += f"; its feature {limits.FEATURE_TRANSIT} lets forwards cross"
            raise _StopError(ProblemKind.VPN, hop.name, text)
        if hop.way_untold and not hop.transit:
            text = f"'{hop.name}' does not tell whether what it sends leaves by a tunnel"
            text += f"; its feature {limits.FEATURE_TRANSIT} lets forwards cross"
            raise _StopError(ProblemKind.WAY_UNKNOWN, hop.name, text)


def _way(
    claim: Claim, qube: Qube, hops: tuple[Qube, ...], targets: Sequence[IPAddress], proto: Proto
) -> Iterator[tuple[QubeName, Entry]]:
    """Entries from the entrance to the qube; `targets` are where the hops lead.

    Only the hop next to the qube changes the port.
    """
    rule, family = claim.rule, family_of(targets[0])
    rule_id = rule.id(qube.name)
    expire = rule.expire if isinstance(rule.expire, int) else None

    entrance_source = _for_family(rule.srchost, family)
    # Only the entrance can know its neighbours; it has checked what arrives from the uplink further in.
    inner_source = SourceWord.ANYONE if entrance_source is SourceWord.NEIGHBOURS else entrance_source
    for place in range(len(hops) - 1, -1, -1):
        entrance = hops[place].name == claim.seat.hops[0]
        # A host at a network card of an inner hop has not passed the entrance.
        side = claim.seat.side if entrance else Side.INNER
        source = entrance_source if entrance else inner_source
        ports = rule.srcports if place else rule.dstports
        to = targets[place]
        yield hops[place].name, Relay(rule_id, family, proto, side, rule.srcports, source, to, ports, expire=expire)
    yield qube.name, Accept(rule_id, family, proto, Side.UPLINK, rule.dstports, inner_source, expire=expire)


def _for_family(source: Source, family: Family) -> Source:
    return SourceWord.ANYONE if source == family.everything else source
