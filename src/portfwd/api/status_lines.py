# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The lines of Get+forward.status, .plan and .hops -> how each forward fares, hop by hop. Pure text.

A line is words KEY=VALUE, each at most once; text= and comment= take the rest of the line. A line that is not so, or
contradicts another, is refused: what is shown to a user is never guessed. A newer dom0 may say more: words and lines
that are not known here are passed over, and a state that is not known here is unclear.
"""

import functools
import ipaddress
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from portfwd.api.status import (
    Fault,
    HopStatus,
    Interface,
    Listening,
    Outbound,
    RuleStatus,
    State,
    doors,
    judge,
    usable_addresses,
)
from portfwd.api.words import Doors, HopState
from portfwd.model.forward import ForwardRule, ForwardType, parse_forward
from portfwd.wire.errors import RefusedError, shown
from portfwd.wire.values import (
    Family,
    Kind,
    PortRange,
    Proto,
    QubeName,
    RuleId,
    Side,
    parse_address,
    parse_source,
)

_WAY_WORDS = ("rule", "hop", "family", "proto", "kind", "side", "listen", "source", "to", "ports", "expire")
_COUNTS = ("hits", "last", "packets", "bytes", "connections")
_HOP_WORDS = frozenset(
    (*_WAY_WORDS, *_COUNTS, "state", "listening", "reason", "sibling", "outbound", "doors", "server", "silent")
)
_STOPS = ("problem", "paused")
_UNKNOWN = ("-", "unknown")
_STATES, _HEARD, _NOT_HEARD = frozenset(HopState), frozenset(Listening), Listening.UNKNOWN
_YES_NO = {"yes": True, "no": False}
_REASON = re.compile(r"[a-z][a-z-]{0,39}")
_WORD = re.compile(r"[a-z][a-z0-9-]*")
_COUNT = re.compile(r"[0-9]{1,20}")


def parse_status(text: str) -> tuple[RuleStatus, ...]:
    """Every forward of the answer, in its order. Raises RefusedError."""
    heads: dict[tuple[QubeName, RuleId], tuple[int, ForwardRule]] = {}
    lines: dict[tuple[QubeName, RuleId], list[dict[str, str]]] = {}
    uplinks: dict[QubeName, tuple[Interface, ...]] = {}
    notes: dict[QubeName, str] = {}
    current: tuple[QubeName, RuleId] | None = None
    for line in text.splitlines():
        if line.startswith("qube="):
            current, number, rule = _head(line)
            if current in heads:
                raise RefusedError(f"{shown(line)}: this rule is told twice")
            heads[current], lines[current] = (number, rule), []
        elif line.startswith("unread="):
            # Of qubes, not of rules: parse_unread.
            continue
        elif line.startswith("entrance="):
            words = _words(line, frozenset(("entrance", "uplinks")))
            entrance_name = QubeName(words["entrance"])
            uplinks[entrance_name] = _uplinks(_need(words, "uplinks"))
            notes[entrance_name] = words.get("text", "")
        elif line.startswith("rule="):
            words = _words(line, _HOP_WORDS)
            if current is None or words.get("rule") != current[1]:
                raise RefusedError(f"{shown(line)} is not a line of the rule before it")
            lines[current].append(words)
        else:
            _words(line, frozenset())
    found = []
    for (qube, rule_id), (number, rule) in heads.items():
        told = lines[qube, rule_id]
        siblings = dict(_sibling(words) for words in told if "sibling" in words)
        stops = [words for words in told if words.get("state") in _STOPS]
        hops = tuple(_hop(words) for words in told if "kind" in words)
        judged = next((words for words in told if "doors" in words), None)
        # An older dom0 does not judge, and says of what is to be shut that it is.
        can_pass, silent = _judged(judged) if judged else (Doors.SHUT, ()) if stops else doors(hops)
        if stops:
            state, fault = _stopped(stops[0])
        elif hops:
            state, fault = judge(rule, hops)
        else:
            state, fault = State.PENDING, Fault(qube, HopState.PLANNED)
        entrance = uplinks.get(hops[0].hop, ()) if hops else ()
        note = notes.get(hops[0].hop, "") if hops else ""
        addresses = usable_addresses(rule, {hop.family for hop in hops}, entrance)
        found.append(
            RuleStatus(
                qube, number, rule_id, rule, hops, state, fault, addresses, entrance, siblings, can_pass, silent, note
            )
        )
    return tuple(found)


def parse_unread(text: str) -> dict[QubeName, str]:
    """The qubes whose forwards dom0 cannot read, and why, from the status of all. Raises RefusedError."""
    told = [
        line.removeprefix("unread=").partition(" text=") for line in text.splitlines() if line.startswith("unread=")
    ]
    return {QubeName(name): reason for name, _, reason in told}


def parse_plan(text: str, qube: QubeName, rules: Sequence[ForwardRule]) -> tuple[RuleStatus, ...]:
    """What would become of each of these rules, from the rule lines of Get+forward.plan. Raises RefusedError."""
    by_rule: dict[str, list[str]] = {f"rule={rule.id(qube)}": [] for rule in rules}
    for line in text.splitlines():
        word = line.partition(" ")[0]
        if word in by_rule:
            by_rule[word].append(line)
    heads = (f"qube={qube} rule={rule.id(qube)} number={number} {rule}" for number, rule in enumerate(rules))
    lines = [line for head, told in zip(heads, by_rule.values(), strict=True) for line in (head, *told)]
    return parse_status("\n".join(lines))


class Hop(NamedTuple):
    """A qube on the way to another; whether it has confirmed what dom0 wants of it."""

    name: QubeName
    confirmed: bool
    internal: bool
    """Whether internal forwards pass it, too, which begin at the qube's own net qube."""

    def passes(self, kind: ForwardType) -> bool:
        """Whether forwards of that kind pass it."""
        return self.internal or kind is ForwardType.EXTERNAL


def parse_hops(text: str) -> tuple[Hop, ...]:
    """The lines of Get+forward.hops. Raises RefusedError."""
    found: dict[QubeName, Hop] = {}
    for line in text.splitlines():
        words = _words(line, frozenset(("hop", "internal", "confirmed")))
        name = QubeName(_need(words, "hop"))
        if name in found or not {_need(words, "internal"), _need(words, "confirmed")} <= _YES_NO.keys():
            raise RefusedError(f"{shown(line)} does not tell whether a hop has confirmed")
        found[name] = Hop(name, confirmed=_YES_NO[words["confirmed"]], internal=_YES_NO[words["internal"]])
    return tuple(found.values())


def _head(line: str) -> tuple[tuple[QubeName, RuleId], int, ForwardRule]:
    parts = line.split(" ", 3)
    if len(parts) != 4 or not parts[1].startswith("rule=") or not parts[2].startswith("number="):
        raise RefusedError(f"{shown(line)} is not the head of a rule")
    qube, rule_id, number = QubeName(parts[0][5:]), RuleId(parts[1][5:]), parts[2][7:]
    rule = parse_forward(parts[3])
    if rule.id(qube) != rule_id or not _COUNT.fullmatch(number):
        raise RefusedError(f"{shown(line)}: number or id do not fit the rule")
    return (qube, rule_id), int(number), rule


def _words(line: str, known: frozenset[str]) -> dict[str, str]:
    line, has_text, text = line.partition(" text=")
    words: dict[str, str] = {}
    for word in line.split(" "):
        key, equals, value = word.partition("=")
        if not equals or not _WORD.fullmatch(key) or key in words:
            raise RefusedError(f"{shown(word)} is not a word of a status line")
        words[key] = value
    words = {key: value for key, value in words.items() if key in known}
    if has_text:
        words["text"] = text
    return words


def _need(words: Mapping[str, str], key: str) -> str:
    if key not in words:
        raise RefusedError(f"{shown(' '.join(words))}: {key}= is missing in a status line")
    return words[key]


def _hop(words: Mapping[str, str]) -> HopStatus:
    state, listening = _need(words, "state"), words.get("listening", "unknown")
    family, proto, kind, side = (_need(words, key) for key in ("family", "proto", "kind", "side"))
    try:
        return HopStatus(
            hop=QubeName(_need(words, "hop")),
            family=Family(int(family)),
            proto=Proto(proto),
            kind=Kind(kind),
            side=Side(side),
            listen=PortRange.parse(_need(words, "listen")),
            source=_source(_need(words, "source")),
            to=_address(words["to"]) if "to" in words else None,
            ports=PortRange.parse(words["ports"]) if "ports" in words else None,
            expire=_count(words, "expire"),
            state=HopState(state) if state in _STATES or not _REASON.fullmatch(state) else HopState.UNCLEAR,
            listening=Listening(listening) if not _REASON.fullmatch(listening) or listening in _HEARD else _NOT_HEARD,
            hits=_count(words, "hits"),
            last=_count(words, "last"),
            packets=_count(words, "packets"),
            bytes=_count(words, "bytes"),
            connections=_count(words, "connections"),
        )
    except RefusedError:
        raise
    except ValueError as error:
        raise RefusedError(f"a status line has a wrong word: {shown(error)}") from None


def _judged(words: Mapping[str, str]) -> tuple[Doors, tuple[QubeName, ...]]:
    silent = tuple(QubeName(name) for name in words["silent"].split(",")) if "silent" in words else ()
    try:
        return Doors(words["doors"]), silent
    except ValueError:
        raise RefusedError(f"doors={shown(words['doors'])} is not known") from None


def _sibling(words: Mapping[str, str]) -> tuple[QubeName, Outbound]:
    try:
        return QubeName(words["sibling"]), Outbound(_need(words, "outbound"))
    except RefusedError:
        raise
    except ValueError as error:
        raise RefusedError(f"a status line has a wrong word: {shown(error)}") from None


_source = functools.lru_cache(maxsize=1024)(parse_source)
_address = functools.lru_cache(maxsize=1024)(parse_address)


def _count(words: Mapping[str, str], key: str) -> int | None:
    text = words.get(key, "-")
    if text in _UNKNOWN:
        return None
    if not _COUNT.fullmatch(text):
        raise RefusedError(f"{shown(f'{key}={text}')} is not a number")
    return int(text)


def _uplinks(text: str) -> tuple[Interface, ...]:
    if text in _UNKNOWN:
        return ()
    try:
        return tuple(ipaddress.ip_interface(word) for word in text.split(","))
    except ValueError:
        raise RefusedError(f"{shown(text)} are not addresses of uplinks") from None


def _stopped(words: Mapping[str, str]) -> tuple[State, Fault | None]:
    if words["state"] == "paused":
        return State.PAUSED, None
    reason = _need(words, "reason")
    if not _REASON.fullmatch(reason):
        raise RefusedError(f"{shown(reason)} is not a reason")
    return State.PROBLEM, Fault(QubeName(_need(words, "hop")), reason, words.get("text", ""))
