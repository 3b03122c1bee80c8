# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""What an agent says back: one line for the whole, one word per entry. Pure text; dom0 treats it as untrusted.

/qubes-port-forward-status            version=1 generation=N state=applied|incomplete|failed
/qubes-port-forward-status/RULE.F.P   a Result word
/qubes-port-forward-status/uplinks    PREFIX words, the addresses of the uplinks (outermost hop)
/qubes-port-forward-status/way-out    uplink|tunnel, by which what the qube sends to the world leaves
/qubes-port-forward-status/ignored    INTERFACE:WHY:WHAT words, what the agent takes for no uplink or no neighbours
"""

import enum
import re
from dataclasses import dataclass
from typing import NewType, Self

from portfwd.wire import limits
from portfwd.wire.entry import parse_number, parse_words
from portfwd.wire.errors import RefusedError, shown

UPLINKS = "uplinks"
WAY_OUT = "way-out"
IGNORED = "ignored"
IGNORED_MAX = 32
"""Words; so many are sure to fit into a value of QubesDB."""
_INTERFACE = re.compile(r"[A-Za-z0-9_.@-]{1,15}")
_WHAT = re.compile(r"[A-Za-z0-9_.:/@-]{1,43}")


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
    NO_ROUTE = "no-route"
    """A relay that stands in the kernel, while there is no interface to the qube that it leads to."""
    NOT_FORWARDING = "not-forwarding"
    """A relay that stands in the kernel, while the qube forwards no packets of its family."""
    FAILED = "failed"


IN_KERNEL = frozenset((Result.OK, Result.NO_ROUTE, Result.NOT_FORWARDING))
"""What says that an entry is in the kernel: it opens there as soon as nothing else is in its way."""

InterfaceName = NewType("InterfaceName", str)
What = NewType("What", str)
"""The kind of an interface, the name of the one below it, or a prefix."""


class Why(enum.StrEnum):
    """Why an interface, or a network of an uplink, counts for nothing."""

    KIND = "kind"
    """It is neither a known kind of network card nor a known kind of tunnel."""
    BELOW = "below"
    """It stands on an interface that is no network card."""
    NAME = "name"
    """Its name has characters that cannot be written in a rule."""
    NETWORK = "network"
    """The prefix of its address is too wide for neighbours, or not one of hosts."""


@dataclass(frozen=True, slots=True, order=True)
class Ignored:
    """What the agent leaves out of account."""

    interface: InterfaceName
    why: Why
    what: What

    def __str__(self) -> str:
        return f"{self.interface}:{self.why.value}:{self.what}"

    @classmethod
    def parse(cls, untrusted_text: str) -> Self:
        """Read it back in dom0; raises RefusedError."""
        interface, _, rest = untrusted_text.partition(":")
        why, _, what = rest.partition(":")
        if not _INTERFACE.fullmatch(interface) or why not in list(Why) or not _WHAT.fullmatch(what):
            raise RefusedError(f"{shown(untrusted_text)} does not say what is left out of account")
        return cls(InterfaceName(interface), Why(why), What(what))


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
