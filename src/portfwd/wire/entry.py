# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""One entry: what one qube must do for one rule, in typed form and as the QubesDB key and value.

Takes and gives text; does no I/O. The format is closed: an unknown word, a missing word, a wrong order of ports or a
key that does not match its value is refused as a whole, so a newer dom0 can never half-open a port in an older agent.

    key    /qubes-port-forward/RULE.FAMILY.PROTO            RULE 16 hex digits, FAMILY 4|6, PROTO tcp|udp
    value  kind=relay side=uplink listen=443-443 source=neighbours to=10.137.0.6 ports=443-443 [expire=EPOCH]
           kind=accept side=uplink listen=8443-8443 source=192.168.0.0/16 [expire=EPOCH]
    commit /qubes-port-forward = version=1 generation=N entries=COUNT digest=HEX

The digest over all keys and values lets an agent tell a complete set from one that dom0 is just writing.
"""

import functools
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, NewType, Self

from portfwd.wire import limits
from portfwd.wire.errors import RefusedError, shown
from portfwd.wire.sources import check_source
from portfwd.wire.values import (
    Family,
    HostName,
    IPAddress,
    PortRange,
    Proto,
    RuleId,
    Side,
    Source,
    SourceWord,
    family_of,
    format_source,
    parse_address,
    parse_source,
)

_KEY = re.compile(r"[0-9a-f]{16}\.[46]\.(tcp|udp)")
_WORDS = ("kind", "side", "listen", "source")

_Key = NewType("_Key", str)
# Few of each stand in many entries.
_source = functools.lru_cache(maxsize=1024)(parse_source)
_address = functools.lru_cache(maxsize=1024)(parse_address)


@dataclass(frozen=True, slots=True)
class Entry:
    """What one qube must do for one rule, family and protocol; each kind is a class of its own.

    Connections to `listen` that enter on `side` from `source` are its business. `expire` is in epoch seconds.
    """

    kind: ClassVar[str]
    """Its word in the value."""
    own: ClassVar[Mapping[str, Callable[[str], object]]] = {}
    """The words that only this kind has, all of them required, in their order; each with what reads it."""

    rule: RuleId
    family: Family
    proto: Proto
    side: Side
    listen: PortRange
    source: Source
    expire: int | None = field(default=None, kw_only=True)
    _key: _Key = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_key", _Key(f"{self.rule}.{int(self.family)}.{self.proto.value}"))
        if self.side is Side.INNER and self.source is SourceWord.NEIGHBOURS:
            raise RefusedError("only the entrance can know its neighbours")
        if not isinstance(self.source, (SourceWord, HostName)) and family_of(self.source) is not self.family:
            raise RefusedError(f"source {shown(self.source)} is not IPv{int(self.family)}")
        check_source(self.source)
        if self.expire is not None and not 0 <= self.expire <= limits.EXPIRE_MAX:
            raise RefusedError(f"expire {shown(self.expire)} is out of range")

    def __hash__(self) -> int:
        """Hash the key, which no two entries of a set share; hashing all fields would take long."""
        return hash(self._key)

    @property
    def key(self) -> str:
        """The last part of the QubesDB path."""
        return self._key

    @property
    def path(self) -> str:
        """The QubesDB path, at most 63 bytes."""
        return limits.ENTRIES + self.key

    @property
    def value(self) -> str:
        """The QubesDB value, words in a fixed order."""
        own = "".join(f" {word}={getattr(self, word)}" for word in self.own)
        end = "" if self.expire is None else f" expire={self.expire}"
        source = format_source(self.source)
        return f"kind={self.kind} side={self.side.value} listen={self.listen} source={source}{own}{end}"

    def maps_to(self, port: int) -> int | None:
        """The port at the next hop for a port of the entrance; None when it is not ours."""
        return port if port in self.listen else None

    @staticmethod
    def decode(key: str, value: str) -> "Entry":
        """Read one entry back from its key (the part below the base) and value.

        Raises RefusedError for anything that encoding would not have written.
        """
        rule, dot, rest = key.partition(".")
        family, dot2, proto = rest.partition(".")
        if not dot or not dot2 or family not in ("4", "6") or proto not in ("tcp", "udp"):
            raise RefusedError(f"{shown(key)} is not an entry key")
        kind = KINDS.get(value.partition(" ")[0].removeprefix("kind="))
        if kind is None:
            raise RefusedError(f"{shown(value)} is of no known kind")
        words = parse_words(value, (*_WORDS, *kind.own, "expire"), (*_WORDS, *kind.own))
        try:
            entry = kind(
                RuleId(rule),
                Family(int(family)),
                Proto(proto),
                Side(words["side"]),
                PortRange.parse(words["listen"]),
                _source(words["source"]),
                *(parse(words[word]) for word, parse in kind.own.items()),
                expire=parse_number(words["expire"]) if "expire" in words else None,
            )
        except RefusedError:
            raise
        except ValueError:
            raise RefusedError(f"{shown(value)} is not an entry") from None
        if entry.value != value:
            raise RefusedError(f"{shown(value)} is not written as an entry is written")
        return entry


@dataclass(frozen=True, slots=True)
class Relay(Entry):
    """Hands connections on to `to`: port by port when `ports` is as long as `listen`, else all to the single port."""

    kind: ClassVar[str] = "relay"
    own: ClassVar[Mapping[str, Callable[[str], object]]] = {"to": _address, "ports": PortRange.parse}

    to: IPAddress
    ports: PortRange

    def __post_init__(self) -> None:
        Entry.__post_init__(self)
        if family_of(self.to) is not self.family:
            raise RefusedError(f"{shown(self.to)} is not an IPv{int(self.family)} address")
        if len(self.ports) not in (1, len(self.listen)):
            raise RefusedError(f"ports {self.ports} do not match listen ports {self.listen}")

    __hash__ = Entry.__hash__

    @property
    def shifted(self) -> int:
        """How many ports lead to other ports one by one; 0 where a range keeps its ports or leads to one."""
        return len(self.listen) if len(self.ports) > 1 and self.ports != self.listen else 0

    def maps_to(self, port: int) -> int | None:
        """The port at the next hop for a port of the entrance; None when it is not ours."""
        if port not in self.listen:
            return None
        return self.ports.first + (port - self.listen.first if len(self.ports) > 1 else 0)


@dataclass(frozen=True, slots=True)
class Accept(Entry):
    """Lets connections in: the qube is where the forward leads."""

    kind: ClassVar[str] = "accept"

    def __post_init__(self) -> None:
        Entry.__post_init__(self)
        if self.side is not Side.UPLINK or self.source is SourceWord.NEIGHBOURS:
            raise RefusedError("an accept entry is on the uplink side, and only a relay can know its neighbours")

    __hash__ = Entry.__hash__


KINDS: Mapping[str, type[Entry]] = {kind.kind: kind for kind in (Relay, Accept)}
"""All kinds of entries, by their words. An agent refuses an entry of another kind, and serves the others."""


def parse_key(untrusted_text: str) -> str:
    """The text itself when it has the form of an entry key; raises RefusedError otherwise."""
    if not _KEY.fullmatch(untrusted_text):
        raise RefusedError(f"{shown(untrusted_text)} is not an entry key")
    return untrusted_text


def parse_words(text: str, known: Iterable[str], required: Iterable[str]) -> dict[str, str]:
    """Split KEY=VALUE words at single spaces. Raises RefusedError for an unknown, repeated or missing key."""
    words: dict[str, str] = {}
    for word in text.split(" "):
        key, equals, value = word.partition("=")
        if not equals or not value or key not in known:
            raise RefusedError(f"unknown word {shown(word)}")
        if key in words:
            raise RefusedError(f"{shown(key)} is given twice")
        words[key] = value
    for key in required:
        if key not in words:
            raise RefusedError(f"{shown(key)} is missing")
    return words


def parse_number(text: str) -> int:
    """Read a decimal number without sign, at most 20 digits. Raises RefusedError."""
    if not (text.isascii() and text.isdigit() and len(text) <= 20):
        raise RefusedError(f"{shown(text)} is not a number")
    return int(text)


def digest(entries: Mapping[str, str]) -> str:
    """Hash keys and values in key order: the first 32 hexadecimal digits of SHA-256."""
    text = "".join(f"{key}={value}\n" for key, value in sorted(entries.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Commit:
    """The value of the base key: written last, so that many keys change as one."""

    generation: int
    entries: int
    digest: str

    @classmethod
    def over(cls, generation: int, entries: Mapping[str, str]) -> Self:
        """The commit of a set of entries (key below the base -> value)."""
        return cls(generation, len(entries), digest(entries))

    def __str__(self) -> str:
        return (
            f"version={limits.PROTOCOL_VERSION} generation={self.generation} "
            f"entries={self.entries} digest={self.digest}"
        )

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a commit. Raises RefusedError, also for another protocol version."""
        names = ("version", "generation", "entries", "digest")
        words = parse_words(text, names, names)
        if words["version"] != str(limits.PROTOCOL_VERSION):
            raise RefusedError(f"protocol version {shown(words['version'])} is not spoken here")
        return cls(parse_number(words["generation"]), parse_number(words["entries"]), words["digest"])

    def covers(self, entries: Mapping[str, str]) -> bool:
        """Whether these are exactly the entries that were committed."""
        return self.entries == len(entries) and self.digest == digest(entries)
