# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The ordinary rule: what a qube may reach. Reads exactly what a stock qubesd reads, oddities included. Does no I/O.

Source: qubes.firewall (server) and qubesadmin.firewall (client) of Qubes OS 4.3. The oddities: ports may be written
`+80` or `080`, port 0 is a port, prefixes keep their host bits and spelling, and whatever is neither an address nor a
prefix passes as a host name if its characters do, even the empty word.
"""

import enum
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self, TypeVar

from portfwd.model.errors import RuleError, closest
from portfwd.model.words import Comment, check_value
from portfwd.wire import limits

KEYS = ("action", "dsthost", "dst4", "dst6", "dstname", "proto", "dstports", "icmptype", "specialtarget", "expire")
_TARGET_KEYS = ("dsthost", "dst4", "dst6", "dstname")
_NAME = re.compile(r"[a-z0-9._-]*")
_ICMP_TYPE_MAX = 255
_DIGITS_MAX = 20


class Action(enum.StrEnum):
    """What happens to the packets that match."""

    ACCEPT = "accept"
    DROP = "drop"


class Protocol(enum.StrEnum):
    """A protocol that an ordinary rule can name."""

    TCP = "tcp"
    UDP = "udp"
    ICMP = "icmp"

    @property
    def has_ports(self) -> bool:
        """Whether dstports= goes with it."""
        return self is not Protocol.ICMP


class SpecialTarget(enum.StrEnum):
    """A target that is not an address: the name servers of the qube."""

    DNS = "dns"


Choice = TypeVar("Choice", bound=enum.StrEnum)


class DstHost(str):
    """A destination as the server keeps it: a bare address gets its prefix length, all else stays as it was written."""

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        word = f"dsthost={text}"
        address, slash, bits = check_value("dsthost", text).partition("/")
        if slash and not _is_number(bits):
            raise RuleError(word, "a prefix length is a number")
        for family, longest in ((socket.AF_INET6, 128), (socket.AF_INET, 32)):
            if not _is_address(family, address):
                continue
            if slash and int(bits) > longest:
                raise RuleError(word, f"a prefix length is 0 to {longest}")
            return super().__new__(cls, text if slash else f"{text}/{longest}")
        if slash:
            raise RuleError(word, "there is no address before the prefix length")
        if not _NAME.fullmatch(text):
            raise RuleError(word, "neither an address nor a host name in lower case")
        return super().__new__(cls, text)

    @property
    def key(self) -> str:
        """The key that the server prints it with: dst4, dst6 or dsthost (a name)."""
        if "/" not in self:
            return "dsthost"
        return "dst6" if ":" in self else "dst4"

    @property
    def is_everything(self) -> bool:
        """Whether this is the prefix of a whole family."""
        return "/" in self and int(self.partition("/")[2]) == 0


@dataclass(frozen=True, slots=True)
class DstPorts:
    """Ports first to last; port 0 is accepted as the server accepts it. Raises RuleError."""

    first: int
    last: int

    def __post_init__(self) -> None:
        if not 0 <= self.first <= limits.PORT_MAX or not 0 <= self.last <= limits.PORT_MAX:
            raise RuleError(f"dstports={self}", f"a port is at most {limits.PORT_MAX}")
        if self.first > self.last:
            raise RuleError(f"dstports={self}", "the range ends before it begins")

    @classmethod
    def parse(cls, text: str) -> Self:
        """N or N-M. Each number is whatever Python's int() takes, as on the server."""
        try:
            numbers = [int(number) for number in text.split("-")]
            if len(numbers) <= 2:
                return cls(numbers[0], numbers[-1])
        except RuleError as error:
            raise RuleError(f"dstports={text}", error.reason) from None
        except ValueError:
            pass
        raise RuleError(f"dstports={text}", "dstports is a port or a range of ports, like 443 or 1200-1400")

    def __str__(self) -> str:
        return f"{self.first}-{self.last}"

    @property
    def short(self) -> str:
        """The short spelling: 443 or 1-2."""
        return str(self.first) if self.first == self.last else str(self)


class Expire(str):
    """A time in epoch seconds, as it was written."""

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        if not _is_number(text):
            raise RuleError(f"expire={text}", "expire is seconds since 1970")
        if int(text) > limits.EXPIRE_MAX:
            raise RuleError(f"expire={text}", f"a time is at most {limits.EXPIRE_MAX} seconds since 1970")
        return super().__new__(cls, text)

    @property
    def seconds(self) -> int:
        """Epoch seconds."""
        return int(self)


@dataclass(frozen=True, slots=True)
class OrdinaryRule:
    """One rule of the outbound firewall. Raises RuleError for a word that does not go with the protocol."""

    action: Action
    dsthost: DstHost | None = None
    proto: Protocol | None = None
    dstports: DstPorts | None = None
    icmptype: int | None = None
    specialtarget: SpecialTarget | None = None
    expire: Expire | None = None
    comment: Comment | None = None

    def __post_init__(self) -> None:
        if self.dstports is not None and (self.proto is None or not self.proto.has_ports):
            raise RuleError(f"dstports={self.dstports}", "dstports goes with proto=tcp or proto=udp only")
        if self.icmptype is not None:
            if self.proto is not Protocol.ICMP:
                raise RuleError(f"icmptype={self.icmptype}", "icmptype goes with proto=icmp only")
            if not 0 <= self.icmptype <= _ICMP_TYPE_MAX:
                raise RuleError(f"icmptype={self.icmptype}", f"an ICMP type is 0 to {_ICMP_TYPE_MAX}")

    def expired(self, now: float) -> bool:
        """Whether the rule has ended at `now` (epoch seconds); the server then no longer shows it."""
        return self.expire is not None and self.expire.seconds < now

    def api_line(self) -> str:
        """The line as the server prints it (admin.vm.firewall.Get), without line end."""
        return self._line("action", "expire", "dsthost", "proto", "specialtarget", "dstports", "icmptype")

    def line(self, *, everything: bool = False) -> str:
        """The line as the stock client prints and sends it, without line end.

        That client leaves out 0.0.0.0/0 and ::/0, which lets the rule match both families; `everything` keeps them.
        """
        left_out = not everything and self.dsthost is not None and self.dsthost.is_everything
        target = () if left_out else ("dsthost",)
        return self._line("action", "proto", *target, "dstports", "icmptype", "specialtarget", "expire")

    def _line(self, *keys: str) -> str:
        words = []
        for key in (*keys, "comment"):
            value = getattr(self, key)
            if value is not None:
                words.append(f"{value.key if isinstance(value, DstHost) else key}={value}")
        return " ".join(words)

    @classmethod
    def from_words(cls, words: Mapping[str, str]) -> Self:
        """Make a rule of KEY -> VALUE. Raises RuleError."""
        if "action" not in words:
            raise RuleError("action=", "this word is missing: accept or drop")
        targets = [key for key in _TARGET_KEYS if key in words]
        if len(targets) > 1:
            raise RuleError(targets[1], f"the same as {targets[0]}, which is already given")
        return cls(
            action=_parse_choice("action", words["action"], Action),
            dsthost=DstHost(words[targets[0]]) if targets else None,
            proto=_parse_choice("proto", words["proto"], Protocol) if "proto" in words else None,
            dstports=DstPorts.parse(words["dstports"]) if "dstports" in words else None,
            icmptype=_parse_icmp_type(words["icmptype"]) if "icmptype" in words else None,
            specialtarget=(
                _parse_choice("specialtarget", words["specialtarget"], SpecialTarget)
                if "specialtarget" in words
                else None
            ),
            expire=Expire(words["expire"]) if "expire" in words else None,
            comment=Comment(words["comment"]) if words.get("comment") else None,
        )


def parse_ordinary(line: str) -> OrdinaryRule:
    """Read one line of the Admin API, without its line end, as a stock qubesd does. Raises RuleError."""
    if not line.isascii() or len(line.splitlines()) > 1:
        raise RuleError(line, "a rule is one line of ASCII")
    options, _, comment = line.partition("comment=")
    words: dict[str, str] = {}
    for word in options.strip().split(" "):
        key, equals, value = word.partition("=")
        if not equals:
            raise RuleError(word, "a word is KEY=VALUE, and words are parted by exactly one space")
        if key in words:
            raise RuleError(word, "this word is given twice")
        if key not in KEYS:
            raise RuleError(word, "unknown word", closest(key, KEYS))
        words[key] = value
    return OrdinaryRule.from_words(words | {"comment": comment})


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= _DIGITS_MAX


def _is_address(family: socket.AddressFamily, text: str) -> bool:
    try:
        socket.inet_pton(family, text)
    except (OSError, ValueError):
        return False
    return True


def _parse_choice(key: str, value: str, choices: type[Choice]) -> Choice:
    try:
        return choices(value)
    except ValueError:
        raise RuleError(f"{key}={value}", f"{key} is {' or '.join(choices)}", closest(value, choices)) from None


def _parse_icmp_type(value: str) -> int:
    if len(value) > 3 or not _is_number(value):
        raise RuleError(f"icmptype={value}", f"an ICMP type is 0 to {_ICMP_TYPE_MAX}")
    return int(value)
