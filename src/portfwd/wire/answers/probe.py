# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The dialogue of dom0 and a qube while a marked probe goes through the chain. Pure text.

qrexec service qubes.PortForwardProbe, one call per hop; a way is one family and protocol of a rule:

    dom0   version=1 ways=COUNT role=entrance|hop
           RULE.FAMILY.PROTO port=N sport=N client=ADDRESS|- then the words of the hop's entry        COUNT lines
    qube   version=1 ways=COUNT agent=yes|no
           RULE.FAMILY.PROTO client=ADDRESS|- base=yes|no rule=yes|no before=N door=yes|no route=WORD forwarding=yes|no
             listening=yes|no|local|-                                                                 COUNT lines
           armed=yes|no
    dom0   send                                                                              (to the entrance alone)
    qube   sent=yes|no-uplink|no-tc
    dom0   tell                                                                        (or the end of its input)
    qube   RULE.FAMILY.PROTO answer=WORD arrived=N local=N delivered=N passing=N left=N back=N returned=N  COUNT lines
           end

The probe is a TCP SYN or an empty datagram from `client`, port `sport`; each hop tells it by these two. The entrance
chooses the client where dom0 names none. dom0 treats every byte of a qube as untrusted.
"""

import enum
from dataclasses import dataclass, fields
from typing import Self

from portfwd.wire import limits
from portfwd.wire.entry import Entry, parse_key, parse_number, parse_words
from portfwd.wire.errors import RefusedError, shown
from portfwd.wire.values import IPAddress, family_of, parse_address, parse_port

WAYS_MAX = 4
"""Two families and two protocols."""
SEND, TELL, END = "send", "tell", "end"
_NONE = "-"
_YES_NO = {"yes": True, "no": False}


class Role(enum.StrEnum):
    """What a hop does with the probe: make it and keep its answer from leaving, or only count it."""

    ENTRANCE = "entrance"
    HOP = "hop"


class RouteWord(enum.StrEnum):
    """Where packets that a relay hands on would leave."""

    VIF = "vif"
    UPLINK = "uplink"
    TUNNEL = "tunnel"
    LOCAL = "local"
    NONE = "none"


class Sent(enum.StrEnum):
    """Whether the entrance could make the probe."""

    YES = "yes"
    NO_UPLINK = "no-uplink"
    NO_TC = "no-tc"


class Answer(enum.StrEnum):
    """The answer that came back past a hop."""

    NONE = "none"
    SYN_ACK = "synack"
    RESET = "reset"
    UNREACHABLE = "unreachable"
    DATAGRAM = "datagram"


@dataclass(frozen=True, slots=True)
class Way:
    """One way at one hop: the hop's entry, the probed port there, and what identifies the probe."""

    entry: Entry
    port: int
    sport: int
    client: IPAddress | None

    def __str__(self) -> str:
        client = _NONE if self.client is None else self.client
        return f"{self.entry.key} port={self.port} sport={self.sport} client={client} {self.entry.value}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read it in the qube; raises RefusedError."""
        parts = text.split(" ", 4)
        if len(parts) != 5:
            raise RefusedError(f"{shown(text)} is not a way")
        words = parse_words(" ".join(parts[1:4]), ("port", "sport", "client"), ("port", "sport", "client"))
        entry = Entry.decode(parts[0], parts[4])
        client = None if words["client"] == _NONE else parse_address(words["client"])
        if client is not None and family_of(client) is not entry.family:
            raise RefusedError(f"{shown(client)} is not an IPv{int(entry.family)} address")
        port = parse_port(words["port"])
        if port not in entry.listen:
            raise RefusedError(f"port {port} is not one of {entry.listen}")
        return cls(entry, port, parse_port(words["sport"]), client)


@dataclass(frozen=True, slots=True)
class Request:
    """The first message of dom0."""

    role: Role
    ways: tuple[Way, ...]

    def __str__(self) -> str:
        head = f"version={limits.PROTOCOL_VERSION} ways={len(self.ways)} role={self.role.value}\n"
        return head + "".join(f"{way}\n" for way in self.ways)

    @staticmethod
    def parse_head(text: str) -> tuple[Role, int]:
        """Read the first line: the role, and how many lines follow. Raises RefusedError."""
        names = ("version", "ways", "role")
        words = parse_words(text, names, names)
        if words["version"] != str(limits.PROTOCOL_VERSION) or words["role"] not in list(Role):
            raise RefusedError(f"{shown(text)} is not a request")
        return Role(words["role"]), _count(words["ways"])


@dataclass(frozen=True, slots=True)
class Sight:
    """What a hop finds out about one way without sending a packet.

    base: the base firewall of this family stands. rule: ours stands in its custom chain, behind `before` others. door:
    the port is open in our table. forwarding: the kernel forwards. route: for a relay. listening: at the target.
    """

    client: IPAddress | None
    base: bool
    rule: bool
    before: int
    door: bool
    route: RouteWord | None
    forwarding: bool
    listening: str | None

    def __str__(self) -> str:
        words = ((field.name, getattr(self, field.name)) for field in fields(self))
        return " ".join(f"{name}={_word(value)}" for name, value in words)

    @classmethod
    def parse(cls, untrusted_text: str) -> Self:
        """Read it in dom0; raises RefusedError."""
        names = tuple(field.name for field in fields(cls))
        words = parse_words(untrusted_text, names, names)
        if words["route"] not in (_NONE, *RouteWord) or words["listening"] not in (_NONE, "yes", "no", "local"):
            raise RefusedError(f"{shown(untrusted_text)} is not what a hop sees")
        return cls(
            client=None if words["client"] == _NONE else parse_address(words["client"]),
            base=_yes(words["base"]),
            rule=_yes(words["rule"]),
            before=parse_number(words["before"]),
            door=_yes(words["door"]),
            route=None if words["route"] == _NONE else RouteWord(words["route"]),
            forwarding=_yes(words["forwarding"]),
            listening=None if words["listening"] == _NONE else words["listening"],
        )


@dataclass(frozen=True, slots=True)
class Count:
    """How often the probe was counted at each place of one hop, in the order in which it passes them.

    arrived: came in; local: was for the hop itself, delivered: and no rule of the hop dropped it; passing: was to be
    handed on, left: and no rule dropped it. back: an answer came to this hop (or was made here), returned: and left it.
    """

    answer: Answer = Answer.NONE
    arrived: int = 0
    local: int = 0
    delivered: int = 0
    passing: int = 0
    left: int = 0
    back: int = 0
    returned: int = 0

    def __str__(self) -> str:
        return " ".join(f"{field.name}={_word(getattr(self, field.name))}" for field in fields(self))

    @classmethod
    def parse(cls, untrusted_text: str) -> Self:
        """Read it in dom0; raises RefusedError."""
        names = tuple(field.name for field in fields(cls))
        words = parse_words(untrusted_text, names, names)
        answer = words.pop("answer")
        if answer not in list(Answer):
            raise RefusedError(f"{shown(answer)} is not an answer")
        return cls(Answer(answer), **{name: parse_number(word) for name, word in words.items()})


def head_of(ways: int, *, agent: bool) -> str:
    """The first line of a hop's answer."""
    return f"version={limits.PROTOCOL_VERSION} ways={ways} agent={_word(agent)}"


def parse_head(untrusted_text: str, ways: int) -> bool:
    """Whether the hop's agent runs; raises RefusedError."""
    names = ("version", "ways", "agent")
    words = parse_words(untrusted_text, names, names)
    if words["version"] != str(limits.PROTOCOL_VERSION) or words["ways"] != str(ways):
        raise RefusedError(f"{shown(untrusted_text)} is not the answer to {ways} ways")
    return _yes(words["agent"])


def parse_keyed(untrusted_text: str) -> tuple[str, str]:
    """The entry key at the beginning of a line, and the rest; raises RefusedError."""
    untrusted_key, _, rest = untrusted_text.partition(" ")
    return parse_key(untrusted_key), rest


def parse_single(untrusted_text: str, name: str) -> str:
    """The value of a line that is one word NAME=VALUE; raises RefusedError."""
    return parse_words(untrusted_text, (name,), (name,))[name]


def _count(text: str) -> int:
    number = parse_number(text)
    if not 1 <= number <= WAYS_MAX:
        raise RefusedError(f"{number} is not a number of ways")
    return number


def _yes(word: str) -> bool:
    if word not in _YES_NO:
        raise RefusedError(f"{shown(word)} is neither yes nor no")
    return _YES_NO[word]


def _word(value: object) -> str:
    if value is None:
        return _NONE
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value.value if isinstance(value, enum.Enum) else str(value)
