# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""What an agent says back: one line for the whole, one word per entry. Pure text; dom0 treats it as untrusted.

/qubes-port-forward-status            version=1 generation=N state=applied|incomplete|failed
/qubes-port-forward-status/RULE.F.P   a Result word
/qubes-port-forward-status/uplinks    PREFIX words, the addresses of the uplinks (outermost hop)
/qubes-port-forward-status/way-out    uplink|tunnel, by which what the qube sends to the world leaves
"""

import enum
from dataclasses import dataclass
from typing import Self

from portfwd.wire import limits
from portfwd.wire.entry import parse_number, parse_words
from portfwd.wire.errors import RefusedError, shown

UPLINKS = "uplinks"
WAY_OUT = "way-out"


class WayOut(enum.StrEnum):
    """By which kind of interface a qube's traffic to the world leaves: tunnel if it does so in any family."""

    UPLINK = "uplink"
    TUNNEL = "tunnel"


class State(enum.StrEnum):
    """How the agent stands to the generation that it names."""

    APPLIED = "applied"
    INCOMPLETE = "incomplete"
    FAILED = "failed"


class Result(enum.StrEnum):
    """How one entry stands in the kernel."""

    OK = "ok"
    REFUSED = "refused"
    CLASH = "clash"
    OCCUPIED = "occupied"
    """A relay whose port the qube itself listens on: it stays the qube's own."""
    EXPIRED = "expired"
    UNRESOLVED = "unresolved"
    NO_BASE = "no-base-firewall"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """The agent's word on one generation."""

    generation: int
    state: State

    def __str__(self) -> str:
        return f"version={limits.PROTOCOL_VERSION} generation={self.generation} state={self.state.value}"

    @classmethod
    def parse(cls, untrusted_text: str) -> Self:
        """Read it back in dom0; raises RefusedError."""
        names = ("version", "generation", "state")
        words = parse_words(untrusted_text, names, names)
        if words["version"] != str(limits.PROTOCOL_VERSION) or words["state"] not in list(State):
            raise RefusedError(f"{shown(untrusted_text)} is not an acknowledgement")
        return cls(parse_number(words["generation"]), State(words["state"]))
