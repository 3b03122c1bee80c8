# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Rules of the nft language as data: exactly the statements that the tracer can interpret. PURE.

Whatever is not known here raises NftError, so that no test passes because a rule was overlooked.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from portfwd.kernel.nft import NftError
from tests.fakes.nft_text import Key, Span, Tokens, concatenation, number, protocol, span

SELECTORS: dict[tuple[str, ...], str] = {
    ("iif",): "ifname",
    ("oif",): "ifname",
    ("iifname",): "ifname",
    ("oifname",): "ifname",
    ("iifgroup",): "group",
    ("oifgroup",): "group",
    ("meta", "iifkind"): "kind",
    ("meta", "l4proto"): "inet_proto",
    ("ip", "saddr"): "ipv4_addr",
    ("ip", "daddr"): "ipv4_addr",
    ("ip6", "saddr"): "ipv6_addr",
    ("ip6", "daddr"): "ipv6_addr",
    ("th", "sport"): "inet_service",
    ("th", "dport"): "inet_service",
    ("tcp", "dport"): "inet_service",
    ("udp", "dport"): "inet_service",
    ("tcp", "flags"): "flags",
    ("ct", "mark"): "mark",
    ("meta", "mark"): "mark",
    ("ct", "state"): "state",
    ("ct", "status"): "status",
    ("ct", "original", "proto-dst"): "inet_service",
    ("fib", "daddr", "type"): "route",
    ("icmpv6", "type"): "icmp",
}
"""What can be matched -> the type of its value."""

FLAGS = {"fin": 1, "syn": 2, "rst": 4, "psh": 8, "ack": 16}
_WORDS = {
    "state": {"new", "established", "related", "invalid"},
    "status": {"dnat", "snat"},
    "route": {"local"},
    "icmp": {"nd-router-advert", "nd-redirect"},
}
_VERDICTS = ("accept", "drop", "return", "continue", "jump", "goto")


@dataclass(frozen=True, slots=True)
class Match:
    """A comparison: `(value & mask) == / != any of the spans`; `prefix` is for a name that ends in *."""

    selector: str
    spans: tuple[Span, ...]
    negated: bool = False
    mask: int | None = None
    prefix: str = ""


@dataclass(frozen=True, slots=True)
class Lookup:
    """A search for the selectors' values in a set; with `vmap` the verdict found is taken."""

    selectors: tuple[str, ...]
    set: str
    vmap: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of the packet."""

    kind: str
    chain: str = ""


@dataclass(frozen=True, slots=True)
class Mark:
    """ct mark set: `keep` says which bits stay, `add` which are set."""

    keep: int
    add: int


@dataclass(frozen=True, slots=True)
class Reject:
    """An answer to the sender: a TCP reset or an ICMP error."""

    reset: bool


@dataclass(frozen=True, slots=True)
class Dnat:
    """Another destination: found in a map by selectors, or fixed (address, or address and port)."""

    selectors: tuple[str, ...] = ()
    map: str = ""
    fixed: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Masquerade:
    """The sender becomes the address of the outgoing interface."""


@dataclass(frozen=True, slots=True)
class SetStatement:
    """update or delete: puts the selectors' values into a set, or takes them out."""

    verb: str
    set: str
    selectors: tuple[str, ...]


Statement = SetStatement | Match | Lookup | Verdict | Mark | Reject | Dnat | Masquerade


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule; `text` is as listed."""

    text: str
    statements: tuple[Statement, ...]
    handle: int = 0

    def verdicts(self) -> Iterator[Verdict]:
        """The verdicts that stand in it."""
        yield from (s for s in self.statements if isinstance(s, Verdict))

    def sets(self) -> Iterator[str]:
        """The names of the sets that it uses."""
        for statement in self.statements:
            if isinstance(statement, Lookup | SetStatement):
                yield statement.set
            elif isinstance(statement, Dnat) and statement.map:
                yield statement.map


def read_verdict(tokens: Tokens) -> Verdict:
    """accept, drop, return, continue, jump CHAIN or goto CHAIN."""
    kind = tokens.take()
    if kind not in _VERDICTS:
        raise NftError(f"syntax error, {kind!r} is not a verdict")
    return Verdict(kind, tokens.name() if kind in ("jump", "goto") else "")


def read_rule(family: str, tokens: Tokens) -> Rule:
    """One rule, up to the end of the command."""
    start = tokens.position
    statements: list[Statement] = []
    while tokens.peek() not in ("\n", ";", "", "}"):
        statements += _statement(family, tokens)
    return Rule(tokens.since(start), tuple(statements))


def _statement(family: str, tokens: Tokens) -> list[Statement]:
    word = tokens.peek()
    if word in _VERDICTS:
        return [read_verdict(tokens)]
    if tokens.accept("comment"):
        tokens.string()
        return []
    if tokens.accept("counter"):
        if tokens.accept("packets"):
            number(tokens.take())
            tokens.expect("bytes")
            number(tokens.take())
        return []
    if word in ("update", "delete") and tokens.peek(1).startswith("@"):
        return [_set_statement(tokens)]
    if tokens.accept("notrack"):
        # The fake sends nothing with a mark.
        return [Verdict("continue")]
    if tokens.accept("masquerade"):
        return [Masquerade()]
    if tokens.accept("reject"):
        return [_reject(tokens)]
    if tokens.accept("dnat"):
        return [_dnat(family, tokens)]
    if tokens.accept("ct", "mark", "set"):
        return [_mark(tokens)]
    return _match(tokens)


def _set_statement(tokens: Tokens) -> SetStatement:
    verb, name = tokens.take(), _reference(tokens)
    tokens.expect("{")
    selectors = _selectors(tokens)
    tokens.expect("}")
    return SetStatement(verb, name, selectors)


def _reject(tokens: Tokens) -> Reject:
    if not tokens.accept("with"):
        return Reject(False)
    if tokens.accept("tcp", "reset"):
        return Reject(True)
    if tokens.take() not in ("icmp", "icmpv6"):
        raise tokens.unexpected()
    tokens.expect("type")
    tokens.name()
    return Reject(False)


def _mark(tokens: Tokens) -> Mark:
    if not tokens.accept("ct", "mark"):
        return Mark(0, number(tokens.take()))
    operator, operand = tokens.take(), number(tokens.take())
    if operator == "|":
        return Mark(0xFFFFFFFF, operand)
    if operator == "&":
        return Mark(operand, 0)
    raise NftError(f"syntax error, operator {operator!r} is not known here")


def _dnat(family: str, tokens: Tokens) -> Dnat:
    if tokens.peek() in ("ip", "ip6"):
        tokens.expect(family)
    tokens.expect("to")
    if _selector_at(tokens):
        selectors = _selectors(tokens)
        tokens.expect("map")
        return Dnat(selectors, _reference(tokens))
    address, port = tokens.take(), ""
    if family == "ip":
        address, _, port = address.partition(":")
    elif address.startswith("["):
        address, _, port = address[1:].partition("]:")
    low, high = span("ipv4_addr" if family == "ip" else "ipv6_addr", address)
    if low != high or not isinstance(low, int):
        raise NftError(f"{address!r} is not one address")
    return Dnat(fixed=(low, number(port)) if port else (low,))


def _selector_at(tokens: Tokens) -> tuple[str, ...] | None:
    for length in (3, 2, 1):
        words = tuple(tokens.peek(i) for i in range(length))
        if words in SELECTORS:
            return words
    return None


def _selectors(tokens: Tokens) -> tuple[str, ...]:
    found = []
    while True:
        words = _selector_at(tokens)
        if words is None:
            raise tokens.unexpected()
        tokens.expect(*words)
        found.append(" ".join(words))
        if not tokens.accept("."):
            return tuple(found)


def _reference(tokens: Tokens) -> str:
    word = tokens.take()
    if not word.startswith("@"):
        raise NftError(f"syntax error, {word!r} does not name a set")
    return word[1:]


def _implied(selectors: tuple[str, ...]) -> list[Statement]:
    """nft's own additions: a port or flags of one protocol match only that protocol."""
    names = [s.split(" ")[0] for s in selectors]
    return [Match("meta l4proto", ((protocol(n),) * 2,)) for n in ("tcp", "udp") if n in names]


def _match(tokens: Tokens) -> list[Statement]:
    selectors = _selectors(tokens)
    implied = _implied(selectors)
    vmap = tokens.accept("vmap")
    if vmap or tokens.peek().startswith("@"):
        return [*implied, Lookup(selectors, _reference(tokens), vmap)]
    if len(selectors) != 1:
        raise tokens.unexpected()
    kind = SELECTORS[tuple(selectors[0].split(" "))]
    mask = None
    if tokens.accept("&"):
        mask = _bits(kind, tokens)
    negated = tokens.accept("!=")
    if not negated and not tokens.accept("==") and mask is not None:
        raise tokens.unexpected()
    if kind == "ifname" and tokens.peek().endswith('*"'):
        return [Match(selectors[0], (), negated, prefix=tokens.string()[:-1])]
    if tokens.peek() == "{":
        spans = [_value(kind, tokens) for _ in tokens.listed()]
    elif kind == "flags":
        spans = [(_bits(kind, tokens),) * 2]
    else:
        spans = [_value(kind, tokens)]
        while kind == "state" and tokens.accept(","):
            spans.append(_value(kind, tokens))
    return [*implied, Match(selectors[0], tuple(spans), negated, mask)]


def _bits(kind: str, tokens: Tokens) -> int:
    """A mask: a number, a flag, or flags in brackets."""
    if kind != "flags":
        return number(tokens.take())
    many = tokens.accept("(")
    bits = 0
    while True:
        flag = tokens.take()
        if flag not in FLAGS:
            raise NftError(f"{flag!r} is not a TCP flag")
        bits |= FLAGS[flag]
        if not many or tokens.accept(")"):
            return bits
        tokens.expect("|")


def _value(kind: str, tokens: Tokens) -> Span:
    if kind in _WORDS:
        word = tokens.take()
        if word not in _WORDS[kind]:
            raise NftError(f"{word!r} is not a value of {kind}")
        return word, word
    if kind == "kind":
        name = tokens.string()
        return name, name
    if kind == "group":
        group = number(tokens.take())
        return group, group
    if kind == "inet_proto":
        value = protocol(tokens.take())
        return value, value
    return span(kind, tokens.take())


def read_key(kinds: tuple[str, ...], tokens: Tokens) -> tuple[Key, str]:
    """A key and its text."""
    start = tokens.position
    return concatenation(kinds, tokens), tokens.since(start)
