# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Everything that can be wrong with a forward, made for real in the laboratory; fault_table.py says what check answers.

Each fault is a context manager: it makes the fault and, at its end, puts right what clear() does not.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from portfwd.base.qubesdb_client import QubesDB
from portfwd.wire import limits
from portfwd.wire.acknowledgement import WAY_OUT
from portfwd.wire.entry import Commit
from portfwd.wire.values import QubeName
from tests.chain.world import World, agents_stopped, wait_until

WEB = "forwardtype=external proto=tcp srcports=443 dstports=8443"
OWN = "forwardtype=external proto=tcp srcports=7501 dstports=7502"
"""A port on which nothing listens unless the fault starts something."""
Making = Callable[[World], contextlib.AbstractContextManager[None]]


@contextlib.contextmanager
def nothing(_world: World) -> Iterator[None]:
    """The rule itself is the fault."""
    yield


def rule_of_the_user(qube: str, table: str, chain: str, rule: str) -> Making:
    """A rule of the user's in a custom chain, in both families, before ours."""

    @contextlib.contextmanager
    def make(world: World) -> Iterator[None]:
        for family in ("ip", "ip6"):
            world.output(qube, "nft", "insert", "rule", family, table, chain, *rule.split(), "comment", "users-own")
        try:
            yield
        finally:
            for family in ("ip", "ip6"):
                place = f"{family} {table} {chain}"
                script = f"nft -a list chain {place} | sed -n 's/.*users-own.* # handle //p'"
                world.output(qube, "sh", "-e", "-c", f"nft delete rule {place} handle $({script})")

    return make


def table_of_the_user(qube: str, hook: str, rule: str) -> Making:
    """A table of the user's with a base chain."""

    @contextlib.contextmanager
    def make(world: World) -> Iterator[None]:
        text = f"table inet users-own {{ chain c {{ type filter hook {hook} priority 0; policy accept; {rule}\n}}\n}}\n"
        world.lab.run(qube, ["nft", "-f", "-"], input=text, text=True, check=True)
        try:
            yield
        finally:
            world.output(qube, "nft", "delete", "table", "inet", "users-own")

    return make


@contextlib.contextmanager
def server_stopped(world: World) -> Iterator[None]:
    with contextlib.ExitStack() as until:
        world.serve("work", words=("--tcp", "7502"), stack=until)
    yield


@contextlib.contextmanager
def server_for_itself(world: World) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for host in ("127.0.0.1", "::1"):
            world.serve("work", words=("--tcp", "7502", "--host", host), stack=stack)
        yield


@contextlib.contextmanager
def port_in_use(world: World) -> Iterator[None]:
    """A program in sys-net itself listens on the entrance port before the forward comes."""
    world.replace("work")
    with contextlib.ExitStack() as stack:
        world.serve("sys-net", words=("--tcp", "7501"), stack=stack)
        world.replace("work", OWN)
        yield


@contextlib.contextmanager
def agent_stopped(world: World) -> Iterator[None]:
    """The agent of an inner hop dies, and then the forward is added."""
    world.replace("work")
    world.lab.agent("sys-firewall", "stop")
    try:
        world.lab.api("work", "admin.vm.firewall.Set", "forward", f"action=forward {WEB}\n")
        yield
    finally:
        world.lab.agent("sys-firewall", "start")


@contextlib.contextmanager
def chain_flushed(world: World) -> Iterator[None]:
    """Nobody puts it right, since the agent is dead, too."""
    world.lab.agent("sys-firewall", "stop")
    world.lab.flush("sys-firewall", "custom")
    try:
        yield
    finally:
        world.lab.agent("sys-firewall", "start")


@contextlib.contextmanager
def elements_flushed(world: World) -> Iterator[None]:
    """The doors of the entrance are shut from outside while its agent is stopped."""
    with agents_stopped(world.lab, "sys-net"):
        for family in ("ip", "ip6"):
            world.output("sys-net", "nft", "flush", "map", family, "qubes-port-forward", "up-port")
        yield


@contextlib.contextmanager
def hop_halted(world: World) -> Iterator[None]:
    world.stop("sys-disp")
    try:
        yield
    finally:
        restarted(world, "sys-disp", "untrusted")


@contextlib.contextmanager
def everything_flushed(world: World) -> Iterator[None]:
    """A user flushes the whole ruleset, and with it the base firewall."""
    world.lab.flush("sys-disp", "ruleset")
    wait_until(lambda: "no-base-firewall" in _states(world, "untrusted"), lambda: "the agent has seen it")
    try:
        yield
    finally:
        world.stop("sys-disp")
        restarted(world, "sys-disp", "untrusted")


def restarted(world: World, *qubes: str) -> None:
    """Start a net qube anew, and what is behind it, with its servers."""
    for qube in qubes:
        if qube.startswith("sys-"):
            world.start(qube)
        else:
            world.stop(qube)
            world.start(qube)
            world.serve(qube)
    world.settle()


@contextlib.contextmanager
def taken_port(world: World) -> Iterator[None]:
    """A rule that was added without a net qube meets an older one when the net qube comes."""
    world.replace("work")
    world.replace("dmz", WEB)
    world.lab.set("work", "netvm", "")
    world.replace("work", WEB)
    try:
        world.lab.set("work", "netvm", "sys-firewall")
        world.settle()
        yield
    finally:
        world.lab.reset("work", "netvm")


@contextlib.contextmanager
def without_net(world: World) -> Iterator[None]:
    world.lab.set("work", "netvm", "")
    try:
        yield
    finally:
        world.lab.reset("work", "netvm")
        world.settle()


@contextlib.contextmanager
def route_gone(world: World) -> Iterator[None]:
    route = world.output("sys-firewall", "ip", "route", "show", world.ip["work"]).strip()
    world.output("sys-firewall", "ip", "route", "del", *route.split())
    try:
        yield
    finally:
        world.output("sys-firewall", "ip", "route", "add", *route.split())


@contextlib.contextmanager
def no_forwarding(world: World) -> Iterator[None]:
    world.lab.call("sys-firewall", write, "/proc/sys/net/ipv4/ip_forward", "0")
    try:
        yield
    finally:
        world.lab.call("sys-firewall", write, "/proc/sys/net/ipv4/ip_forward", "1")


@contextlib.contextmanager
def own_address_gone(world: World) -> Iterator[None]:
    address = world.ip["work"]
    world.output("work", "ip", "address", "del", f"{address}/32", "dev", "eth0")
    try:
        yield
    finally:
        restarted(world, "work")


@contextlib.contextmanager
def cards_pulled(world: World) -> Iterator[None]:
    world.lab.unplug("sys-net", "ens6")
    world.lab.unplug("sys-net", "wls7")
    try:
        yield
    finally:
        world.lab.plug("sys-net", "ens6", "lan", "192.168.1.10")
        world.lab.plug("sys-net", "wls7", "guest", "192.168.77.10")
        world.settle()


@contextlib.contextmanager
def sender_refused(world: World) -> Iterator[None]:
    world.lab.api("personal", "admin.vm.firewall.Set", payload="action=drop\n")
    try:
        yield
    finally:
        world.lab.api("personal", "admin.vm.firewall.Set", payload="action=accept\n")


@contextlib.contextmanager
def expired(world: World) -> Iterator[None]:
    world.replace("work", f"{WEB} expire={int(time.time()) + 2}")
    wait_until(lambda: not world.forwards("work"), lambda: "the time is over")
    yield


@contextlib.contextmanager
def other_address(world: World) -> Iterator[None]:
    """A new address, which a running qube takes at its next start only."""
    world.lab.set("work", "ip", "10.138.77.7")
    world.settle()
    try:
        yield
    finally:
        world.lab.reset("work", "ip")
        world.settle()


@contextlib.contextmanager
def mask_removed(world: World) -> Iterator[None]:
    """The feature goes, the translation in front of the running qube stays, and that lets no IPv6 pass."""
    world.lab.feature("masked", "net.fake-ip", None)
    world.settle()
    try:
        yield
    finally:
        world.lab.feature("masked", "net.fake-ip", "192.168.200.5")
        world.settle()


def feature(qube: str, name: str, value: str | None, back: str | None) -> Making:
    @contextlib.contextmanager
    def make(world: World) -> Iterator[None]:
        world.lab.feature(qube, name, value)
        world.settle()
        try:
            yield
        finally:
            world.lab.feature(qube, name, back)
            world.settle()

    return make


@contextlib.contextmanager
def way_untold(world: World) -> Iterator[None]:
    """As by an agent that has never been able to read its routes; what it has said before, qubesd has forgotten."""
    world.lab.agent("sys-firewall", "stop")
    world.output("sys-firewall", "qubesdb-rm", limits.STATUS + WAY_OUT)
    world.lab.service("dom0", "qubesd", "restart")
    wait_until(lambda: "problem" in _states(world, "work"), lambda: "dom0 has heard nothing of its way out")
    try:
        yield
    finally:
        world.lab.agent("sys-firewall", "start")
        world.wait_applied("work")


@contextlib.contextmanager
def tor(world: World) -> Iterator[None]:
    world.lab.api("sys-firewall", "admin.vm.tag.Set", limits.TAG_TOR_GATEWAY)
    try:
        yield
    finally:
        world.lab.api("sys-firewall", "admin.vm.tag.Remove", limits.TAG_TOR_GATEWAY)
        world.settle()


@contextlib.contextmanager
def qube_paused(world: World) -> Iterator[None]:
    world.lab.pause("work")
    try:
        yield
    finally:
        world.lab.unpause("work")


@contextlib.contextmanager
def half_written(world: World) -> Iterator[None]:
    """A key too many, under a commit that does not cover it."""
    world.lab.call("dom0", write_stray, "sys-firewall")
    wait_until(lambda: "incomplete" in _states(world, "work"), lambda: "the agent has given up waiting")
    try:
        yield
    finally:
        world.lab.call("dom0", remove_stray, "sys-firewall")
        world.replace("work", WEB, "forwardtype=external proto=tcp srcports=444 dstports=8443")


STRAY = f"{limits.ENTRIES}0123456789abcdef.4.tcp"


def write_stray(name: QubeName) -> None:
    """In dom0: what is left when a write breaks off."""
    with contextlib.closing(QubesDB(name)) as database:
        commit = Commit.parse((database.read(limits.BASE) or b"").decode())
        database.write(STRAY, "kind=accept side=uplink listen=9-9 source=any")
        database.write(limits.BASE, str(Commit(commit.generation + 1, commit.entries, commit.digest)))


def remove_stray(name: QubeName) -> None:
    """In dom0."""
    with contextlib.closing(QubesDB(name)) as database:
        database.rm(STRAY)


def write(path: str, text: str) -> None:
    """In a machine."""
    Path(path).write_text(text)


def _states(world: World, qube: str) -> set[str]:
    return {words["state"] for words in world.status(qube) if "state" in words}
