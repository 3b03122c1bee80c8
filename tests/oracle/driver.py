# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""What the oracle is held against: one interface, a machine on fakes (fakes.py) and the laboratory (house.py)."""

import enum
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

from tests.oracle.rules import Client, Doors, Home, Way


class Question(NamedTuple):
    """A client that knocks at a port of a net qube."""

    client: str
    entrance: str
    way: Way


class Mischief(enum.StrEnum):
    """What somebody else does in a qube."""

    FLUSH_CHAINS = "flush custom chains"
    FLUSH_TABLE = "flush our table"
    DELETE_TABLE = "delete our table"
    RELOAD_BASE = "flush everything and load the base firewall"
    FLUSH_ALL = "flush everything"


class Fault(enum.StrEnum):
    """What breaks or is started anew."""

    AGENT = "agent"
    QUBESD = "qubesd"
    QUBESDB = "qubesdb"


class Refused(Exception):  # noqa: N818 - an answer, not a failure
    """The Admin API refused the change."""


class Driver(Protocol):
    """A computer with qubes in which things happen. Every method returns before its consequences have settled."""

    ports: tuple[int, ...]
    """The ports at which clients knock, and at which every qube listens."""

    mischiefs: tuple[Mischief, ...]
    """What somebody else may do here."""

    def home(self) -> Home:
        """The qubes as they are in the beginning, without rules."""

    def close(self) -> None:
        """End it, or bring it back to how it was in the beginning."""

    def clients(self, home: Home) -> list[Client]:
        """Everybody who can knock at the moment."""

    def now(self) -> int:
        """Epoch seconds."""

    def set_forwards(self, qube: str, lines: str) -> None:
        """Replace the forwards of a qube; raises Refused."""

    def set_netvm(self, qube: str, netvm: str | None) -> None:
        """Give a qube another net qube, or none."""

    def set_address(self, qube: str, address: str) -> None:
        """Give a halted qube another IPv4 address."""

    def ipv6_of(self, home: Home) -> list[str]:
        """The qubes whose IPv6 can be switched at the moment."""

    def set_ipv6(self, qube: str, address: str | None) -> None:
        """Give a qube its IPv6 address, or take it."""

    def set_refusal(self, qube: str, refuses: bool, tor: bool) -> None:
        """Let a net qube refuse forwards, by its tag as a Tor gateway or by its feature."""

    def start(self, qube: str) -> None:
        """Start a halted qube, whose net qubes run."""

    def kill(self, qube: str) -> None:
        """End a qube at once."""

    def disturb(self, qube: str, mischief: Mischief) -> None:
        """Somebody else changes a qube's nftables."""

    def restart(self, fault: Fault, qube: str) -> None:
        """Kill something and have it started again; `qube` tells whose."""

    def wait(self, seconds: int) -> None:
        """Let time pass."""

    def settle(self, home: Home) -> Iterator[None]:
        """Wait until everything that has happened has arrived everywhere; yields in states on the way there."""

    def questions(self, home: Home) -> list[Question]:
        """Everything that can be asked at the moment."""

    def doors(self, qube: str) -> Doors:
        """What the kernel of a qube holds."""

    def ask(self, home: Home, questions: Iterable[Question]) -> dict[Question, tuple[str, int] | None]:
        """Knock: who answers, and at which port."""
