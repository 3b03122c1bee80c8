# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The agent's acknowledgement: one line for the whole set, one word per entry. Pure text; dom0 treats it as untrusted.

/qubes-port-forward-status            version=1 generation=N state=applied|incomplete|failed
/qubes-port-forward-status/RULE.F.P   a Result word
/qubes-port-forward-status/uplinks    PREFIX words, the addresses of the uplinks (outermost hop)
/qubes-port-forward-status/way-out    uplink|tunnel: how the qube's own traffic leaves
/qubes-port-forward-status/ignored    INTERFACE:WHY:WHAT words: what counts as no uplink or has no neighbours
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
"""Words; this many always fit into a QubesDB value."""
_INTERFACE = re.compile(r"[A-Za-z0-9_.@-]{1,15}")
_WHAT = re.compile(r"[A-Za-z0-9_.:/@-]{1,43}")


class WayOut(enum.StrEnum):
    """The kind of interface by which a qube's own traffic leaves: a tunnel if it is one in either family."""

    UPLINK = "uplink"
    TUNNEL = "tunnel"


class AgentState(enum.StrEnum):
    """What the agent did with the generation that it names."""

    APPLIED = "applied"
    INCOMPLETE = "incomplete"
    FAILED = "failed"


class Result(enum.StrEnum):
    """The state of one entry in the kernel."""

    OK = "ok"
    REFUSED = "refused"
    CLASH = "clash"
    OCCUPIED = "occupied"
    """The qube itself listens on a port of this relay, which stays the qube's own."""
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
    """Why an interface, or a network of an uplink, is ignored."""

    KIND = "kind"
    """It is neither a known kind of network card nor a known kind of tunnel."""
    BELOW = "below"
    """The interface below it is no network card."""
    NAME = "name"
    """Its name has characters that cannot be written in a rule."""
    NETWORK = "network"
    """The prefix of its address is too wide for neighbours, or is no network of hosts."""


@dataclass(frozen=True, slots=True, order=True)
class Ignored:
    """An interface or network that the agent ignores."""

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
    """The agent's answer to one generation."""

    generation: int
    state: AgentState

    def __str__(self) -> str:
        return f"version={limits.PROTOCOL_VERSION} generation={self.generation} state={self.state.value}"

    @classmethod
    def parse(cls, untrusted_text: str) -> Self:
        """Read it back in dom0; raises RefusedError."""
        names = ("version", "generation", "state")
        words = parse_words(untrusted_text, names, names)
        if words["version"] != str(limits.PROTOCOL_VERSION) or words["state"] not in list(AgentState):
            raise RefusedError(f"{shown(untrusted_text)} is not an acknowledgement")
        return cls(parse_number(words["generation"]), AgentState(words["state"]))
