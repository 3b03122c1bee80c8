# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Who holds which ports of which qube, and who of several gets one. PURE.

A forward that holds its ports keeps them, however old another is that a change of the network brings there. Among
newcomers to a place, the rule that was added first gets it.
"""

import bisect
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from portfwd.dom0.storage.store import StoredForward
from portfwd.model.forward import ForwardRule
from portfwd.wire.entry import parse_words
from portfwd.wire.errors import RefusedError, shown
from portfwd.wire.values import Family, PortRange, Proto, QubeName, RuleId, Side

_WORDS = ("qube", "side", "hops", "families", "protos", "ports", "to")


@dataclass(frozen=True, slots=True)
class Seat:
    """The ports of one forward and where it takes them.

    `hops`: the net qube where clients come in, then those behind it; `side`: on which side of them. `to`: the ports
    that it opens at the qube itself.
    """

    qube: QubeName
    side: Side
    hops: tuple[QubeName, ...]
    families: tuple[Family, ...]
    protos: tuple[Proto, ...]
    ports: PortRange
    to: PortRange

    def __str__(self) -> str:
        return (
            f"qube={self.qube} side={self.side.value} hops={','.join(self.hops)}"
            f" families={','.join(str(int(f)) for f in self.families)} protos={','.join(self.protos)}"
            f" ports={self.ports} to={self.to}"
        )

    @classmethod
    def parse(cls, text: str) -> "Seat":
        """Read it back. Raises RefusedError."""
        words = parse_words(text, _WORDS, _WORDS)
        try:
            return cls(
                QubeName(words["qube"]),
                Side(words["side"]),
                tuple(QubeName(name) for name in words["hops"].split(",")),
                tuple(Family(int(word)) for word in words["families"].split(",")),
                tuple(Proto(word) for word in words["protos"].split(",")),
                PortRange.parse(words["ports"]),
                PortRange.parse(words["to"]),
            )
        except ValueError as error:
            raise RefusedError(f"{shown(text)} is not a hold on ports: {shown(error)}") from None

    def describe(self) -> str:
        """The forward in words for the user."""
        kind = "external" if self.side is Side.UPLINK else "internal"
        return f"{kind} {'+'.join(p.value for p in self.protos)} port {self.ports.short} of '{self.qube}'"

    def relays(self) -> "Iterator[PortSpace]":
        """The places whose packets the forward takes."""
        for hop in self.hops:
            yield from ((hop, self.side, f, p) for f in self.families for p in self.protos)

    def targets(self) -> "Iterator[PortSpace]":
        """The places where it opens the qube's own ports. A qube without a net qube is its own entrance."""
        if self.hops[0] != self.qube:
            yield from ((self.qube, Side.UPLINK, f, p) for f in self.families for p in self.protos)


PortSpace = tuple[QubeName, Side, Family, Proto]


@dataclass(frozen=True, slots=True)
class Claim:
    """A rule, and the seat that it wants to hold."""

    stored: StoredForward
    seat: Seat

    @property
    def qube(self) -> QubeName:
        """The qube of the rule."""
        return self.seat.qube

    @property
    def rule(self) -> ForwardRule:
        """The rule itself."""
        return self.stored.rule

    @property
    def hops(self) -> tuple[QubeName, ...]:
        """The rule's qube and the net qubes up to its entrance; the qube alone where it leads nowhere."""
        entrance, *inner = self.seat.hops
        return (self.qube,) if entrance == self.qube else (self.qube, *inner, entrance)

    @property
    def age(self) -> tuple[int, QubeName, RuleId]:
        """The order by age, the same on every run."""
        return (self.stored.since, self.qube, self.rule.id(self.qube))


class Clash(NamedTuple):
    """The obstacle of a claim: who holds the ports, at which qube, and which word of the rule wants them."""

    owner: Seat
    at: QubeName
    word: str


class Entrances:
    """Who gets which ports at an entrance and at the hops behind it, looked up in logarithmic time.

    A net qube that is the target of a rule receives its packets by the uplink, as it does those that it relays, so
    the same port cannot mean both. Several rules of a qube can share a port that the qube opens for itself.
    """

    def __init__(self) -> None:
        self._relayed: dict[PortSpace, list[tuple[int, int, Seat]]] = {}
        self._opened: dict[PortSpace, list[tuple[int, int, Seat]]] = {}

    def clash(self, seat: Seat) -> Clash | None:
        """The first obstacle, or None."""
        srcports, dstports = seat.ports, seat.to
        for place in seat.relays():
            # Ranges do not overlap here, so only the last one that begins at or before our end can reach into ours.
            held = self._relayed.get(place, [])
            found = bisect.bisect_right(held, srcports.last, key=lambda h: h[0]) - 1
            if found >= 0 and held[found][1] >= srcports.first:
                return Clash(held[found][2], place[0], f"srcports '{srcports.short}'")
            for first, last, owner in self._opened.get(place, ()):
                if first <= srcports.last and srcports.first <= last:
                    return Clash(owner, place[0], f"srcports '{srcports.short}'")
        for place in seat.targets():
            for first, last, owner in self._relayed.get(place, ()):
                if first <= dstports.last and dstports.first <= last:
                    return Clash(owner, place[0], f"dstports '{dstports.short}'")
        return None

    def take(self, seat: Seat) -> Clash | None:
        """Give the seat its ports, or return the obstacle."""
        clash = self.clash(seat)
        if clash is None:
            ports, dstports = seat.ports, seat.to
            for place in seat.relays():
                bisect.insort(self._relayed.setdefault(place, []), (ports.first, ports.last, seat), key=lambda h: h[0])
            for place in seat.targets():
                self._opened.setdefault(place, []).append((dstports.first, dstports.last, seat))
        return clash


class Holders:
    """Who holds ports now, by the last plan."""

    def __init__(self, seats: Iterable[Seat] = ()) -> None:
        self.seats = frozenset(seats)
        self._by_place: dict[tuple[QubeName, PortSpace], list[PortRange]] | None = None

    def order(self, claim: Claim) -> tuple[int, int, QubeName, RuleId]:
        """The order in which claims get ports: holders of all that they want, holders of some of it, then by age."""
        return (self.rank(claim.seat), *claim.age)

    def rank(self, seat: Seat) -> int:
        """0 for a claim whose qube holds all of these ports, 1 for some, 2 for none.

        Ports that a qube's rules held stay the qube's when one of the rules changes: ports count, not rules.
        """
        if seat in self.seats:
            return 0
        had = [self._had(seat.qube, place, seat.ports) for place in seat.relays()]
        return 0 if all(number == len(seat.ports) for number in had) else 1 if any(had) else 2

    def _had(self, qube: QubeName, place: PortSpace, ports: PortRange) -> int:
        """How many of these ports a qube holds there; its holdings do not overlap."""
        if self._by_place is None:
            self._by_place = {}
            for seat in self.seats:
                for relayed in seat.relays():
                    self._by_place.setdefault((seat.qube, relayed), []).append(seat.ports)
        held = self._by_place.get((qube, place), ())
        return sum(max(0, min(h.last, ports.last) - max(h.first, ports.first) + 1) for h in held)
