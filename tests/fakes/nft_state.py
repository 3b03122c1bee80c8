# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""What the fake kernel holds: tables, chains, sets, elements, and the refusals of the real one."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field

from portfwd.kernel.nft import NftError
from tests.fakes.nft_rules import Rule, Verdict
from tests.fakes.nft_text import Key, Value

Data = Verdict | tuple[Value, ...]


def missing(what: str) -> NftError:
    """The error for something that is not there."""
    return NftError(f"Error: Could not process rule: No such file or directory ({what})")


def busy(what: str) -> NftError:
    """The error for removing something that is in use."""
    return NftError(f"Error: Could not process rule: Device or resource busy ({what})")


def clash(what: str) -> NftError:
    """The error for adding what stands there otherwise."""
    return NftError(f"Error: Could not process rule: File exists ({what})")


@dataclass(frozen=True, slots=True)
class Element:
    """An element; `expires` in seconds of the fake's clock. `text` is its key as written."""

    text: str
    data: Data | None = None
    expires: float | None = None
    comment: str = ""


_DECLARED = ("keys", "data", "flags", "size", "timeout", "counts")


@dataclass(slots=True)
class Set:
    """A set, or a map when `data` names types."""

    keys: tuple[str, ...]
    data: tuple[str, ...] | None
    flags: frozenset[str]
    size: int = 0
    timeout: float = 0.0
    counts: bool = False
    elements: dict[Key, Element] = field(default_factory=dict)
    packets: dict[Key, int] = field(default_factory=dict)
    """What the elements have counted, if the set counts."""

    def is_declared_as(self, other: "Set") -> bool:
        """Whether the declarations are the same."""
        return [getattr(self, name) == getattr(other, name) for name in _DECLARED] == [True] * len(_DECLARED)

    def live(self, now: float) -> dict[Key, Element]:
        """The elements whose time is not over."""
        return {k: e for k, e in self.elements.items() if e.expires is None or e.expires > now}

    def add(self, key: Key, element: Element, now: float) -> None:
        """Insert; the same again is accepted and keeps its timeout, as with kernels before 6.12."""
        if element.expires is not None and "timeout" not in self.flags:
            raise NftError("Error: Could not process rule: Invalid argument (set has no timeout flag)")
        if "interval" not in self.flags and any(low != high for low, high in key):
            raise NftError("Error: Set member cannot be range, missing interval flag on declaration")
        self.elements = self.live(now) if any(e.expires for e in self.elements.values()) else self.elements
        old = self.elements.get(key)
        if old is not None:
            if old.data != element.data:
                raise clash(f"{element.text} leads elsewhere")
            return
        if "interval" in self.flags:
            for other, there in self.elements.items():
                if overlaps(key, other):
                    raise clash(f"interval {element.text} overlaps {there.text}")
        self.packets.pop(key, None)
        self.elements[key] = element

    def update(self, values: tuple[Value, ...], text: str, now: float) -> bool:
        """As a rule does by a packet: add or refresh, and count; False when there is no room."""
        key = tuple((value, value) for value in values)
        self.elements = self.live(now)
        if key not in self.elements:
            if self.size and len(self.elements) >= self.size:
                return False
            self.packets.pop(key, None)
        self.elements[key] = Element(text, None, now + self.timeout if self.timeout else None)
        self.count(key)
        return True

    def count(self, key: Key) -> None:
        """A packet has found this element."""
        if self.counts:
            self.packets[key] = self.packets.get(key, 0) + 1

    def delete(self, key: Key, text: str, now: float) -> None:
        """Remove; what is not there or has just expired is an error."""
        if key not in self.live(now):
            raise missing(f"element {text}")
        del self.elements[key]

    def find(self, values: tuple[Value, ...], now: float) -> Element | None:
        """The element that holds these values."""
        exact = tuple((value, value) for value in values)
        live = self.live(now)
        if exact in self.elements or "interval" not in self.flags:
            found = exact if exact in live else None
        else:
            found = next((key for key in live if overlaps(key, exact)), None)
        if found is None:
            return None
        self.count(found)
        return live[found]


PACKET_BYTES = 60
"""Of every packet, in what is counted."""


def list_set(name: str, found: Set, now: float) -> str:
    """A set with its elements, what they have counted and when they end."""
    texts = []
    for key, element in found.live(now).items():
        packets = found.packets.get(key, 0)
        text = element.text
        text += f" counter packets {packets} bytes {packets * PACKET_BYTES}" if found.counts else ""
        text += f" expires {int((element.expires - now) * 1000)}ms" if element.expires is not None else ""
        text += f' comment "{element.comment}"' if element.comment else ""
        texts.append(text + (f" : {element.data}" if element.data is not None else ""))
    body = f"\t\telements = {{ {', '.join(texts)} }}\n" if texts else ""
    return f"\t{'set' if found.data is None else 'map'} {name} {{\n{body}\t}}\n"


def overlaps(one: Key, other: Key) -> bool:
    """Whether two keys have a point in common."""
    for (a, b), (c, d) in zip(one, other, strict=True):
        if isinstance(a, str) or isinstance(b, str) or isinstance(c, str) or isinstance(d, str):
            if a != c:
                return False
        elif a > d or c > b:
            return False
    return True


@dataclass(frozen=True, slots=True)
class Hook:
    """Where a base chain is called."""

    kind: str
    hook: str
    priority: int
    policy: str
    text: str


@dataclass(slots=True)
class Chain:
    """A chain; base chains have a hook. `number` tells the order of creation."""

    handle: int
    hook: Hook | None = None
    rules: list[Rule] = field(default_factory=list)


@dataclass(slots=True)
class Table:
    """A table of one family."""

    chains: dict[str, Chain] = field(default_factory=dict)
    sets: dict[str, Set] = field(default_factory=dict)

    def chain(self, name: str) -> Chain:
        """A chain that must be there."""
        if name not in self.chains:
            raise missing(f"chain {name}")
        return self.chains[name]

    def named(self, name: str, kind: str) -> Set:
        """A set or map that must be there."""
        found = self.sets.get(name)
        if found is None or (kind != "element" and (kind == "map") != (found.data is not None)):
            raise missing(f"{kind} {name}")
        return found

    def _verdicts(self) -> Iterator[Verdict]:
        for chain in self.chains.values():
            for rule in chain.rules:
                yield from rule.verdicts()
        for found in self.sets.values():
            yield from (e.data for e in found.elements.values() if isinstance(e.data, Verdict))

    def check(self) -> None:
        """Every chain and set that is named is there."""
        for verdict in self._verdicts():
            if verdict.chain:
                self.chain(verdict.chain)
        for chain in self.chains.values():
            for rule in chain.rules:
                for name in rule.sets():
                    self.named(name, "element")

    def delete_chain(self, name: str) -> None:
        """Remove an empty chain to which nothing leads."""
        if self.chain(name).rules or any(verdict.chain == name for verdict in self._verdicts()):
            raise busy(f"chain {name}")
        del self.chains[name]

    def delete_set(self, name: str, kind: str) -> None:
        """Remove a set that no rule uses."""
        self.named(name, kind)
        if any(name in rule.sets() for chain in self.chains.values() for rule in chain.rules):
            raise busy(f"{kind} {name}")
        del self.sets[name]

    def copy(self) -> "Table":
        """A copy of which nothing is shared that can change."""
        return Table(
            {name: Chain(c.handle, c.hook, list(c.rules)) for name, c in self.chains.items()},
            {
                name: dataclasses.replace(s, elements=dict(s.elements), packets=dict(s.packets))
                for name, s in self.sets.items()
            },
        )


Ruleset = dict[tuple[str, str], Table]
"""(family, name) -> table."""


def table_of(ruleset: Ruleset, family: str, name: str) -> Table:
    """A table that must be there."""
    if (family, name) not in ruleset:
        raise missing(f"table {family} {name}")
    return ruleset[family, name]
