# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Words and values of the nft language, as far as our texts use it. PURE; anything else raises NftError."""

import ipaddress
import re
from collections.abc import Iterator

from portfwd.kernel.nft import NftError

_TOKEN = re.compile(r'"[^"\n]*"|[{};,()\n]|[^\s{};,()"]+')
_COMMENT = re.compile(r'("[^"\n]*")|#[^\n]*')
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PROTOCOLS = {"icmp": 1, "tcp": 6, "udp": 17, "ipv6-icmp": 58}

Value = int | str
Span = tuple[Value, Value]
"""From and to, both included; for names both are the same."""
Key = tuple[Span, ...]


class Tokens:
    """A text as words, to be taken from the front."""

    def __init__(self, text: str) -> None:
        clean = _COMMENT.sub(lambda found: found[1] or "", text)
        if _TOKEN.sub("", clean).strip(" \t"):
            raise NftError(f"syntax error, unexpected junk in {text[:80]!r}")
        self._words = _TOKEN.findall(clean)
        self._next = 0

    @property
    def position(self) -> int:
        """How many words have been taken."""
        return self._next

    def since(self, position: int) -> str:
        """The words taken since then, as a listing shows them."""
        return " ".join(self._words[position : self._next]).replace(" ,", ",")

    def peek(self, ahead: int = 0) -> str:
        """A word that follows, '' behind the end."""
        place = self._next + ahead
        return self._words[place] if place < len(self._words) else ""

    def take(self) -> str:
        """The next word."""
        word = self.peek()
        self._next += 1
        return word

    def accept(self, *words: str) -> bool:
        """Take these words if they follow."""
        if any(self.peek(i) != word for i, word in enumerate(words)):
            return False
        self._next += len(words)
        return True

    def expect(self, *words: str) -> None:
        """Take these words; anything else is an error."""
        if not self.accept(*words):
            raise self.unexpected()

    def name(self) -> str:
        """Take an identifier."""
        word = self.take()
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]*", word) or word == "fwd":
            raise NftError(f"syntax error, {word!r} is not a name")
        return word

    def string(self) -> str:
        """Take a quoted text."""
        word = self.take()
        if not (len(word) >= 2 and word[0] == word[-1] == '"'):
            raise NftError(f"syntax error, {word!r} is not a string")
        return word[1:-1]

    def skip_ends(self) -> None:
        """Take separators between commands."""
        while self.peek() in ("\n", ";"):
            self._next += 1

    def skip_lines(self) -> None:
        """Take line breaks, where they mean nothing."""
        while self.peek() == "\n":
            self._next += 1

    def end(self) -> None:
        """Take the end of a command; nothing else may stand there."""
        if self.peek() not in ("\n", ";", "", "}"):
            raise self.unexpected()
        self.skip_ends()

    def listed(self) -> Iterator[None]:
        """Walk over { A, B, ... }, lines broken anywhere; the caller takes each item."""
        self.expect("{")
        self.skip_lines()
        while not self.accept("}"):
            yield
            self.skip_lines()
            if not self.accept(","):
                self.expect("}")
                return
            self.skip_lines()

    def unexpected(self) -> NftError:
        """The error for what follows."""
        return NftError(
            f"syntax error, unexpected {self.peek()!r} behind {' '.join(self._words[: self._next])[-60:]!r}"
        )


def number(word: str) -> int:
    """A decimal or 0x number."""
    try:
        return int(word, 0)
    except ValueError:
        raise NftError(f"{word!r} is not a number") from None


def protocol(word: str) -> int:
    """A protocol by name or number."""
    return _PROTOCOLS[word] if word in _PROTOCOLS else number(word)


def seconds(word: str) -> float:
    """A time such as 5000ms or 1h30m, in seconds."""
    parts = re.findall(r"(\d+)(ms|[smhd])", word)
    if not parts or "".join(count + unit for count, unit in parts) != word:
        raise NftError(f"{word!r} is not a time")
    if any(len(count) > 8 for count, _ in parts):
        raise NftError("value too large")
    return sum(int(count) * _UNITS[unit] for count, unit in parts)


def span(kind: str, word: str) -> Span:
    """A value, range or prefix of a type, from one word."""
    match kind:
        case "ipv4_addr" | "ipv6_addr":
            return _addresses(word, 4 if kind == "ipv4_addr" else 6)
        case "inet_service" | "mark":
            first, dash, last = word.partition("-")
            low, high = number(first), number(last if dash else first)
            if not 0 <= low <= high or (kind == "inet_service" and high > 65535):
                raise NftError(f"{word!r} is out of range")
            return low, high
        case "inet_proto":
            return (protocol(word),) * 2
        case "ifname":
            name = word[1:-1] if word.startswith('"') else word
            if not re.fullmatch(r"[^\s/*]{1,15}", name):
                raise NftError(f"{word!r} is not an interface name")
            return name, name
    raise NftError(f"type {kind!r} is not known here")


def _addresses(word: str, version: int) -> Span:
    try:
        if "-" in word:
            first, last = (ipaddress.ip_address(part) for part in word.split("-"))
        else:
            network = ipaddress.ip_network(word, strict=False)
            first, last = network[0], network[-1]
    except ValueError:
        raise NftError(f"{word!r} is not an address") from None
    if (first.version, last.version) != (version, version) or int(first) > int(last):
        raise NftError(f"{word!r} is not an IPv{version} address")
    return int(first), int(last)


def concatenation(kinds: tuple[str, ...], tokens: Tokens) -> Key:
    """A key: as many values as there are types, joined by dots."""
    spans = []
    for place, kind in enumerate(kinds):
        if place:
            tokens.expect(".")
        spans.append(span(kind, tokens.take()))
    return tuple(spans)
