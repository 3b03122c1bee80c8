# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""What a test does with the chains: rules as a user types them, questions of clients, waiting until all hops agree."""

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab import probes
from lab.client import Lab
from lab.dom0 import exchange, gather, list_qubes
from portfwd.base.qubesdb_client import Error, QubesDB
from portfwd.wire import limits
from portfwd.wire.acknowledgement import Acknowledgement, AgentState
from portfwd.wire.entry import Commit
from tests.chain.held import Held
from tests.leaks import lasting

TOPOLOGY = str(Path(__file__).parent / "chains.toml")
DEADLINE = 60.0
"""Seconds for a change to arrive at every hop; it takes some hundredths."""
SHUT = "shut"
SHUT_PATIENCE = 0.4
"""Seconds that a port must stay silent. An open one answers within some milliseconds, once every hop has applied."""
_SHUT_WORDS = ("timeout", "refused", "unreachable")

LAPTOP, LAPTOP6 = "192.168.1.20", "2001:db8:1::14"
PHONE = "192.168.1.30"
VISITOR, VISITOR6 = "192.168.77.20", "2001:db8:77::14"
SERVER, SERVER6 = "203.0.113.80", "2001:db8:ffff::50"
ROUTER = "203.0.113.1"
SYS_NET, SYS_NET6 = "192.168.1.10", "2001:db8:1::a"
SYS_NET_GUEST, SYS_NET_GUEST6 = "192.168.77.10", "2001:db8:77::a"
MASK = "192.168.200.5"
LONG = "this-qube-has-31-letters-in-all"
TARGETS = ("dmz", "work", "personal", "masked", "veiled", LONG, "media", "deep", "untrusted", "sys-firewall", "sys-net")
SERVICES = ("--tcp", "22", "--tcp", "631", "--tcp", "8443", "--tcp", "5000-5005", "--udp", "8443", "--udp", "5000-5005")
"""What listens in every one of them, forwarded or not."""
HOPS = ("sys-firewall", "sys-net")
HOPS_SERVICES = tuple(word.replace("5000-5005", "5000-5002") for word in SERVICES)
"""The same in HOPS, with fewer ports: what a net qube uses itself cannot be an entrance."""


@dataclass(frozen=True)
class Ask:
    """A client's question to a port."""

    who: str
    host: str
    port: int
    proto: str = "tcp"


def says(qube: str, port: int, client: str) -> str:
    """The answer of a qube's server at that port to a client, as far as a test can know it."""
    return f"{qube} port {port} to {client}"


class World:
    """One laboratory with servers in all its targets."""

    def __init__(self, lab: Lab, stack: contextlib.ExitStack, targets: Sequence[str] = TARGETS) -> None:
        self.lab = lab
        self._stack = stack
        self._held: list[Held] = []
        known = lab.call("dom0", gather)
        self.ip = {name: words["ip"] for name, words in known.items()}
        self.ip6 = {name: words["ip6"] for name, words in known.items()}
        self.serve(*targets)

    def serve(self, *machines: str, words: Sequence[str] = (), stack: contextlib.ExitStack | None = None) -> None:
        """Start the small server in machines, all at the same time, and wait until it listens.

        Without words it serves what it always does there. It ends with `stack`, or with the laboratory.
        """
        servers = []
        with lasting() if stack is None else contextlib.nullcontext():
            for machine in machines:
                served = words or (HOPS_SERVICES if machine in HOPS else SERVICES)
                argv = [sys.executable, "-I", "-m", "lab.inside.server", *served]
                servers.append(self.lab.popen(machine, argv, stdout=subprocess.PIPE, text=True))
        for server in servers:
            (stack or self._stack).callback(_end, server)
        for machine, server in zip(machines, servers, strict=True):
            assert server.stdout is not None
            assert server.stdout.readline() == "serving\n", machine

    # Rules

    def command(self, *words: str) -> "subprocess.CompletedProcess[str]":
        """Type `qvm-firewall WORDS` in dom0."""
        return self.lab.run("dom0", ["qvm-firewall", *words], capture_output=True, text=True, timeout=120)

    def add(self, qube: str, text: str) -> None:
        """Add a forward as a user does, and wait until every hop has it."""
        self._edit("add", qube, text)
        self.wait_applied(qube)

    def delete(self, qube: str, text: str) -> None:
        """Delete a forward as a user does, and wait until every hop knows."""
        self._edit("del", qube, text)
        self.settle()

    def _edit(self, verb: str, qube: str, text: str) -> None:
        done = self.command(qube, verb, "action=forward", *text.split())
        assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), done

    def replace(self, qube: str, *rules: str) -> None:
        """Replace the forwards of a qube by the Admin API, and wait until every hop knows."""
        text = "".join(f"action=forward {rule}\n" for rule in rules)
        self.lab.api(qube, "admin.vm.firewall.Set", "forward", text)
        self.settle()

    def clear(self) -> None:
        """Remove every forward, and let go of every connection."""
        while self._held:
            self._held.pop().close()
        self.lab.call("dom0", clear_forwards, list(self.ip))
        self.settle()

    def forwards(self, qube: str) -> list[str]:
        """The forward rules of a qube."""
        return self.lab.api(qube, "admin.vm.firewall.Get", "forward").splitlines()

    def status(self, qube: str) -> list[dict[str, str]]:
        """The lines of Get+forward.status on hops, as words; a problem's text is under 'text'."""
        found = []
        for line in self.lab.api(qube, "admin.vm.firewall.Get", "forward.status").splitlines():
            if " hop=" not in line:
                continue
            head, _, text = line.partition(" text=")
            words = dict(word.split("=", 1) for word in head.split(" "))
            found.append(words | ({"text": text} if text else {}))
        return found

    def states(self, qube: str, port: int) -> set[str]:
        """The states, on all hops and the qube, of the rule with that entrance port."""
        lines = self.status(qube)
        rules = {words["rule"] for words in lines if words.get("listen") == f"{port}-{port}"}
        return {words["state"] for words in lines if words["rule"] in rules}

    def settle(self) -> None:
        """Wait until the agent of every running qube has applied what dom0 wrote last."""
        self.lab.ask("settle")
        # qubesd answers a Set just before it publishes; its next answer comes after that.
        self.lab.api("dom0", "admin.vm.List")
        late = self.lab.call("dom0", late_qubes, DEADLINE)
        assert late == []

    def wait_applied(self, qube: str) -> None:
        """Wait until every line of the qube's status says applied."""
        # First, since each look at the status has dom0 ask the qubes.
        self.settle()
        wait_until(
            lambda: {words["state"] for words in self.status(qube)} == {"applied"},
            lambda: f"all applied, {self.status(qube)}",
        )
        self.settle()

    # Packets

    def expect(self, wanted: Mapping[Ask, str]) -> None:
        """Have all clients ask everything at the same time; each answer must begin as told, or the port be SHUT."""
        answers = self.ask(wanted)
        wrong = {ask: answer for ask, answer in answers.items() if not _fits(answer, wanted[ask])}
        assert not wrong, "\n".join(f"{ask}: {answer!r} instead of {wanted[ask]!r}" for ask, answer in wrong.items())

    def ask(self, wanted: Mapping[Ask, str]) -> dict[Ask, str]:
        """The answers; what is expected to be shut is not waited for as long."""
        asks: dict[str, list[Ask]] = {}
        questions: dict[str, list[probes.Question]] = {}
        for ask, answer in wanted.items():
            patience = SHUT_PATIENCE if answer == SHUT else probes.MUST_COME
            asks.setdefault(ask.who, []).append(ask)
            questions.setdefault(ask.who, []).append(probes.Question(ask.host, ask.port, ask.proto, patience))
        answers: dict[Ask, str] = {}
        for who, said in self.lab.ask_all(questions).items():
            answers |= dict(zip(asks[who], said, strict=True))
        return answers

    def hold(self, client: str, host: str, port: int, target: str, target_port: int) -> Held:
        """Open a connection through the chain and keep it until the end of the test."""
        held = Held(self.lab, client, host, port, target, target_port)
        self._held.append(held)
        assert held.client.said == "connected"
        assert held.lives
        return held

    # Qubes

    def stop(self, qube: str) -> None:
        """Kill a qube and wait until qubesd knows."""
        self.lab.api(qube, "admin.vm.Kill")
        wait_until(lambda: "state=Halted" in self.lab.api(qube, "admin.vm.List"), lambda: f"{qube} is down")

    def start(self, qube: str) -> None:
        """Start a qube."""
        self.lab.api(qube, "admin.vm.Start")

    def ruleset(self, qube: str) -> str:
        """Everything in a qube's nftables that can open something, without counters and ages.

        That is all but the guards, which for a while remember connections that were cut.
        """
        return "\n".join(_without_guards(self.output(qube, "nft", "--stateless", "list", "ruleset")))

    def output(self, machine: str, *argv: str) -> str:
        """What a program in a machine prints."""
        text: str = self.lab.run(machine, argv, stdout=subprocess.PIPE, text=True, check=True).stdout
        return text

    def entries(self, qube: str) -> dict[str, str]:
        """What stands in a qube's QubesDB for it: path -> value."""
        return self.lab.call("dom0", read_entries, qube)


def wait_until(true: Callable[[], bool], what: Callable[[], str]) -> None:
    """Look again and again until it is true."""
    deadline = time.monotonic() + DEADLINE
    while not true():
        assert time.monotonic() < deadline, f"never: {what()}"
        time.sleep(0.02)


@contextlib.contextmanager
def agents_stopped(lab: Lab, *qubes: str) -> Iterator[None]:
    """Their agents do nothing meanwhile, and nobody starts others: they are stopped as processes."""

    def output(qube: str, *words: str) -> str:
        done: subprocess.CompletedProcess[str] = lab.run(qube, words, check=True, capture_output=True, text=True)
        return done.stdout

    pids = {qube: output(qube, "pgrep", "-f", "portfwd[.]agent").split()[0] for qube in qubes}
    for qube, pid in pids.items():
        output(qube, "kill", "-STOP", pid)
    try:
        yield
    finally:
        for qube, pid in pids.items():
            output(qube, "kill", "-CONT", pid)


def late_qubes(seconds: float) -> list[str]:
    """In dom0: wait until each agent has acknowledged the newest commit; which have not when time is over."""
    deadline = time.monotonic() + seconds
    while (late := [name for name in databases() if not _acknowledged(name)]) and time.monotonic() < deadline:
        time.sleep(0.01)
    return late


def databases() -> list[str]:
    """In dom0: the qubes that run and have a QubesDB; that of one that has ended may still be served."""
    return [n for n, state in list_qubes() if state != "Halted" and Path(f"/run/qubes/qubesdb.{n}.sock").exists()]


def _acknowledged(name: str) -> bool:
    with contextlib.suppress(Error), contextlib.closing(QubesDB(name)) as database:
        commit, answer = database.read(limits.BASE), database.read(limits.STATUS_BASE)
        if commit is None:
            return True
        if answer is None:
            return False
        wanted = Acknowledgement(Commit.parse(commit.decode()).generation, AgentState.APPLIED)
        return Acknowledgement.parse(answer.decode()) == wanted
    # A daemon that just ends: its socket goes next.
    return False


def clear_forwards(names: list[str]) -> None:
    """In dom0: remove the forwards of these qubes."""
    for name in names:
        if exchange(f"admin.vm.firewall.Get+forward dom0 name {name}\0".encode()) != b"0\0":
            answer = exchange(f"admin.vm.firewall.Set+forward dom0 name {name}\0".encode())
            assert answer == b"0\0", answer


def read_entries(name: str) -> dict[str, str]:
    """In dom0: the entries of one qube."""
    with contextlib.closing(QubesDB(name)) as database:
        return {path: value.decode() for path, value in database.multiread(limits.ENTRIES).items()}


def _without_guards(ruleset: str) -> Iterator[str]:
    inside = False
    for line in ruleset.splitlines():
        inside = inside or line.startswith(("\tchain guard-", "\tset dead-"))
        if line and not inside:
            yield line
        inside = inside and line != "\t}"


def _fits(answer: str, wanted: str) -> bool:
    return answer in _SHUT_WORDS if wanted == SHUT else answer.startswith(f"{wanted} ")


def _end(server: "subprocess.Popen[str]") -> None:
    with server:
        server.kill()


@contextlib.contextmanager
def running(name: str, topology: str = TOPOLOGY, targets: Sequence[str] = TARGETS) -> Iterator[World]:
    """A laboratory with the chains, from its start to its end."""
    with Lab(name, topology) as lab, contextlib.ExitStack() as stack:
        yield World(lab, stack, targets)


@contextlib.contextmanager
def router_forwards(world: World, port: int) -> Iterator[None]:
    """What the owner sets in the home router meanwhile: its TCP port leads to sys-net, in both families."""
    rules = f"""
table inet to-sys-net {{
	chain prerouting {{
		type nat hook prerouting priority dstnat;
		iifname "wan" meta nfproto ipv4 tcp dport {port} dnat ip to {SYS_NET}
	}}
}}
insert rule inet home-router forward iifname "wan" oifname "lan" tcp dport {port} accept comment "to-sys-net"
"""
    undo = (
        "nft delete table inet to-sys-net; nft delete rule inet home-router forward handle "
        "$(nft -a list chain inet home-router forward | sed -n 's/.*to-sys-net.* # handle //p')"
    )
    world.lab.run("router", ["nft", "-f", "-"], input=rules, text=True, check=True)
    try:
        yield
    finally:
        world.output("router", "sh", "-e", "-c", undo)
