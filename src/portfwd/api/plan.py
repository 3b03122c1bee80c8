# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The answer of Get+forward.plan: what stands, or would stand, on each hop. Its printer and its parser; no I/O.

    rule=ID hop=QUBE ...                the lines of api/status.py with hop=, without what hops tell
    hop=QUBE element=ip|ip6 SET { ELEMENT }
    hop=QUBE element=... and N more
    hop=QUBE elements=unknown           its agent does not answer

The rules come first, then the nft elements that the agent of each hop would load for them. A line in place of an
element says that others are left out, so that older clients show that, too.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from portfwd.api.lines import join, lines_of, split, text_of
from portfwd.api.status import PathStatus, parse_path, path_lines
from portfwd.wire.answers.preview import Preview
from portfwd.wire.errors import RefusedError, shown
from portfwd.wire.values import QubeName, RuleId

_MORE = re.compile(r"\.\.\. and ([0-9]{1,9}) more")
_UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class PlanAnswer:
    """The whole answer. Elements are None for a hop whose agent does not answer."""

    paths: Mapping[RuleId, PathStatus] = field(default_factory=dict)
    elements: Mapping[QubeName, Preview | None] = field(default_factory=dict)


def format_plan(plan: PlanAnswer) -> str:
    """The text of the answer."""
    return text_of(_lines(plan))


def _lines(plan: PlanAnswer) -> Iterator[str]:
    for rule, path in plan.paths.items():
        yield from path_lines(rule, path, told=False)
    for hop, preview in plan.elements.items():
        if preview is None:
            yield join({"hop": hop, "elements": _UNKNOWN})
            continue
        yield from (join({"hop": hop, "element": text}) for text in preview.elements)
        if preview.more:
            yield join({"hop": hop, "element": f"... and {preview.more} more"})


def parse_plan(text: str) -> PlanAnswer:
    """The inverse of format_plan; hops that load no element are missing. Raises RefusedError."""
    told: dict[RuleId, list[dict[str, str]]] = {}
    elements: dict[QubeName, Preview | None] = {}
    for words in map(split, lines_of(text)):
        if "rule" in words and "hop" in words:
            told.setdefault(RuleId(words["rule"]), []).append(words)
        elif "element" in words and "hop" in words:
            name = QubeName(words["hop"])
            elements[name] = _with(elements.get(name) or Preview(()), words["element"])
        elif "elements" in words and "hop" in words:
            elements[QubeName(words["hop"])] = None
    return PlanAnswer({rule: parse_path(lines) for rule, lines in told.items()}, elements)


def _with(preview: Preview, text: str) -> Preview:
    if found := _MORE.fullmatch(text):
        return Preview(preview.elements, int(found[1]))
    if not text.isprintable():
        raise RefusedError(f"{shown(text)} is not an element")
    return Preview((*preview.elements, text), preview.more)
