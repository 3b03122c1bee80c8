# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The payload and the answer of Set+forward.check: words, printers and parsers. No I/O.

    rule=ID [client=ADDRESS]

    hop=QUBE result=ok|bad|hint|unknown cause=WORD text=SENTENCE
    verdict=open | verdict=QUBE:CAUSE

Hops stand in the order from the entrance to the qube. The first bad line is the verdict; it is left out where neither
is certain.
"""

import enum
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Self

from portfwd.api.lines import NewWord, choice, choice_or_new, join, lines_of, need, split, text_of
from portfwd.wire.entry import parse_words
from portfwd.wire.errors import RefusedError, shown
from portfwd.wire.values import IPAddress, QubeName, RuleId, parse_address

_OPEN = "open"
_PAYLOAD_MAX = 128
"""Characters."""


class CheckResult(enum.StrEnum):
    """The outcome of one look of the diagnosis. A hint is no fault of any hop."""

    OK = "ok"
    BAD = "bad"
    HINT = "hint"
    UNKNOWN = "unknown"


class Cause(enum.StrEnum):
    """A finding in one word."""

    PASSED = "passed"
    # The rule itself.
    GONE = "gone"
    EXPIRED = "expired"
    PAUSED = "paused"
    # The planner's problems, in the same words.
    NO_NET_QUBE = "no-net-qube"
    HALTED = "halted"
    NO_AGENT = "no-agent"
    TOR_GATEWAY = "tor-gateway"
    DENIED = "denied"
    VPN = "vpn"
    WAY_UNKNOWN = "way-unknown"
    NO_ADDRESS = "no-address"
    NO_CLIENTS = "no-clients"
    OUTERMOST = "outermost"
    CONFLICT = "conflict"
    TOO_WIDE = "too-wide"
    TOO_MANY = "too-many"
    # How far the entries have come.
    NOT_WRITTEN = "not-written"
    NOT_ACKNOWLEDGED = "not-acknowledged"
    UNCLEAR = "unclear"
    RESTART_NEEDED = "restart-needed"
    HALF_SET = "incomplete"
    FAILED = "failed"
    OLDER_AGENT = "refused"
    CLASH = "clash"
    OCCUPIED = "occupied"
    UNRESOLVED = "unresolved"
    NO_BASE = "no-base-firewall"
    # What a hop sees.
    QUBE_PAUSED = "qube-paused"
    AGENT_DEAD = "agent-dead"
    RULE_MISSING = "rule-missing"
    DOOR_MISSING = "door-missing"
    NOT_FORWARDING = "not-forwarding"
    NO_ROUTE = "no-route"
    NO_SERVER = "no-server"
    LOCAL_ONLY = "local-only"
    # Where the probe was lost.
    NO_UPLINK = "no-uplink"
    NO_CLIENT = "no-client"
    NOT_PROBED = "not-probed"
    NOT_ARRIVED = "not-arrived"
    NOT_TRANSLATED = "not-translated"
    NOT_ROUTED = "not-routed"
    NOT_FOR_IT = "not-its-address"
    DROPPED = "dropped"
    REJECTED = "rejected"
    REFUSED = "connection-refused"
    SILENT = "silent"
    ANSWER_LOST = "answer-lost"
    ANSWER_DROPPED = "answer-dropped"
    # Clients.
    WRONG_SOURCE = "wrong-source"
    NOT_A_NEIGHBOUR = "not-a-neighbour"
    SENDER_REFUSED = "sender-refused"
    PRIVATE_UPLINK = "private-uplink"
    NO_IPV6 = "no-ipv6"


@dataclass(frozen=True, slots=True)
class CheckRequest:
    """Which forward is checked; `client` is who could not connect, if that is known."""

    rule: RuleId
    client: IPAddress | None = None

    def __str__(self) -> str:
        return text_of([join({"rule": self.rule, "client": self.client})])

    @classmethod
    def parse(cls, untrusted_payload: str) -> Self:
        """Read it in dom0; unknown words are refused. Raises RefusedError."""
        untrusted_line = untrusted_payload.removesuffix("\n")
        if len(untrusted_line) > _PAYLOAD_MAX:
            raise RefusedError(f"{shown(untrusted_line)} is not rule=ID client=ADDRESS")
        words = parse_words(untrusted_line, ("rule", "client"), ("rule",))
        return cls(RuleId(words["rule"]), parse_address(words["client"]) if "client" in words else None)


@dataclass(frozen=True, slots=True)
class Finding:
    """A finding at one hop; `text` is the sentence for the user, or ''."""

    hop: QubeName
    cause: Cause | NewWord
    result: CheckResult
    text: str


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All findings, and the one that matters: None when the forward is open, or nothing certain was found.

    `opens`: whether the forward lets packets pass; None when that could not be found out.
    """

    findings: tuple[Finding, ...]
    fault: Finding | None
    opens: bool | None

    @classmethod
    def of(cls, findings: Iterable[Finding]) -> Self:
        """The first bad finding is the fault; without one it is open, unless something could not be found out."""
        found = tuple(findings)
        fault = next((finding for finding in found if finding.result is CheckResult.BAD), None)
        if fault is not None:
            return cls(found, fault, opens=False)
        return cls(found, None, None if any(f.result is CheckResult.UNKNOWN for f in found) else True)


def format_check(diagnosis: Diagnosis) -> str:
    """The text of the answer."""
    return text_of(_lines(diagnosis))


def _lines(diagnosis: Diagnosis) -> Iterator[str]:
    for one in diagnosis.findings:
        yield join({"hop": one.hop, "result": one.result, "cause": one.cause, "text": one.text})
    if diagnosis.fault is not None:
        yield f"verdict={diagnosis.fault.hop}:{diagnosis.fault.cause}"
    elif diagnosis.opens:
        yield f"verdict={_OPEN}"


def parse_check(text: str) -> Diagnosis:
    """The inverse of format_check. Raises RefusedError, also for an answer that says nothing."""
    findings: list[Finding] = []
    verdict: str | None = None
    for words in map(split, lines_of(text)):
        if "hop" in words and "result" in words:
            findings.append(
                Finding(
                    QubeName(words["hop"]),
                    choice_or_new(Cause, need(words, "cause")),
                    choice(CheckResult, words["result"], CheckResult.UNKNOWN),
                    words.get("text", ""),
                )
            )
        elif "verdict" in words:
            verdict = words["verdict"]
    if not text:
        raise RefusedError("the check has no result")
    found = Diagnosis.of(findings)
    if verdict is None:
        return replace(found, opens=None) if found.opens else found
    return replace(found, fault=None, opens=True) if verdict == _OPEN else _with_fault(found, verdict)


def _with_fault(found: Diagnosis, verdict: str) -> Diagnosis:
    hop, _, word = verdict.partition(":")
    name, cause = QubeName(hop), choice_or_new(Cause, word)
    same = [one for one in found.findings if (one.hop, one.cause) == (name, cause)]
    bad = [one for one in same if one.result is CheckResult.BAD]
    fault = next(iter(bad + same), Finding(name, cause, CheckResult.BAD, ""))
    return replace(found, fault=fault, opens=False)
