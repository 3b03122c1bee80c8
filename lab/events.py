# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Everything that can happen to a laboratory, as methods; lab.client.Lab has them all.

Each one returns when the event itself is over; Lab.converge() then waits for what follows from it.
"""

import abc
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from lab import dom0
from lab.inside import firewall, vpn
from lab.inside.init import AGENT
from lab.qubesd.client import clone
from lab.qubesd.life.preload import MAXIMUM
from portfwd.wire.errors import RefusedError, shown
from portfwd.wire.limits import FEATURE_AGENT

P = ParamSpec("P")
R = TypeVar("R")

CONVERGENCE_DEADLINE = 20.0
"""Seconds: far more than a loaded machine needs."""
FLUSHES = {
    "custom": "".join(f"flush chain {f} qubes custom-{c}\n" for f in ("ip", "ip6") for c in ("forward", "input")),
    "table": "delete table ip qubes-port-forward\ndelete table ip6 qubes-port-forward\n",
    "ruleset": "flush ruleset\n",
}
"""What a user may do to the ruleset of a qube: empty the custom chains, delete our tables, delete everything."""


class NotConvergedError(RuntimeError):
    """Some hop has not done in time what dom0 wants; the text names them."""


class Events(abc.ABC):
    """The events, on top of the calls into a laboratory."""

    @abc.abstractmethod
    def ask(self, op: str, **words: object) -> dict[str, Any]:
        """One operation of the hypervisor."""

    @abc.abstractmethod
    def api(self, dest: str, method: str, arg: str = "", payload: str | bytes = b"") -> str:
        """One call of the Admin API."""

    @abc.abstractmethod
    def call(self, machine: str, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a function inside a machine."""

    @abc.abstractmethod
    def run(self, machine: str, argv: Sequence[str], **options: Any) -> Any:
        """Run a program inside a machine."""

    def converge(
        self, seconds: float = CONVERGENCE_DEADLINE, dead: Iterable[str] = (), unplugged: Iterable[str] = ()
    ) -> float:
        """Wait until every hop has done what dom0 wants, and give the seconds it took (see lab.dom0.converge).

        dead: qubes that cannot answer, as their agent or their QubesDB is gone; unplugged: running ones without an
        interface in their net qube. Raises NotConvergedError.
        """
        began = time.monotonic()
        self.ask("settle")
        if missing := self.call("dom0", dom0.converge, seconds, frozenset(dead), frozenset(unplugged)):
            raise NotConvergedError("\n".join(missing))
        return time.monotonic() - began

    # Qubes

    def set(self, qube: str, name: str, value: str) -> None:
        """Set a property of a qube (netvm: '' is none; ip, ip6, provides_network...)."""
        self.api(qube, "admin.vm.property.Set", name, value)

    def reset(self, qube: str, name: str) -> None:
        """Bring a property of a qube back to its default."""
        self.api(qube, "admin.vm.property.Reset", name)

    def feature(self, qube: str, name: str, value: str | None) -> None:
        """Set a feature of a qube; None removes it."""
        if value is None:
            self.api(qube, "admin.vm.feature.Remove", name)
        else:
            self.api(qube, "admin.vm.feature.Set", name, value)

    def start(self, qube: str) -> None:
        """Start a qube, with its net qubes."""
        self.api(qube, "admin.vm.Start")

    def stop(self, qube: str, force: bool = False) -> None:
        """Shut a qube down; force: even if others need it."""
        self.api(qube, "admin.vm.Shutdown", "force+wait" if force else "wait")

    def kill(self, qube: str) -> None:
        """End a qube at once."""
        self.api(qube, "admin.vm.Kill")

    def restart(self, qube: str) -> None:
        """Shut a qube down, whoever needs it, and start it again."""
        self.stop(qube, force=True)
        self.start(qube)

    def pause(self, qube: str) -> None:
        """Stop a qube's time."""
        self.api(qube, "admin.vm.Pause")

    def unpause(self, qube: str) -> None:
        """Let it go on."""
        self.api(qube, "admin.vm.Unpause")

    def create(self, name: str, netvm: str, label: str = "red", klass: str = "StandaloneVM") -> None:
        """Make a new qube, whose system has the agent."""
        self.api("dom0", f"admin.vm.Create.{klass}", "", f"name={name} label={label}")
        self.set(name, "netvm", netvm)
        self.feature(name, FEATURE_AGENT, "1")

    def clone(self, qube: str, new: str) -> None:
        """Copy a qube as qvm-clone does."""
        self.call("dom0", clone, Path(dom0.QUBESD), qube, new)

    def remove(self, qube: str) -> None:
        """Remove a halted qube."""
        self.api(qube, "admin.vm.Remove")

    def disposable(self, template: str) -> str:
        """Start a disposable, or take a preloaded one; its name. It is removed when it stops."""
        if not self._is_true(template, "template_for_dispvms"):
            self.set(template, "template_for_dispvms", "True")
        name = self.api(template, "admin.vm.CreateDisposable")
        if f"{name} class=DispVM state=Halted" in self.api(name, "admin.vm.List"):
            self.start(name)
        return name

    def preload(self, template: str, number: int | str) -> None:
        """Have so many disposables of a template ready; they come in the background."""
        if not self._is_true(template, "template_for_dispvms"):
            self.set(template, "template_for_dispvms", "True")
        self.feature(template, MAXIMUM, str(number))

    def _is_true(self, qube: str, name: str) -> bool:
        return self.api(qube, "admin.vm.property.Get", name).endswith(" True")

    # Programs

    def service(self, machine: str, service: str, action: str) -> None:
        """Start, stop, restart or kill (it comes again) a service: port-forward-agent, qubesdb-daemon; dom0: qubesd."""
        self.ask("service", name=machine, service=service, action=action)

    def agent(self, qube: str, action: str) -> None:
        """Start, stop, restart or kill a qube's agent."""
        self.service(qube, AGENT, action)

    def install_agent(self, qube: str) -> None:
        """The agent appears in a qube that had none: it starts, and the qube says that it has it."""
        self.ask("agent", name=qube, installed=True)
        self.feature(qube, FEATURE_AGENT, "1")

    def uninstall_agent(self, qube: str) -> None:
        """Undo install_agent; what the agent had loaded stays, as when its files go without the package."""
        self.ask("agent", name=qube, installed=False)
        self.feature(qube, FEATURE_AGENT, None)

    def kill_database(self, qube: str) -> None:
        """Kill dom0's QubesDB daemon of a qube; only a restart of the qube brings it back."""
        self.call("dom0", dom0.kill_database, qube)

    def flush(self, qube: str, what: str) -> None:
        """What a user may do to the ruleset of a qube: a word of FLUSHES."""
        if what not in FLUSHES:
            raise RefusedError(f"flush {shown(what)} is not known, known are {', '.join(FLUSHES)}")
        self.run(qube, ["nft", "-f", "-"], input=FLUSHES[what].encode(), check=True)

    def slow(self, qube: str, what: str, seconds: float) -> None:
        """Make a qube slow: its scripts for new vifs (what is `vif`) begin so many seconds late from now on.

        Or, at its next starts, its own forwarding is set so late (`network`), or its agent begins so late (`agent`).
        """
        self.ask("slow", name=qube, what=what, seconds=seconds)

    def stock_firewall(self, qube: str, action: str) -> None:
        """Enforce ordinary rules in a net qube from now on and at each later start, or not: on, off."""
        if action not in ("on", "off"):
            raise RefusedError(f"action {shown(action)} is not known, known are on, off")
        self.run(qube, [*(["touch"] if action == "on" else ["rm", "-f"]), str(firewall.WANTED)], check=True)
        self.service(qube, firewall.SERVICE, "start" if action == "on" else "stop")

    def vpn(self, qube: str, action: str, server: str = "server", routes: str = "halves") -> None:
        """A VPN program in a qube comes up, now and at each later start, or down: a tunnel to a host (lab.inside.vpn).

        routes: `halves` of the address space, as OpenVPN makes them, or `table` with rules, as wg-quick does.
        """
        if action == "up":
            self.service(server, vpn.SERVER, "start")
            self.call(qube, vpn.configure, server, routes)
        elif action != "down":
            raise RefusedError(f"action {shown(action)} is not known, known are up, down")
        self.service(qube, vpn.CLIENT, "start" if action == "up" else "stop")

    # Network cards

    def plug(self, qube: str, card: str, network: str, ip: str, ip6: str = "") -> None:
        """Plug a new network card in."""
        self.ask("card", name=qube, card=card, action="plug", network=network, ip=ip, ip6=ip6)

    def unplug(self, qube: str, card: str) -> None:
        """Pull a network card out."""
        self.ask("card", name=qube, card=card, action="unplug")

    def move(self, qube: str, card: str, network: str, ip: str, ip6: str = "") -> None:
        """Give a network card other addresses, also of another network (DHCP, another cable)."""
        self.ask("card", name=qube, card=card, action="move", network=network, ip=ip, ip6=ip6)

    def rename(self, qube: str, card: str, new: str) -> None:
        """Give a network card another name."""
        self.ask("card", name=qube, card=card, action="rename", new=new)
