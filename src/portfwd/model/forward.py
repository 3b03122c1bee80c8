# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The forward rule: which ports of the network lead to which ports of a qube. Does no I/O.

    action=forward forwardtype=external|internal [proto=tcp|udp] srcports=A[-B] [dstports=C[-D]]
        [srchost=any|neighbours|PREFIX|NAME] [enabled=no] [expire=EPOCH|reboot|shutdown] [comment=TEXT]

Reading takes the words in any order; printing knows one order and one spelling, so two rules that do the same print
the same. Everything that is not named here is refused.
"""

import enum
import functools
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NewType, Self, TypeVar

from portfwd.model.errors import RuleError, closest
from portfwd.model.words import Comment, check_value, split_line
from portfwd.wire import limits
from portfwd.wire.entry import parse_number
from portfwd.wire.errors import RefusedError
from portfwd.wire.sources import as_number, source_fault
from portfwd.wire.values import (
    HostName,
    IPNetwork,
    PortRange,
    Proto,
    QubeName,
    RuleId,
    Source,
    SourceWord,
    parse_prefix,
)

ACTION = "forward"
KEYS = (
    "action",
    "forwardtype",
    "proto",
    "srcports",
    "dstports",
    "srchost",
    "src4",
    "src6",
    "enabled",
    "expire",
    "comment",
)
_KEYS = frozenset(KEYS)
_SOURCE_KEYS = ("srchost", "src4", "src6")
_TARGET_KEYS = ("dsthost", "dst4", "dst6", "dstname")
_ORDINARY_KEYS = ("specialtarget", "icmptype")
_ADDRESS = re.compile(r"[0-9./]+|.*[:/].*")
_WORDS_FOR_SOURCES = [word.value for word in SourceWord]
_NEARLY_NEIGHBOURS = ("neighbors", "neighbour", "neighbor")


class ForwardType(enum.StrEnum):
    """Where the entrance is: the outermost net qube, or the qube's own net qube."""

    EXTERNAL = "external"
    INTERNAL = "internal"


class Lifetime(enum.StrEnum):
    """An expiry that is no time: the host restarts, or the qube shuts down."""

    REBOOT = "reboot"
    SHUTDOWN = "shutdown"


Further = NewType("Further", str)
"""A word KEY=VALUE that a newer dom0 has put into a rule. It is no part of what the rule does, or of its id."""
_Does = NewType("_Does", str)
Choice = TypeVar("Choice", bound=enum.StrEnum)


@dataclass(frozen=True, slots=True)
class ForwardRule:
    """Clients from `srchost` that reach `srcports` at the entrance are led to `dstports` of the qube.

    `dstports` is as long as `srcports` (port by port) or one port. No `proto` means tcp and udp. `expire` is in epoch
    seconds. Raises RuleError for ports that do not match and an expiry out of range. `further` are words that are not
    known here, kept for who knows them.
    """

    forwardtype: ForwardType
    srcports: PortRange
    dstports: PortRange
    proto: Proto | None = None
    srchost: Source = SourceWord.NEIGHBOURS
    enabled: bool = True
    expire: int | Lifetime | None = None
    comment: Comment | None = None
    further: tuple[Further, ...] = ()
    _does: _Does = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len(self.dstports) not in (1, len(self.srcports)):
            reason = f"dstports is one port, or as many as srcports={self.srcports}"
            raise RuleError(f"dstports={self.dstports}", reason)
        if isinstance(self.expire, int) and not 0 <= self.expire <= limits.EXPIRE_MAX:
            raise RuleError(f"expire={self.expire}", f"a time is at most {limits.EXPIRE_MAX} seconds since 1970")
        if isinstance(self.srchost, HostName) and self.srchost in _WORDS_FOR_SOURCES:
            raise RuleError(f"srchost={self.srchost}", "this word is not a host name")
        # Cached: the id, among others, is made of it.
        object.__setattr__(self, "_does", _Does(" ".join(self._doing())))

    @property
    def protos(self) -> tuple[Proto, ...]:
        """The protocols that are forwarded."""
        return tuple(Proto) if self.proto is None else (self.proto,)

    @property
    def shifted(self) -> int:
        """How many ports lead to other ports one by one; 0 where a range keeps its ports or leads to one."""
        return len(self.srcports) if len(self.dstports) > 1 and self.dstports != self.srcports else 0

    @property
    def does(self) -> str:
        """What the rule does, in canonical words: neither whether it is enabled, nor until when, nor why."""
        return self._does

    def id(self, qube: QubeName) -> RuleId:
        """The stable id of this rule at that qube: the first 16 hexadecimal digits of a SHA-256."""
        return _id(qube, self._does)

    def __str__(self) -> str:
        words = [f"action={ACTION}", self._does]
        if not self.enabled:
            words.append("enabled=no")
        if self.expire is not None:
            words.append(f"expire={self.expire}")
        words += self.further
        if self.comment is not None:
            words.append(f"comment={self.comment}")
        return " ".join(words)

    def _doing(self) -> Iterator[str]:
        yield f"forwardtype={self.forwardtype}"
        if self.proto is not None:
            yield f"proto={self.proto}"
        yield f"srcports={self.srcports}"
        yield f"dstports={self.dstports}"
        if self.srchost is not SourceWord.NEIGHBOURS:
            yield f"srchost={self.srchost}"

    @classmethod
    def from_words(cls, words: Mapping[str, str]) -> Self:
        """Make a rule of KEY -> VALUE, as a user types it. Raises RuleError."""
        rule = cls.stored(words)
        rule.check_clients()
        return rule

    def check_clients(self) -> None:
        """Raise RuleError when nobody can be a client of the rule."""
        if fault := source_fault(self.srchost):
            raise RuleError(f"srchost={_short(self.srchost)}", fault)

    @classmethod
    def stored(cls, words: Mapping[str, str]) -> Self:
        """Make a rule of stored KEY -> VALUE, also a useless one that older versions accepted. Raises RuleError."""
        for key, value in words.items():
            _check_word(key, value)
        if words.get("action") != ACTION:
            raise RuleError(f"action={words.get('action', '')}", f"a forward rule has action={ACTION}")
        proto = _parse_choice("proto", words["proto"], Proto) if "proto" in words else None
        for key in ("forwardtype", "srcports"):
            if key not in words:
                meant = " or ".join(ForwardType) if key == "forwardtype" else "the port or ports at the entrance"
                raise RuleError(f"{key}=", f"this word is missing: {meant}")
        sources = [key for key in _SOURCE_KEYS if key in words]
        if len(sources) > 1:
            raise RuleError(sources[1], f"the same as {sources[0]}, which is already given")
        srcports = _parse_ports("srcports", words["srcports"])
        return cls(
            forwardtype=_parse_choice("forwardtype", words["forwardtype"], ForwardType),
            proto=proto,
            srcports=srcports,
            dstports=_parse_ports("dstports", words["dstports"]) if "dstports" in words else srcports,
            srchost=_parse_srchost(sources[0], words[sources[0]]) if sources else SourceWord.NEIGHBOURS,
            enabled=_parse_enabled(words["enabled"]) if "enabled" in words else True,
            expire=_parse_expire(words["expire"]) if "expire" in words else None,
            comment=Comment(words["comment"]) if "comment" in words else None,
        )


@functools.lru_cache(maxsize=1 << 15)
def _id(qube: QubeName, does: str) -> RuleId:
    return RuleId(hashlib.sha256(f"{qube}\n{does}".encode()).hexdigest()[:16])


def parse_forward(line: str, *, newer: bool = False) -> ForwardRule:
    """Read one line of the Admin API or of a file, without its line end. Raises RuleError.

    A source from which no client can come is taken: it has been stored, or check_clients() refuses it. `newer`: the
    line is dom0's own, and may have words that are not known here.
    """
    words = split_line(line)
    if not newer or words.keys() <= _KEYS:
        return ForwardRule.stored(words)
    rule = ForwardRule.stored({key: value for key, value in words.items() if key in _KEYS})
    further = (Further(f"{key}={check_value(key, value)}") for key, value in words.items() if key not in _KEYS)
    return replace(rule, further=tuple(further))


def too_wide(rule: ForwardRule) -> str | None:
    """Why a rule shifts more ports than a rule may, in a sentence; None when it does not.

    A stored rule may stay as it is; it opens nothing.
    """
    if rule.shifted <= limits.SHIFTED_PORTS_MAX:
        return None
    return (
        f"a range that leads to other ports has at most {limits.SHIFTED_PORTS_MAX} ports; there is no limit for the "
        f"same range on both sides (dstports={rule.srcports}) and for a range that leads to one port"
    )


def _check_word(key: str, value: str) -> None:
    word = f"{key}={value}"
    if key in _TARGET_KEYS:
        raise RuleError(word, "the qube's own address is always the target")
    if key in _ORDINARY_KEYS:
        raise RuleError(word, f"this word does not go with action={ACTION}")
    if key not in KEYS:
        raise RuleError(word, "unknown word", closest(key, KEYS))
    if not value:
        raise RuleError(word, "the value is empty")
    if key == "expire" and value.startswith("+"):
        raise RuleError(word, "a time from now is understood on the command line only")
    if key != "comment":
        check_value(key, value)


def _parse_choice(key: str, value: str, choices: type[Choice]) -> Choice:
    try:
        return choices(value)
    except ValueError:
        raise RuleError(f"{key}={value}", f"{key} is {' or '.join(choices)}", closest(value, choices)) from None


def _parse_enabled(value: str) -> bool:
    if value not in ("yes", "no"):
        raise RuleError(f"enabled={value}", "enabled is yes or no")
    return value == "yes"


def _parse_ports(key: str, value: str) -> PortRange:
    try:
        return PortRange.parse(value)
    except RefusedError as error:
        raise RuleError(f"{key}={value}", str(error)) from None


def _parse_srchost(key: str, value: str) -> Source:
    if value in _WORDS_FOR_SOURCES:
        return SourceWord(value)
    if value in _NEARLY_NEIGHBOURS:
        raise RuleError(f"{key}={value}", "not a host name", SourceWord.NEIGHBOURS)
    try:
        return parse_prefix(value) if _ADDRESS.fullmatch(value) else HostName(value)
    except RefusedError as error:
        meant = as_number(value)
        hint = "" if meant is None else f"; an address has four decimal numbers, did you mean {meant}?"
        raise RuleError(f"{key}={value}", f"{error}{hint}") from None


def _short(source: Source) -> str:
    """A source as a user writes it: a single address without its prefix length."""
    single = isinstance(source, IPNetwork) and source.prefixlen == source.max_prefixlen
    return str(source).partition("/")[0] if single else str(source)


def _parse_expire(value: str) -> int | Lifetime:
    if value in list(Lifetime):
        return Lifetime(value)
    try:
        return parse_number(value)
    except RefusedError:
        reason = f"expire is seconds since 1970, {' or '.join(Lifetime)}"
        raise RuleError(f"expire={value}", reason, closest(value, Lifetime)) from None
