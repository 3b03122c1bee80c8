# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The lines of Set+forward.check: what the diagnosis found at each hop. Pure text.

hop=QUBE check=WORD result=ok|bad|hint|unknown [text=free text to the end of the line]      (cause= for check= too)
verdict=open | verdict=QUBE:WORD
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from portfwd.api.words import CheckResult
from portfwd.wire.errors import RefusedError, shown
from portfwd.wire.values import QubeName

_WORD = re.compile(r"[a-z0-9-]{1,40}")
_OPEN = "open"


@dataclass(frozen=True, slots=True)
class Finding:
    """One look at one hop, and the sentence for the user."""

    hop: QubeName
    check: str
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


def parse_check(text: str) -> Diagnosis:
    """Read the answer. Raises RefusedError."""
    found: list[Finding] = []
    verdict = ""
    for line in text.splitlines():
        if line.startswith("verdict="):
            verdict = line.removeprefix("verdict=")
        else:
            found.append(_finding(line))
    if not text:
        raise RefusedError("the check has no result")
    fault = _fault(found, verdict)
    return Diagnosis(tuple(found), fault, False if fault is not None else True if verdict == _OPEN else None)


def outcome(diagnosis: Diagnosis) -> str:
    """The last word of a check, in a sentence."""
    fault = diagnosis.fault
    if fault is not None:
        return f"{fault.hop} is where it ends ({fault.check})."
    return "No fault was found." if diagnosis.opens else "Whether packets pass could not be found out."


def _fault(found: Sequence[Finding], verdict: str) -> Finding | None:
    bad = [finding for finding in found if finding.result is CheckResult.BAD]
    if not verdict:
        return bad[0] if bad else None
    if verdict == _OPEN:
        return None
    hop, _, word = verdict.partition(":")
    if not _WORD.fullmatch(word):
        raise RefusedError(f"{shown(verdict)} is not a verdict")
    same = [finding for finding in found if (finding.hop, finding.check) == (hop, word)]
    return same[0] if same else Finding(QubeName(hop), word, CheckResult.BAD, "")


def _finding(line: str) -> Finding:
    head, _, text = line.partition(" text=")
    words = dict(word.partition("=")[::2] for word in head.split(" "))
    check = words.get("check", words.get("cause", ""))
    known = {"hop", "result", "check" if "check" in words else "cause"}
    if set(words) != known or not _WORD.fullmatch(check) or words["result"] not in list(CheckResult):
        raise RefusedError(f"{shown(line)} is not a line of a check")
    return Finding(QubeName(words["hop"]), check, CheckResult(words["result"]), text)
