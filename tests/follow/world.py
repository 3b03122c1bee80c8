# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""What must be true of every qube for given paths, stated once and looked at in QubesDB, in nftables and by packets."""

import contextlib
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from lab import dom0, probes
from lab.client import Lab
from portfwd.model.forward import parse_forward
from portfwd.wire.values import QubeName
from tests.leaks import lasting

SYS_NET, SYS_NET6 = "192.168.1.10", "2001:db8:1::a"
LAPTOP, LAPTOP6 = "192.168.1.20", "2001:db8:1::14"
DEADLINE = 60.0
"""Seconds until a state must be right; it takes some hundredths."""
SHUT_PATIENCE = 0.25
"""Seconds that a shut port is waited for; an open one answers within some milliseconds."""
SHUT = ("timeout", "refused", "unreachable")
SERVICES = ("--tcp", "22", "--tcp", "5000-5002", "--tcp", "8443", "--udp", "5000-5002", "--udp", "8443")
TIMES: list[tuple[str, float, float]] = []
"""Every measured event: name, seconds of the event itself, seconds from its end to the right state."""

Path = tuple[str, ...]
"""The net qubes of one qube, the outermost first; empty for a qube whose ports are shut."""


@dataclass(frozen=True)
class Forward:
    """One rule, in the words of this suite."""

    qube: str
    kind: str
    protos: tuple[str, ...]
    entrance: int
    target: int
    rest: str = ""

    @property
    def line(self) -> str:
        """The rule as the API takes it."""
        proto = f"proto={self.protos[0]} " if len(self.protos) == 1 else ""
        words = f"action=forward forwardtype={self.kind} {proto}srcports={self.entrance} dstports={self.target}"
        return f"{words} {self.rest}".strip()

    @property
    def id(self) -> str:
        """The rule's id."""
        return str(parse_forward(self.line).id(QubeName(self.qube)))


FORWARDS = (
    Forward("work", "external", ("tcp",), 443, 8443),
    Forward("work", "external", ("udp",), 5000, 5001),
    Forward("work", "internal", ("tcp",), 2222, 22),
    Forward("personal", "external", ("tcp", "udp"), 7443, 8443),
    Forward("untrusted", "external", ("tcp",), 9443, 5000, "srchost=any"),
)
PATHS: dict[str, Path] = {
    "work": ("sys-net", "sys-firewall"),
    "personal": ("sys-net", "sys-firewall"),
    "untrusted": ("sys-net", "sys-disp"),
}
"""Where everything is at the beginning and the end of each test."""


class World:
    """The laboratory, its servers, and the looks at it."""

    def __init__(self, lab: Lab, stack: contextlib.ExitStack) -> None:
        self.lab = lab
        self._stack = stack
        self._found = lab.call("dom0", dom0.gather)
        self.served: dict[str, subprocess.Popen[str]] = {}
        self.serve(*PATHS)

    def serve(self, *qubes: str) -> None:
        """Start the small server in qubes, again in those that were restarted."""
        argv = [sys.executable, "-I", "-m", "lab.inside.server", *SERVICES]
        for qube in qubes:
            with lasting():
                server: subprocess.Popen[str] = self.lab.popen(qube, argv, stdout=subprocess.PIPE, text=True)
            if qube not in self.served:
                self._stack.callback(self._end, qube)
            else:
                self._end(qube)
            self.served[qube] = server
        for qube in qubes:
            pipe = self.served[qube].stdout
            assert pipe is not None
            assert pipe.readline() == "serving\n", qube

    def _end(self, qube: str) -> None:
        with self.served[qube] as server:
            server.kill()

    # The state that tests begin and end with

    def clear(self) -> None:
        """Remove every forward."""
        for qube in self.lab.call("dom0", dom0.gather):
            if self.lab.api(qube, "admin.vm.firewall.Get", "forward"):
                self.allow(qube)
        self.lab.converge()

    def allow(self, qube: str, *forwards: Forward) -> None:
        """Make these the forwards of a qube."""
        text = "".join(f"{forward.line}\n" for forward in forwards)
        self.lab.api(qube, "admin.vm.firewall.Set", "forward", text)

    def restore(self) -> None:
        """Bring qubes, their net qubes and their forwards back to the beginning."""
        now = self.lab.call("dom0", dom0.gather)
        for qube in now.keys() - self._found.keys():
            if now[qube]["state"] != "Halted":
                self.lab.kill(qube)
            # A disposable is gone with its end.
            if qube in self.lab.call("dom0", dom0.gather):
                self.lab.remove(qube)
        for qube, words in self._found.items():
            if now[qube]["state"] == "Paused":
                self.lab.unpause(qube)
            if now[qube]["state"] == "Halted":
                self.lab.start(qube)
            if now[qube]["netvm"] != words["netvm"]:
                self.lab.set(qube, "netvm", words["netvm"])
            wanted = "".join(f"{forward.line}\n" for forward in FORWARDS if forward.qube == qube)
            if _plain(now[qube]["forwards"]) != _plain(wanted):
                self.lab.api(qube, "admin.vm.firewall.Set", "forward", wanted)
        self.serve(*(qube for qube in PATHS if self.served[qube].poll() is not None))
        self.lab.converge()

    # Events

    def after(self, name: str, event: Callable[[], object], paths: Mapping[str, Path], **look: object) -> None:
        """Let something happen; then every qube must be as these paths say, and packets must agree. Measured.

        look: words of see(). A server that went with its qube is started again before packets are sent.
        """
        began = time.monotonic()
        event()
        over = time.monotonic()
        self.see(paths, **look)  # type: ignore[arg-type]
        TIMES.append((name, over - began, self._right - over))

    def see(
        self,
        shown: Mapping[str, Path],
        *,
        forwards: tuple[Forward, ...] = FORWARDS,
        only4: tuple[str, ...] = (),
        dead: tuple[str, ...] = (),
        packets: bool = True,
        inside: Mapping[str, Path] = MappingProxyType({}),
    ) -> None:
        """Wait until every qube is as these paths say.

        only4: qubes without IPv6. dead: qubes whose agent is gone. inside: paths of internal forwards where they are
        not those of external ones.
        """
        paths = {(q, kind): p for q, p in shown.items() for kind in ("external", "internal")}
        paths |= {(q, "internal"): p for q, p in inside.items()}
        self.lab.converge(DEADLINE, dead=dead)
        self._right = time.monotonic()
        deadline = self._right + DEADLINE
        wrong = self._wrong(paths, forwards, only4, dead)
        while wrong and time.monotonic() < deadline:
            wrong = self._wrong(paths, forwards, only4, dead)
            self._right = time.monotonic()
        assert not wrong, "\n".join(wrong)
        self.serve(*(q for q in PATHS if self.served[q].poll() is not None and self._running(q)))
        if packets:
            wrong = self._wrong_packets(paths, forwards, only4)
            assert not wrong, "\n".join(wrong)

    def _running(self, qube: str) -> bool:
        return qube in {machine.name for machine in self.lab.machines()}

    # What must stand where

    def _wrong(
        self,
        paths: Mapping[tuple[str, str], Path],
        forwards: tuple[Forward, ...],
        only4: tuple[str, ...],
        dead: tuple[str, ...],
    ) -> list[str]:
        """Everything in QubesDB or nftables that should not be there, or is missing."""
        found = self.lab.call("dom0", dom0.gather)
        keys: dict[str, set[str]] = {}
        targets: dict[str, set[str]] = {}
        for forward in forwards:
            for hop, nexthop in _steps(forward, paths.get((forward.qube, forward.kind), ())):
                for family, word in ((4, "ip"), (6, "ip6")):
                    if family == 6 and (forward.qube in only4 or not found[forward.qube]["ip6"]):
                        continue
                    keys.setdefault(hop, set()).update(f"{forward.id}.{family}.{proto}" for proto in forward.protos)
                    if nexthop:
                        targets.setdefault(hop, set()).add(found[nexthop][word])
        running = [m.name for m in self.lab.machines() if m.kind == "qube" and m.state == "running"]
        listing = self._list_rulesets(running)
        entries = self.lab.call("dom0", entries_of, [q for q in running if q not in dead])
        rulesets = {qube: process.communicate()[0] for qube, process in listing.items()}
        wrong = []
        for qube in (q for q in running if q not in dead):
            looks = {
                "QubesDB": (entries[qube], keys.get(qube, set())),
                "rules": (rules_in(rulesets[qube]), {key.partition(".")[0] for key in keys.get(qube, set())}),
                "targets": (targets_in(rulesets[qube]), targets.get(qube, set())),
            }
            for what, (is_there, wanted) in looks.items():
                if is_there != wanted:
                    wrong.append(f"{qube}: {what} {sorted(is_there)} instead of {sorted(wanted)}")
        return wrong

    def _list_rulesets(self, qubes: list[str]) -> "dict[str, subprocess.Popen[str]]":
        argv = ["nft", "--stateless", "list", "ruleset"]
        return {qube: self.lab.popen(qube, argv, stdout=subprocess.PIPE, text=True) for qube in qubes}

    def ours(self, qube: str) -> tuple[str, str]:
        """All that dom0 and the agent have written in a qube: its entries, and the tables that the agent made.

        Without the sets of the guards, which for a while remember connections that were cut; they open nothing.
        """
        listed = (
            self.lab.run(qube, ["nft", "list", "table", ip, "qubes-port-forward"], stdout=subprocess.PIPE, text=True)
            for ip in ("ip", "ip6")
        )
        tables = "".join(table.stdout for table in listed)
        return str(self.lab.call("dom0", dom0.entries, qube)), re.sub(
            r"\tset dead-.*?\n\t\}", "", tables, flags=re.DOTALL
        )

    # Packets

    def _wrong_packets(
        self, paths: Mapping[tuple[str, str], Path], forwards: tuple[Forward, ...], only4: tuple[str, ...]
    ) -> list[str]:
        """Answers at the entrances that are not what the paths say."""
        found = self.lab.call("dom0", dom0.gather)
        asks: dict[str, list[tuple[probes.Question, str]]] = {}
        for forward in forwards:
            path = paths.get((forward.qube, forward.kind), ())
            for host, client, works in self._entrances(forward, path, found):
                works = works and not (":" in host and (forward.qube in only4 or not found[forward.qube]["ip6"]))
                answer = f"{forward.qube} port {forward.target} to " if works else ""
                patience = probes.MUST_COME if works else SHUT_PATIENCE
                for proto in forward.protos:
                    question = probes.Question(host, forward.entrance, proto, patience)
                    asks.setdefault(client, []).append((question, answer))
        wrong = []
        answered = self.lab.ask_all({client: [question for question, _ in pairs] for client, pairs in asks.items()})
        for client, pairs in asks.items():
            for (question, wanted), answer in zip(pairs, answered[client], strict=True):
                if not (answer.startswith(wanted) if wanted else answer in SHUT):
                    wrong.append(f"{client} asks {question}: {answer!r} instead of {wanted or 'shut'!r}")
        return wrong

    def ask(self, client: str, host: str, port: int) -> str:
        """What one client hears at one TCP port."""
        return self.lab.call(client, probes.ask_tcp, host, port, patience=SHUT_PATIENCE)

    def expect(self, client: str, host: str, port: int, wanted: str) -> None:
        """Wait until a client hears an answer that begins so; '' for a port that is shut."""
        began = time.monotonic()
        while True:
            answer = self.ask(client, host, port)
            if answer.startswith(wanted) if wanted else answer in SHUT:
                return
            assert time.monotonic() < began + DEADLINE, f"{client} asks {host} {port}: {answer} instead of {wanted}"

    def neighbours(self) -> str:
        """The networks that sys-net takes for its neighbours, as nft lists them."""
        argv = ["nft", "list", "set", "ip", "qubes-port-forward", "near"]
        return str(self.lab.run("sys-net", argv, stdout=subprocess.PIPE, text=True, check=True).stdout)

    def wait_status(self, qube: str, words: str) -> None:
        """Wait until the status of a qube's forwards holds these words."""
        deadline = time.monotonic() + DEADLINE
        while words not in (status := self.lab.api(qube, "admin.vm.firewall.Get", "forward.status")):
            assert time.monotonic() < deadline, status

    def _entrances(
        self, forward: Forward, path: Path, found: Mapping[str, Mapping[str, str]]
    ) -> Iterator[tuple[str, str, bool]]:
        """(address, client, whether it shall work) for a forward; the entrance of the other kind never does."""
        external = forward.kind == "external"
        yield SYS_NET, "laptop", external and bool(path)
        yield SYS_NET6, "laptop", external and bool(path)
        if not external:
            # A sibling behind the same net qube.
            sibling = next(
                (q for q in PATHS if q != forward.qube and found[q]["netvm"] == found[forward.qube]["netvm"]), ""
            )
            if sibling and found[sibling]["state"] == "Running":
                gateway = found[found[sibling]["netvm"]]["ip"]
                yield gateway, sibling, bool(path)


def _steps(forward: Forward, path: Path) -> Iterator[tuple[str, str]]:
    """Every qube that has entries for a forward, with the one to which it leads ('' for the target itself)."""
    if path:
        hops = [*(path if forward.kind == "external" else path[-1:]), forward.qube]
        yield from zip(hops, [*hops[1:], ""], strict=True)


def _plain(lines: str) -> list[str]:
    """Rule lines without the difference between one port and a range of one."""
    return sorted(re.sub(r"ports=(\d+)-\1\b", r"ports=\1", line) for line in lines.splitlines())


def entries_of(qubes: list[str]) -> dict[str, set[str]]:
    """In dom0: the keys of the entries that stand in each of these qubes' QubesDB."""
    return {qube: set(dom0.entries(qube)) for qube in qubes}


def rules_in(ruleset: str) -> set[str]:
    """The ids of all rules that have an element in our tables."""
    comments = re.findall(r'comment "((?:[0-9a-f]{16} ?)+)"', ruleset)
    return {word for comment in comments for word in comment.split()}


def targets_in(ruleset: str) -> set[str]:
    """Every address to which an element of our maps leads."""
    found = set()
    for block in re.findall(r"map (?:up|down)-to(?:-one|-keep)? \{(.*?)\n\t\}", ruleset, re.DOTALL):
        found |= set(re.findall(r" : ([0-9a-f.:]+?)(?: \. \d+)?[,\s]", block.partition("elements = {")[2]))
    return found
