# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The answer of Get+forward.status: the state of each forward, hop by hop. Words, printer and parser; no I/O.

    qube=QUBE rule=ID number=N action=forward ...
    rule=ID hop=QUBE family=4 proto=tcp kind=relay side=uplink ... state=applied [hits=N last=SECONDS]
    rule=ID hop=QUBE family=4 proto=tcp kind=accept ... state=applied listening=WORD packets=N bytes=N connections=N
    rule=ID hop=QUBE state=problem reason=WORD text=SENTENCE
    rule=ID hop=QUBE state=paused
    rule=ID doors=open|shut|unknown server=yes|no|local|unknown [silent=QUBE,...]
    rule=ID sibling=QUBE outbound=refused|partly|unknown
    entrance=QUBE uplinks=ADDRESS/BITS,...|- [text=SENTENCE]
    unread=QUBE text=SENTENCE

The lines of a rule follow its head; hops stand in the order from the entrance to the qube. Entrances, and qubes whose
forwards cannot be read, follow after all rules. Values that a qube reports are printed anew, as numbers, addresses and
words of ours.
"""

import enum
import functools
import ipaddress
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from portfwd.api.lines import (
    UNKNOWN,
    NewWord,
    choice,
    choice_or_new,
    count,
    join,
    lines_of,
    need,
    number,
    split,
    text_of,
)
from portfwd.model.forward import ForwardRule, parse_forward
from portfwd.wire.answers.report import Listening
from portfwd.wire.entry import KINDS, Accept, Entry, parse_number
from portfwd.wire.errors import RefusedError, shown
from portfwd.wire.values import QubeName, RuleId, Side

Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface
_ENTRY_WORDS = ("kind", "side", "listen", "source", "to", "ports", "expire")
_PROBLEM, _PAUSED = "problem", "paused"
_NOT_TOLD = "unknown"


class HopState(enum.StrEnum):
    """How far one entry has come at its hop, by dom0's own knowledge or by the agent's word."""

    PLANNED = "planned"
    """Not in the qube's QubesDB yet."""
    WRITTEN = "written"
    """The qube has not acknowledged yet."""
    APPLIED = "applied"
    INCOMPLETE = "incomplete"
    UNCLEAR = "unclear"
    REFUSED = "refused"
    CLASH = "clash"
    OCCUPIED = "occupied"
    EXPIRED = "expired"
    UNRESOLVED = "unresolved"
    NO_BASE = "no-base-firewall"
    NO_ROUTE = "no-route"
    """In the kernel, but there is no interface to the next qube yet."""
    NOT_FORWARDING = "not-forwarding"
    FAILED = "failed"
    RESTART = "restart-needed"
    """Applied, but the qube still has the address of its start."""
    UNKNOWN = "unknown"
    """It was open, and may be so still: the qube, or its QubesDB, has not answered since."""


NOT_KNOWN = frozenset(
    (HopState.PLANNED, HopState.WRITTEN, HopState.INCOMPLETE, HopState.UNCLEAR, HopState.FAILED, HopState.UNKNOWN)
)
"""States that do not tell whether the entry is in the kernel: its qube has to answer first."""
_YES = {HopState.APPLIED}
NO_WAY = frozenset((HopState.NO_ROUTE, HopState.NOT_FORWARDING))
"""In a kernel that lets clients pass as soon as the way is there, before any agent tells of it."""


class Doors(enum.StrEnum):
    """Whether clients can pass all hops of a forward; open and shut only on evidence."""

    OPEN = "open"
    SHUT = "shut"
    UNKNOWN = "unknown"


class Outbound(enum.StrEnum):
    """What a sibling's own ordinary rules make of its packets to an internal forward."""

    OPEN = "open"
    """Nothing is refused; no sibling line has this word."""
    REFUSED = "refused"
    PARTLY = "partly"
    """Refused for some of the forward's ports, protocols or IP versions."""
    UNKNOWN = "unknown"
    """The deciding rule has a host name or is for the name servers, whose addresses dom0 does not know."""


class ProblemKind(enum.StrEnum):
    """The reason why a forward opens nothing, whatever its qubes report."""

    NO_NET_QUBE = "no-net-qube"
    OUTERMOST = "outermost"
    HALTED = "halted"
    NO_AGENT = "no-agent"
    TOR_GATEWAY = "tor-gateway"
    DENIED = "denied"
    VPN = "vpn"
    WAY_UNKNOWN = "way-unknown"
    NO_ADDRESS = "no-address"
    NO_CLIENTS = "no-clients"
    CONFLICT = "conflict"
    TOO_WIDE = "too-wide"
    TOO_MANY = "too-many"


@dataclass(frozen=True, slots=True)
class HopStatus:
    """One entry at one hop. Counts are None where the qube has not reported them; `last` is in seconds.

    Only an entrance reports `hits` and `last`, only a target the others.
    """

    hop: QubeName
    entry: Entry
    state: HopState
    listening: Listening | None = None
    hits: int | None = None
    last: int | None = None
    packets: int | None = None
    bytes: int | None = None
    connections: int | None = None


@dataclass(frozen=True, slots=True)
class Obstacle:
    """The reason why a forward is shut at one hop, by dom0's own knowledge: a word and a sentence."""

    hop: QubeName
    kind: ProblemKind | NewWord
    text: str


@dataclass(frozen=True, slots=True)
class PathStatus:
    """A forward hop by hop; or the qube where it is paused; or the obstacle that keeps it shut.

    `passed_over`: hops with an entry of a newer dom0 that is not understood here.
    """

    hops: tuple[HopStatus, ...] = ()
    obstacle: Obstacle | None = None
    paused: QubeName | None = None
    passed_over: tuple[QubeName, ...] = ()


@dataclass(frozen=True, slots=True)
class ForwardStatus:
    """One forward. `doors` and `server` are dom0's judgement on all its hops, which an older dom0 does not give.

    `silent`: qubes whose answer is missing to know whether it is open. `siblings`: qubes behind the same net qube whose
    ordinary rules may keep them from an internal forward.
    """

    qube: QubeName
    id: RuleId
    number: int
    rule: ForwardRule
    path: PathStatus = PathStatus()
    doors: Doors | None = None
    server: Listening | None = None
    silent: tuple[QubeName, ...] = ()
    siblings: Mapping[QubeName, Outbound] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Entrance:
    """The reported addresses of an entrance's uplinks; `text` says what its agent ignores, or ''."""

    uplinks: tuple[Interface, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class Status:
    """The whole answer. `unread`: the qubes whose forwards cannot be read, and why; none of these is open."""

    forwards: tuple[ForwardStatus, ...] = ()
    entrances: Mapping[QubeName, Entrance] = field(default_factory=dict)
    unread: Mapping[QubeName, str] = field(default_factory=dict)


def doors_of(states: Iterable[tuple[Hashable, HopState]]) -> Doors:
    """The doors of a forward, by the state of each entry and the way (family, protocol) that it is for.

    One open way makes it open; a way whose hops have all answered, not all with yes, is shut.
    """
    ways: dict[Hashable, set[HopState]] = {}
    for way, state in states:
        ways.setdefault(way, set()).add(state)
    found = {
        Doors.OPEN if said == _YES else Doors.SHUT if said - NOT_KNOWN - NO_WAY - _YES else Doors.UNKNOWN
        for said in ways.values()
    }
    return next((doors for doors in (Doors.OPEN, Doors.UNKNOWN, Doors.SHUT) if doors in found), Doors.UNKNOWN)


def format_status(status: Status) -> str:
    """The text of the answer."""
    return text_of(_lines(status))


def _lines(status: Status) -> Iterator[str]:
    for forward in status.forwards:
        yield f"qube={forward.qube} rule={forward.id} number={forward.number} {forward.rule}"
        yield from path_lines(forward.id, forward.path, told=True)
        if forward.doors is not None:
            words = {"rule": forward.id, "doors": forward.doors, "server": _listening(forward.server)}
            yield join({**words, "silent": ",".join(forward.silent) or None})
        yield from (join({"rule": forward.id, "sibling": n, "outbound": w}) for n, w in forward.siblings.items())
    for name, entrance in status.entrances.items():
        uplinks = ",".join(map(str, entrance.uplinks)) or UNKNOWN
        yield join({"entrance": name, "uplinks": uplinks, "text": entrance.note or None})
    yield from (join({"unread": name, "text": text}) for name, text in status.unread.items())


def path_lines(rule: RuleId, path: PathStatus, *, told: bool) -> Iterator[str]:
    """The lines of one rule's hops; `told`: with the values that the hops report."""
    if path.paused is not None:
        yield join({"rule": rule, "hop": path.paused, "state": _PAUSED})
    if (obstacle := path.obstacle) is not None:
        yield join(
            {"rule": rule, "hop": obstacle.hop, "state": _PROBLEM, "reason": obstacle.kind, "text": obstacle.text}
        )
    for hop in path.hops:
        way = f"rule={rule} hop={hop.hop} family={int(hop.entry.family)} proto={hop.entry.proto} {hop.entry.value}"
        yield f"{way} state={hop.state}" + (_told(hop, hop.hop == path.hops[0].hop) if told else "")


def _told(hop: HopStatus, at_entrance: bool) -> str:
    if isinstance(hop.entry, Accept):
        counts = f"packets={number(hop.packets)} bytes={number(hop.bytes)} connections={number(hop.connections)}"
        return f" listening={_listening(hop.listening)} {counts}"
    return f" hits={number(hop.hits)} last={number(hop.last)}" if at_entrance else ""


def _listening(listening: Listening | None) -> str:
    return _NOT_TOLD if listening is None else listening.value


def parse_status(text: str) -> Status:
    """The inverse of format_status. Raises RefusedError."""
    heads: dict[tuple[QubeName, RuleId], tuple[int, ForwardRule]] = {}
    told: dict[tuple[QubeName, RuleId], list[dict[str, str]]] = {}
    entrances: dict[QubeName, Entrance] = {}
    unread: dict[QubeName, str] = {}
    current: tuple[QubeName, RuleId] | None = None
    for line in lines_of(text):
        words = split(line)
        if line.startswith("qube="):
            current, head = _head(line, words)
            if current in heads:
                raise RefusedError(f"{shown(line)}: this rule is told twice")
            heads[current], told[current] = head, []
        elif line.startswith("rule="):
            if current is None or words["rule"] != current[1]:
                raise RefusedError(f"{shown(line)} is not a line of the rule before it")
            told[current].append(words)
        elif line.startswith("entrance="):
            uplinks = _uplinks(need(words, "uplinks"))
            entrances[QubeName(words["entrance"])] = Entrance(uplinks, words.get("text", ""))
        elif line.startswith("unread="):
            unread[QubeName(words["unread"])] = words.get("text", "")
    forwards = (_forward(qube, rule, *heads[qube, rule], told[qube, rule]) for qube, rule in heads)
    return Status(tuple(forwards), entrances, unread)


def _head(line: str, words: Mapping[str, str]) -> tuple[tuple[QubeName, RuleId], tuple[int, ForwardRule]]:
    rule = parse_forward(f"action={need(words, 'action')}", newer=True)
    qube, rule_id = QubeName(words["qube"]), RuleId(need(words, "rule"))
    # Unknown words of a newer dom0 are no part of the id.
    if rule.id(qube) != rule_id:
        raise RefusedError(f"{shown(line)}: the id does not fit the rule")
    return (qube, rule_id), (parse_number(need(words, "number")), rule)


def _forward(
    qube: QubeName, rule_id: RuleId, place: int, rule: ForwardRule, told: Iterable[Mapping[str, str]]
) -> ForwardStatus:
    doors: Doors | None = None
    server: Listening | None = None
    silent: tuple[QubeName, ...] = ()
    siblings: dict[QubeName, Outbound] = {}
    hops = []
    for words in told:
        if "hop" in words:
            hops.append(words)
        elif "doors" in words:
            doors, server = choice(Doors, words["doors"], Doors.UNKNOWN), _heard(words.get("server", _NOT_TOLD))
            silent = tuple(map(QubeName, words["silent"].split(","))) if "silent" in words else ()
        elif "sibling" in words:
            siblings[QubeName(words["sibling"])] = choice(Outbound, need(words, "outbound"), Outbound.UNKNOWN)
    return ForwardStatus(qube, rule_id, place, rule, parse_path(hops), doors, server, silent, siblings)


def parse_path(told: Iterable[Mapping[str, str]]) -> PathStatus:
    """Read the lines with hop= of one rule. Raises RefusedError."""
    hops: list[HopStatus] = []
    obstacle: Obstacle | None = None
    paused: QubeName | None = None
    passed_over: dict[QubeName, None] = {}
    for words in told:
        name, state = QubeName(words["hop"]), need(words, "state")
        if "kind" in words:
            found = _hop(name, state, words)
            hops += [] if found is None else [found]
            passed_over |= {name: None} if found is None else {}
        elif state == _PROBLEM:
            kind = choice_or_new(ProblemKind, need(words, "reason"))
            obstacle = obstacle or Obstacle(name, kind, words.get("text", ""))
        elif state == _PAUSED:
            paused = name
        else:
            passed_over[name] = None
    return PathStatus(tuple(hops), obstacle, paused, tuple(passed_over))


def _hop(name: QubeName, state: str, words: Mapping[str, str]) -> HopStatus | None:
    """The entry of a line; None when its kind is unknown here."""
    if words["kind"] not in KINDS or need(words, "side") not in list(Side):
        return None
    return HopStatus(
        hop=name,
        entry=_entry(
            f"{words['rule']}.{need(words, 'family')}.{need(words, 'proto')}",
            join({key: words[key] for key in _ENTRY_WORDS if key in words}),
        ),
        state=choice(HopState, state, HopState.UNCLEAR),
        listening=_heard(words.get("listening", _NOT_TOLD)),
        hits=count(words, "hits"),
        last=count(words, "last"),
        packets=count(words, "packets"),
        bytes=count(words, "bytes"),
        connections=count(words, "connections"),
    )


@functools.lru_cache(maxsize=1 << 15)
def _entry(key: str, value: str) -> Entry:
    """Entry.decode with a cache: windows look every two seconds, and most entries are unchanged."""
    return Entry.decode(key, value)


def _heard(text: str) -> Listening | None:
    found = choice_or_new(Listening, text)
    return found if isinstance(found, Listening) else None


def _uplinks(text: str) -> tuple[Interface, ...]:
    if text == UNKNOWN:
        return ()
    try:
        return tuple(ipaddress.ip_interface(word) for word in text.split(","))
    except ValueError:
        raise RefusedError(f"{shown(text)} are not addresses of uplinks") from None
