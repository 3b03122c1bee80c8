# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The laboratory of house.toml as a Driver: real kernels, real agents, real packets."""

import contextlib
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from lab import probes
from lab.client import ApiError, Call, Lab
from lab.dom0 import gather
from tests.oracle.driver import Fault, Mischief, Question, Refused
from tests.oracle.kernel import read_doors
from tests.oracle.rules import Client, Doors, Home, Qube

QUBES = {
    "sys-net": None,
    "sys-firewall": "sys-net",
    "sys-spare": "sys-net",
    "work": "sys-firewall",
    "personal": "sys-firewall",
    "media": "sys-spare",
}
OUTSIDE = {
    "laptop": ({4: "192.168.1.20", 6: "2001:db8:1::14"}, {4: "192.168.1.10", 6: "2001:db8:1::a"}),
    "phone": ({4: "192.168.1.30", 6: "2001:db8:1::1e"}, {4: "192.168.1.10", 6: "2001:db8:1::a"}),
    "guest": ({4: "192.168.77.20", 6: "2001:db8:77::14"}, {4: "192.168.77.10", 6: "2001:db8:77::a"}),
}
PORTS = tuple(range(1000, 1005))
DEADLINE = 10.0
"""Seconds for an event to arrive everywhere; it takes some tenths on a loaded machine."""
_SHUT_PATIENCE = 0.4
_CLEAR = 3.0
"""Seconds that the questions after an event may take, so that no rule may end within them."""
_FLUSHES = {
    Mischief.FLUSH_CHAINS: "".join(
        f"flush chain {ip} qubes custom-{hook}\n" for ip in ("ip", "ip6") for hook in ("input", "forward")
    ),
    Mischief.FLUSH_TABLE: "flush table ip qubes-port-forward\nflush table ip6 qubes-port-forward\n",
    Mischief.DELETE_TABLE: "delete table ip qubes-port-forward\ndelete table ip6 qubes-port-forward\n",
}


class House:
    """See Driver. One laboratory for many runs: close() brings it back to the beginning."""

    ports = PORTS
    mischiefs = tuple(_FLUSHES)

    def __init__(self, lab: Lab, stack: contextlib.ExitStack) -> None:
        self.lab = lab
        self._stack = stack
        self.seconds: list[float] = []
        known = lab.call("dom0", gather)
        self._addresses = {name: {4: known[name]["ip"], 6: known[name]["ip6"]} for name in QUBES}
        self._happened = time.monotonic()
        self._home = self.home()
        for name in QUBES:
            self._serve(name)

    def close(self) -> None:
        """See Driver."""
        now = self.lab.call("dom0", gather)
        for name in QUBES:
            self.lab.api(name, "admin.vm.firewall.Set", "forward", "")
            self.set_refusal(name, False, True)
            if now[name]["ip"] != self._addresses[name][4]:
                self._halt(name)
                self.lab.set(name, "ip", self._addresses[name][4])
            if now[name]["ip6"] != self._addresses[name][6]:
                self._halt(name)
                self.set_ipv6(name, self._addresses[name][6])
        for name, netvm in QUBES.items():
            self.start(name)
            if now[name]["netvm"] != (netvm or ""):
                self.set_netvm(name, netvm)

    def home(self) -> Home:
        """See Driver."""
        return Home({name: Qube(name, netvm, self._addresses[name]) for name, netvm in QUBES.items()}, self.now())

    def clients(self, home: Home) -> list[Client]:
        """See Driver."""
        outside = [Client(name, own, near=True) for name, (own, _) in OUTSIDE.items()]
        inside = [Client(q.name, q.addresses, qube=q.name) for q in home.qubes.values() if q.running and q.netvm]
        return outside + inside

    def questions(self, home: Home) -> list[Question]:
        """See Driver."""
        found = []
        for client in self.clients(home):
            entrance = home.qubes[client.qube].netvm if client.qube else "sys-net"
            if entrance is not None and home.qubes[entrance].running:
                # Who does not know an address of the net qube in a family cannot knock by it.
                families = home.qubes[entrance].addresses if client.qube else client.addresses
                ways = itertools.product(client.addresses.keys() & families.keys(), ("tcp", "udp"), PORTS)
                found += [Question(client.name, entrance, way) for way in ways]
        return found

    def now(self) -> int:
        """See Driver."""
        return int(time.time())

    def set_forwards(self, qube: str, lines: str) -> None:
        """See Driver."""
        self._began()
        try:
            self.lab.api(qube, "admin.vm.firewall.Set", "forward", lines)
        except ApiError as error:
            raise Refused(str(error)) from None

    def set_netvm(self, qube: str, netvm: str | None) -> None:
        """See Driver."""
        self._began()
        self.lab.set(qube, "netvm", netvm or "")

    def set_address(self, qube: str, address: str) -> None:
        """See Driver."""
        self._began()
        self.lab.set(qube, "ip", address)

    def ipv6_of(self, home: Home) -> list[str]:
        """Halted qubes that are no net qubes: of a running one the address does not change inside."""
        return [q.name for q in home.qubes.values() if not q.running and not q.name.startswith("sys-")]

    def set_ipv6(self, qube: str, address: str | None) -> None:
        """See Driver."""
        self._began()
        self.lab.feature(qube, "ipv6", "1" if address else "")

    def set_refusal(self, qube: str, refuses: bool, tor: bool) -> None:
        """See Driver."""
        self._began()
        for name, wanted in (("tag", refuses and tor), ("feature", refuses and not tor)):
            method, word = (name, "anon-gateway") if name == "tag" else (name, "port-forward.deny")
            if wanted:
                self.lab.api(qube, f"admin.vm.{method}.Set", word, "" if name == "tag" else "1")
            else:
                with contextlib.suppress(ApiError):
                    self.lab.api(qube, f"admin.vm.{method}.Remove", word)

    def start(self, qube: str) -> None:
        """See Driver."""
        if "state=Halted" in self.lab.api(qube, "admin.vm.List"):
            self._began()
            self.lab.start(qube)
            self._began()
            self._serve(qube)

    def kill(self, qube: str) -> None:
        """See Driver."""
        self._began()
        self.lab.kill(qube)

    def disturb(self, qube: str, mischief: Mischief) -> None:
        """See Driver."""
        self._began()
        self.lab.run(qube, ["nft", "-f", "-"], input=_FLUSHES[mischief].encode(), check=True)

    def restart(self, fault: Fault, qube: str) -> None:
        """See Driver."""
        self._began()
        if fault is Fault.AGENT:
            self.lab.agent(qube, "kill")
        elif fault is Fault.QUBESD:
            self.lab.service("dom0", "qubesd", "kill")
        else:
            self.lab.service(qube, "qubesdb-daemon", "kill")

    def wait(self, seconds: int) -> None:
        """See Driver."""
        time.sleep(seconds)
        self._began()

    def settle(self, home: Home) -> Iterator[None]:
        """See Driver."""
        self.lab.converge(DEADLINE)
        deadline = time.monotonic() + DEADLINE
        while time.monotonic() < deadline:
            home.now = self.now()
            if all(self.doors(name) == doors for name, doors in home.doors().items()):
                break
        self.seconds.append(time.monotonic() - self._happened)
        ends = [r.expire for q in home.qubes.values() for _, r in q.rules if isinstance(r.expire, int)]
        while any(-0.3 < end - time.time() < _CLEAR for end in ends):
            time.sleep(0.05)
        yield from ()

    def doors(self, qube: str) -> Doors:
        """See Driver."""
        return self.lab.call(qube, read_doors)

    def ask(self, home: Home, questions: Iterable[Question]) -> dict[Question, tuple[str, int] | None]:
        """See Driver."""
        opened = home.reached(self.clients(home))
        waiting: list[tuple[list[Question], int, Call]] = []
        asked = list(questions)
        for client in dict.fromkeys(question.client for question in asked):
            mine = [question for question in asked if question.client == client]
            words = [self._words(home, q, probes.TIMEOUT if q in opened else _SHUT_PATIENCE) for q in mine]
            read_end, write_end = os.pipe()
            call = self.lab.start_call(client, _tell, write_end, words)
            os.close(write_end)
            waiting.append((mine, read_end, call))
        answers: dict[Question, tuple[str, int] | None] = {}
        for mine, read_end, call in waiting:
            with os.fdopen(read_end) as told:
                for question, answer in zip(mine, json.load(told), strict=True):
                    found = answer.split(" ")
                    answers[question] = (found[0], int(found[2])) if found[1:2] == ["port"] else None
            call.wait()
        return answers

    def _words(self, home: Home, question: Question, patience: float) -> probes.Question:
        family, proto, port = question.way
        dials = OUTSIDE[question.client][1] if question.client in OUTSIDE else home.qubes[question.entrance].addresses
        return probes.Question(dials[family], port, proto, patience)

    def _began(self) -> None:
        self._happened = time.monotonic()

    def _halt(self, name: str) -> None:
        if "state=Halted" not in self.lab.api(name, "admin.vm.List"):
            self.lab.kill(name)

    def _serve(self, name: str) -> None:
        span = f"{PORTS[0]}-{PORTS[-1]}"
        argv = [sys.executable, "-I", "-m", "lab.services", "--tcp", span, "--udp", span]
        server = self.lab.popen(name, argv, stdout=subprocess.PIPE, text=True)
        self._stack.callback(_end, server)
        assert server.stdout is not None
        assert server.stdout.readline() == "serving\n", name


@contextlib.contextmanager
def running(name: str) -> Iterator[House]:
    """The laboratory from its start to its end."""
    with Lab(name, str(Path(__file__).parent / "house.toml")) as lab, contextlib.ExitStack() as stack:
        yield House(lab, stack)


def _tell(pipe: int, questions: list[probes.Question]) -> None:
    with os.fdopen(pipe, "w") as told:
        json.dump(probes.ask_all(questions), told)


def _end(server: "subprocess.Popen[str]") -> None:
    with server:
        server.kill()
