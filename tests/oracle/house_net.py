# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Who can knock at the laboratory's house, by which network card, and connections that stay open."""

import contextlib
import itertools
import socket
from collections.abc import Iterable

from lab import probes
from lab.client import Lab
from tests.oracle.driver import Question
from tests.oracle.rules import Client, Home

NETWORKS = {"lan": ("192.168.1", "2001:db8:1"), "guest": ("192.168.77", "2001:db8:77")}
OUTSIDE = {"laptop": ("lan", 20), "phone": ("lan", 30), "guest": ("guest", 20)}
"""Network, and number in it."""
CARDS = {"ens6": ("lan", 10), "wls7": ("guest", 10)}
PORTS = tuple(range(1000, 1005))
TARGETS = tuple(range(1100, 1105))
"""Others than at the entrances: a port at which a net qube itself listens stays its own."""
_SHUT_PATIENCE = 0.4
_ANSWER = 30.0
"""Seconds; what is asked for here takes some tenths."""


def address(network: str, number: int) -> dict[int, str]:
    """By family."""
    v4, v6 = NETWORKS[network]
    return {4: f"{v4}.{number}", 6: f"{v6}::{number:x}"}


class Line:
    """A TCP connection in a process of its own, to a server that answers each line."""

    def __init__(self, lab: Lab, client: str, host: str, port: int) -> None:
        self._talk, theirs = socket.socketpair()
        self._talk.settimeout(_ANSWER)
        self._call = lab.start_call(client, _hold, theirs, host, port)
        theirs.close()
        self.open = self._talk.recv(100) == b"connected"

    def speaks(self, patience: float) -> bool:
        """Whether the next numbered line is answered in time."""
        self._talk.sendall(f"{patience}".encode())
        return self._talk.recv(100) == b"alive"

    def close(self) -> None:
        """End it. A word, and no end of file: processes forked later hold a copy of our descriptor."""
        with contextlib.suppress(OSError):
            self._talk.sendall(b"end")
        self._talk.close()
        self._call.wait()


class HouseNet:
    """See Driver."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.cards = dict(CARDS)
        self._lines: dict[Question, Line] = {}
        self._number = itertools.count(11)

    def clients(self, home: Home) -> list[Client]:
        """See Driver."""
        outside = [Client(name, address(*place), near=True) for name, place in OUTSIDE.items()]
        inside = [
            Client(q.name, q.addresses, qube=q.name, netvm=q.netvm)
            for q in home.qubes.values()
            if q.running and q.netvm and not q.paused
        ]
        return outside + inside

    def questions(self, home: Home) -> list[Question]:
        """See Driver."""
        found = []
        for client in self.clients(home):
            entrance = client.netvm or "sys-net"
            if not home.qubes[entrance].running or not (client.qube or self._dials(client.name)):
                continue
            # Who does not know an address of the net qube in a family cannot knock by it.
            families = home.qubes[entrance].addresses if client.qube else client.addresses
            ways = itertools.product(client.addresses.keys() & families.keys(), ("tcp", "udp"), (*PORTS, *TARGETS))
            found += [Question(client.name, entrance, way) for way in ways]
        opened = home.reached(self.clients(home))
        # A server of a VPN qube that listens at every address answers datagrams with the tunnel's, so nobody hears it.
        return [q for q in found if q.way[1] == "tcp" or q not in opened or not home.qubes[opened[q][0]].tunnel]

    def ask(self, home: Home, questions: Iterable[Question]) -> dict[Question, tuple[str, int] | None]:
        """See Driver."""
        opened = home.reached(self.clients(home))
        asked: dict[str, list[Question]] = {}
        words: dict[str, list[probes.Question]] = {}
        for question in questions:
            patience = probes.MUST_COME if question in opened else _SHUT_PATIENCE
            asked.setdefault(question.client, []).append(question)
            words.setdefault(question.client, []).append(self._words(home, question, patience))
        answers: dict[Question, tuple[str, int] | None] = {}
        for client, said in self.lab.ask_all(words).items():
            for question, answer in zip(asked[client], said, strict=True):
                found = answer.split(" ")
                answers[question] = (found[0], int(found[2])) if found[1:2] == ["port"] else None
        return answers

    def may_hold(self, question: Question) -> bool:
        """See Driver. Those outside are never paused."""
        return question.client in OUTSIDE

    def hold(self, home: Home, question: Question) -> bool:
        """See Driver."""
        words = self._words(home, question, 0.0)
        line = self._lines[question] = Line(self.lab, question.client, words.host, words.port)
        return line.open and line.speaks(probes.MUST_COME)

    def speaks(self, question: Question, patience: float) -> bool:
        """See Driver."""
        return self._lines[question].speaks(patience)

    def release(self, question: Question) -> None:
        """See Driver."""
        self._lines.pop(question).close()

    def recable(self, choice: int) -> set[str]:
        """See Driver."""
        guests = next((name for name, (network, _) in self.cards.items() if network == "guest"), "")
        if choice == 0 and guests:
            del self.cards[guests]
            self.lab.unplug("sys-net", guests)
        elif choice == 1 and "enx1" not in self.cards:
            self._plug("enx1", "guest")
        elif choice == 2 and guests:
            new = f"wlan{next(self._number)}"
            self.cards[new] = self.cards.pop(guests)
            self.lab.rename("sys-net", guests, new)
        elif choice == 3 and guests:
            self._move(guests, "guest")
        elif choice == 4 and guests:
            self._move(guests, "lan")
        else:
            # At home nothing is left but one network; the other one comes again by itself later.
            for name in [name for name in self.cards if name != "ens6"]:
                del self.cards[name]
                self.lab.unplug("sys-net", name)
            self._plug("wls7", "guest")
        return set(OUTSIDE)

    def _plug(self, name: str, network: str) -> None:
        self.cards[name] = network, 40 + next(self._number) % 200
        self.lab.plug("sys-net", name, network, address(*self.cards[name])[4])

    def _move(self, name: str, network: str) -> None:
        self.cards[name] = network, 40 + next(self._number) % 200
        self.lab.move("sys-net", name, network, address(*self.cards[name])[4])

    def _dials(self, client: str) -> dict[int, str]:
        """The addresses of sys-net that somebody outside can reach."""
        mine = OUTSIDE[client][0]
        return next((address(*card) for card in self.cards.values() if card[0] == mine), {})

    def _words(self, home: Home, question: Question, patience: float) -> probes.Question:
        family, proto, port = question.way
        outside = question.client in OUTSIDE
        dials = self._dials(question.client) if outside else home.qubes[question.entrance].addresses
        return probes.Question(dials[family], port, proto, patience)


def _hold(control: socket.socket, host: str, port: int) -> None:
    """Connect; then for each number of seconds that comes send a numbered line and tell whether it was answered."""
    try:
        connection = socket.create_connection((host, port), probes.MUST_COME)
    except OSError as error:
        control.sendall(probes.why(error).encode())
        control.recv(100)
        return
    control.sendall(b"connected")
    with connection, connection.makefile("rb") as answers:
        for number in itertools.count():
            word = control.recv(100).decode()
            if word in ("", "end"):
                return
            connection.settimeout(float(word))
            result = "dead"
            with contextlib.suppress(OSError):
                connection.sendall(b"%d\n" % number)
                if answers.readline().split()[-1:] == [b"%d" % number]:
                    result = "alive"
            control.sendall(result.encode())
