# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The nft elements that an agent would load for candidate entries, which may never be written. Pure text.

qrexec service qubes.PortForwardStatus+plan takes a line for each entry, as they would stand in QubesDB, up to the end
of the input:

    RULE.FAMILY.PROTO kind=relay side=uplink ...

and gives

    version=1 elements=COUNT more=N
    ip|ip6 SET { KEY [timeout T] [comment "RULES"] [: WHAT] }      COUNT lines; N more are not listed

Whoever reads such a text treats every byte as untrusted.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from portfwd.wire import limits
from portfwd.wire.answers.report import read_lines
from portfwd.wire.entry import Entry, parse_number
from portfwd.wire.errors import RefusedError, shown

_HEAD = ("version", "elements", "more")
_ELEMENT = re.compile(r"ip6? [a-z][a-z-]{0,30} \{ [0-9A-Za-z.:/@_\" -]+ \}")


def format_request(entries: Iterable[Entry]) -> str:
    """What dom0 sends."""
    return "".join(f"{entry.key} {entry.value}\n" for entry in entries)


def parse_request(untrusted: bytes) -> list[Entry]:
    """What the agent reads; raises RefusedError."""
    if len(untrusted) > limits.REPORT_MAX:
        raise RefusedError(f"a request has at most {limits.REPORT_MAX} bytes")
    lines = untrusted.decode("ascii", "replace").split("\n")
    if lines.pop() != "" or len(lines) > limits.REPORT_LINES_MAX:
        raise RefusedError("a request ends with a whole line, and has not too many")
    found = {entry.key: entry for entry in (_parse_entry(line) for line in lines)}
    if len(found) != len(lines):
        raise RefusedError("a request names an entry twice")
    return list(found.values())


def _parse_entry(untrusted_line: str) -> Entry:
    untrusted_key, _, untrusted_value = untrusted_line.partition(" ")
    return Entry.decode(untrusted_key, untrusted_value)


@dataclass(frozen=True, slots=True)
class Preview:
    """Texts of elements, each `FAMILY SET { ELEMENT }`; `more` counts those that are not listed."""

    elements: tuple[str, ...]
    more: int = 0

    def __str__(self) -> str:
        listed = [text for text in self.elements if _is_element(text)][: limits.REPORT_LINES_MAX]
        total, kept = 0, 0
        # Leaves room for the first line.
        while kept < len(listed) and total + len(listed[kept]) < limits.REPORT_MAX - 100:
            total += len(listed[kept]) + 1
            kept += 1
        more = self.more + len(self.elements) - kept
        lines = "".join(f"{text}\n" for text in listed[:kept])
        return f"version={limits.PROTOCOL_VERSION} elements={kept} more={more}\n{lines}"

    @classmethod
    def parse(cls, untrusted: bytes) -> Self:
        """Read it in dom0; raises RefusedError."""
        words, lines = read_lines(untrusted, _HEAD)
        if parse_number(words["elements"]) != len(lines) or len(lines) > limits.REPORT_LINES_MAX:
            raise RefusedError(f"elements={shown(words['elements'])} does not match the lines")
        for line in lines:
            if not _is_element(line):
                raise RefusedError(f"{shown(line)} is not an element")
        return cls(tuple(lines), parse_number(words["more"]))


def _is_element(text: str) -> bool:
    return len(text) <= limits.ELEMENT_MAX and _ELEMENT.fullmatch(text) is not None
