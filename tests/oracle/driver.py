# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""What the oracle is held against: one interface, a machine on fakes (fakes.py) and the laboratory (house.py)."""

import enum
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

from tests.oracle.rules import Client, Doors, Forged, Home, Qube, Way


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


EVENTS = frozenset({"arm", "die", "reboot", "tunnel", "disposable", "detach"})
"""What not every driver can do."""


class Refused(Exception):  # noqa: N818 - an answer, not a failure
    """The Admin API refused the change."""


class Driver(Protocol):
    """A computer with qubes in which things happen. Every method returns before its consequences have settled."""

    ports: tuple[int, ...]
    """The ports at which clients knock."""

    targets: tuple[int, ...]
    """The ports at which every qube listens. Where the product knows who listens, others than those at entrances."""

    mischiefs: tuple[Mischief, ...]
    """What somebody else may do here."""

    can: frozenset[str]
    """What else can happen here: words of EVENTS."""

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

    def set_default(self, netvm: str, followers: list[str]) -> None:
        """Make this the net qube of all who have the default one; who they are."""

    def follow_default(self, qube: str, netvm: str) -> None:
        """Let a qube have the default net qube, which is this one."""

    def ipv6_of(self, home: Home) -> list[str]:
        """The qubes whose IPv6 can be switched at the moment."""

    def set_ipv6(self, qube: str, on: bool) -> None:
        """Give a qube its IPv6 address, or take it."""

    def set_fake_address(self, qube: str, on: bool) -> None:
        """Let a halted qube see another IPv4 address than its net qube does."""

    def set_provides(self, qube: str, provides: bool) -> None:
        """Make a net qube of a halted qube, or the contrary."""

    def set_refusal(self, qube: str, refuses: bool, tor: bool) -> None:
        """Let a net qube refuse forwards, by its tag as a Tor gateway or by its feature."""

    def set_transit(self, qube: str, transit: bool) -> None:
        """Let forwards cross a VPN qube, or not."""

    def recable(self, choice: int) -> set[str]:
        """Change something about the network cards; who outside may lose connections by that."""

    def clone(self, qube: str, new: str) -> Qube:
        """Copy a qube; the copy is halted."""

    def create(self, name: str, netvm: str, address: str | None) -> Qube:
        """Make a new qube, which is halted."""

    def disposable(self, template: str) -> Qube:
        """Start a disposable."""

    def remove(self, qube: str) -> None:
        """Remove a halted qube."""

    def start(self, qube: str) -> None:
        """Start a halted qube, whose net qubes run."""

    def kill(self, qube: str) -> None:
        """End a qube at once. A disposable is gone then."""

    def shut_down(self, qube: str) -> None:
        """End a qube in good order. A disposable is gone then."""

    def pause(self, qube: str, on: bool) -> None:
        """Stop a qube's time, or let it go on."""

    def reboot(self, names: Sequence[str]) -> None:
        """End everything at once, and start these, whose net qubes stand before them."""

    def disturb(self, qube: str, mischief: Mischief) -> None:
        """Somebody else changes a qube's nftables."""

    def restart(self, fault: Fault, qube: str) -> None:
        """Kill something and have it started again; `qube` tells whose."""

    def away(self, fault: Fault, qube: str, gone: bool) -> None:
        """Stop something for a while, or start it again."""

    def install_agent(self, qube: str, installed: bool) -> None:
        """Install the agent in a running qube, or remove it; what it loaded stays until the qube ends."""

    def arm(self, qube: str, steps: int) -> None:
        """Let the agent of a qube die at that step of its next changes; it is started again."""

    def die_publishing(self, qube: str, lines: str, steps: int) -> None:
        """As set_forwards, but dom0 dies before it has written so much to QubesDB; until restart(QUBESD)."""

    def die_saving(self, qube: str, lines: str, steps: int) -> bool:
        """As set_forwards, but dom0 dies at that line of the saving; whether the rules are the new ones."""

    def set_ordinary(self, qube: str, drop: bool) -> None:
        """Replace the ordinary rules of a qube, by the stock call."""

    def reload(self, qube: str) -> None:
        """The stock call to reload the rules of a qube."""

    def may_tunnel(self, home: Home, qube: str) -> bool:
        """Whether that can be done here at the moment."""

    def set_tunnel(self, qube: str, tunnel: bool) -> None:
        """Make a VPN qube of a running net qube, or let the user say that it is none any more."""

    def may_hold(self, question: Question) -> bool:
        """Whether such a connection can be kept open here."""

    def hold(self, home: Home, question: Question) -> bool:
        """Open a TCP connection and keep it open; whether that worked."""

    def speaks(self, question: Question, patience: float) -> bool:
        """Send something over that connection; whether exactly that was answered within so many seconds."""

    def release(self, question: Question) -> None:
        """Close it."""

    def wait(self, seconds: int) -> None:
        """Let time pass."""

    def settle(self, home: Home) -> Iterator[None]:
        """Wait until everything that has happened has arrived everywhere; yields in states on the way there."""

    def forgeries(self, home: Home) -> list[Forged]:
        """Datagrams with made up sources that every machine could send at the moment; none where nobody can."""

    def forge(self, home: Home, forged: Sequence[Forged]) -> list[tuple[str, int] | None]:
        """Send them: who has heard each of them, and at which port."""

    def questions(self, home: Home) -> list[Question]:
        """Everything that can be asked at the moment."""

    def doors(self, qube: str) -> Doors:
        """What the kernel of a qube holds."""

    def ask(self, home: Home, questions: Iterable[Question]) -> dict[Question, tuple[str, int] | None]:
        """Knock: who answers, and at which port."""
