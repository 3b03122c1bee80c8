# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""A computer with qubes on fakes: the real service of dom0, the real Firewall in each qube, and a packet tracer.

sys-net (ens6: lan, wls7: guest) - sys-firewall - work, personal, sys-vpn - media
sys-usb (ens6: lan)              - sys-spare    - untrusted
"""

import contextlib
import math
import os
import shutil
from collections.abc import Sequence

from portfwd.dom0.planning.tunnels import ABSENT_SECONDS
from portfwd.dom0.storage import store
from portfwd.model.ordinary import parse_ordinary
from portfwd.wire import limits
from portfwd.wire.acknowledgement import WayOut
from portfwd.wire.errors import RefusedError
from tests.crash.dying import KilledError, die_at_line
from tests.oracle.driver import EVENTS, Fault, Mischief, Refused
from tests.oracle.fake_computer import QUBES, FakeComputer, addresses
from tests.oracle.fake_net import GUEST_LAN, HOME_LAN, OUTSIDE, PORTS, Card
from tests.oracle.rules import Forged, Home, Qube


class FakeHome(FakeComputer):
    """See Driver."""

    ports = targets = PORTS
    mischiefs = tuple(Mischief)
    # Interfaces are where the net qube says; that qubesd takes them away (topology.change_default) is not imitated.
    can = EVENTS - {"detach"}

    def home(self) -> Home:
        """See Driver."""
        qubes = {
            name: Qube(name, netvm, addresses(self.numbers[name]), provides=name.startswith("sys-"))
            for name, netvm in QUBES.items()
        }
        return Home(qubes, self.now())

    # Rules

    def set_forwards(self, qube: str, lines: str) -> None:
        """See Driver."""
        try:
            self.service.set(self.vms[qube], lines)
        except RefusedError as error:
            raise Refused(str(error)) from None
        self._refresh()

    def set_ordinary(self, qube: str, drop: bool) -> None:
        """See Driver."""
        self.vms[qube].firewall.set_rules(parse_ordinary(f"action={'drop' if drop else 'accept'}"))
        self._refresh()

    def reload(self, qube: str) -> None:
        """See Driver."""
        self.service.reload(self.vms[qube])
        self._refresh()

    # Network

    def set_netvm(self, qube: str, netvm: str | None) -> None:
        """See Driver."""
        self.vms[qube].netvm = self.vms[netvm] if netvm else None
        self._changed()

    def follow_default(self, qube: str, netvm: str) -> None:
        """See Driver."""
        self.set_netvm(qube, netvm)

    def set_default(self, netvm: str, followers: list[str]) -> None:
        """See Driver. As in qubesd: all of them have moved before anything is planned anew."""
        for name in followers:
            self.vms[name].netvm = self.vms[netvm]
        self._changed()

    def set_address(self, qube: str, address: str) -> None:
        """See Driver."""
        self.vms[qube].ip = address
        self._changed()

    def ipv6_of(self, home: Home) -> list[str]:
        """See Driver."""
        return list(home.qubes)

    def set_ipv6(self, qube: str, on: bool) -> None:
        """See Driver."""
        self.vms[qube].ip6 = addresses(self.numbers[qube])[6] if on else None  # type: ignore[assignment]
        self._changed()

    def set_fake_address(self, qube: str, on: bool) -> None:
        """See Driver."""
        self._feature(qube, "net.fake-ip", "192.168.200.5" if on else "")

    def set_provides(self, qube: str, provides: bool) -> None:
        """See Driver."""
        self.vms[qube].provides_network = provides
        self._changed()

    def set_refusal(self, qube: str, refuses: bool, tor: bool) -> None:
        """See Driver."""
        self.vms[qube].tags = {limits.TAG_TOR_GATEWAY} if refuses and tor else set()
        self._feature(qube, limits.FEATURE_DENY, "1" if refuses and not tor else "")

    def set_transit(self, qube: str, transit: bool) -> None:
        """See Driver."""
        self._feature(qube, limits.FEATURE_TRANSIT, "1" if transit else "")

    def may_tunnel(self, home: Home, qube: str) -> bool:
        """See Driver."""
        return qube in home.qubes

    def forgeries(self, home: Home) -> list[Forged]:
        """See Driver. The packet tracer's clients have the addresses that they have."""
        del home
        return []

    def forge(self, home: Home, forged: Sequence[Forged]) -> list[tuple[str, int] | None]:
        """See Driver."""
        return [home.heard(one) for one in forged]

    def set_tunnel(self, qube: str, tunnel: bool) -> None:
        """See Driver."""
        node = self.nodes[qube]
        node.way_out = WayOut.TUNNEL if tunnel else WayOut.UPLINK
        node.wake()
        node.work(self._time)
        if not tunnel:
            # The user must take the word back: dom0 remembers it. And it counts only when it was said for a while.
            self.vms[qube].features.pop(limits.FEATURE_VPN, None)
            self._refresh()
            self.wait(math.ceil(ABSENT_SECONDS))
        self._changed()

    def recable(self, choice: int) -> set[str]:
        """See Driver."""
        cards = self.cards["sys-net"]
        guests = next((name for name, card in cards.items() if card.lan == GUEST_LAN), "")
        if choice == 0 and guests:
            del cards[guests]
        elif choice == 1 and "enx1" not in cards:
            cards["enx1"] = Card(GUEST_LAN, 12)
        elif choice == 2 and guests:
            cards[f"wlan{self._random.randrange(10**6)}"] = cards.pop(guests)
        elif choice == 3 and guests:
            cards[guests] = Card(GUEST_LAN, 13 + self._random.randrange(6))
        elif choice == 4 and guests:
            cards[guests] = Card(HOME_LAN, 13)
        else:
            self.cards["sys-net"] = {"ens6": Card(HOME_LAN, 10), "wls7": Card(GUEST_LAN, 10)}
        self.wire()
        return set(OUTSIDE)

    # Qubes

    def clone(self, qube: str, new: str) -> Qube:
        """See Driver."""
        netvm = self.vms[qube].netvm
        return self._new_qube(new, None if netvm is None else netvm.name)

    def create(self, name: str, netvm: str, address: str | None) -> Qube:
        """See Driver."""
        return self._new_qube(name, netvm, address)

    def disposable(self, template: str) -> Qube:
        """See Driver."""
        qube = self.clone(template, f"disp{next(self._runs)}")
        self.start(qube.name)
        qube.running = qube.disposable = True
        return qube

    def remove(self, qube: str) -> None:
        """See Driver."""
        shutil.rmtree(self.vms.pop(qube).firewall.path.parent)
        self._changed()

    def start(self, qube: str) -> None:
        """See Driver."""
        self._boot(qube)
        self._changed()

    def kill(self, qube: str) -> None:
        """See Driver."""
        self._halt(qube)
        if not self._away:
            self.service.stopped(self.vms[qube])
        if qube.startswith("disp"):
            self.remove(qube)
        self._changed()

    def shut_down(self, qube: str) -> None:
        """See Driver."""
        self.kill(qube)

    def pause(self, qube: str, on: bool) -> None:
        """See Driver."""
        (self.paused.add if on else self.paused.discard)(qube)
        self.nodes[qube].wake()
        self._changed()

    def reboot(self, names: Sequence[str]) -> None:
        """See Driver. Here they start in any order."""
        running = list(self.nodes)
        for name in running:
            self._halt(name)
        self._boots += 1
        for name in (name for name in running if name.startswith("disp")):
            del self.vms[name]
        self.service = self._new_service()
        self._refresh()
        for name in self._random.sample(names, len(names)):
            self.start(name)

    # Faults

    def disturb(self, qube: str, mischief: Mischief) -> None:
        """See Driver."""
        node = self.nodes[qube]
        ours = mischief in (Mischief.FLUSH_TABLE, Mischief.DELETE_TABLE)
        if mischief is Mischief.FLUSH_CHAINS:
            chains = [f"{ip} qubes custom-{hook}" for ip in ("ip", "ip6") for hook in ("input", "forward")]
            node.nft.run("".join(f"flush chain {chain}\n" for chain in chains))
        elif ours:
            verb = "flush" if mischief is Mischief.FLUSH_TABLE else "delete"
            node.nft.run("".join(f"{verb} table {ip} qubes-port-forward\n" for ip in ("ip", "ip6")))
        else:
            node.nft.run("flush ruleset")
            if mischief is Mischief.RELOAD_BASE:
                node.load_base()
                node.wires = None
                self.wire()
        if mischief is not Mischief.FLUSH_CHAINS:
            node.firewall.forget()
        node.wake()

    def restart(self, fault: Fault, qube: str) -> None:
        """See Driver."""
        if fault is Fault.AGENT:
            self.nodes[qube].start_agent()
        elif fault is Fault.QUBESD:
            self._away = False
            self.service = self._new_service()
            self._refresh()
        else:
            # Both daemons are started anew with the values of the other side; what is lost are watches.
            node = self.nodes[qube]
            node.database.stop()
            node.database.start()
            node.wake()

    def away(self, fault: Fault, qube: str, gone: bool) -> None:
        """See Driver."""
        if fault is Fault.QUBESD:
            self._away = gone
            if not gone:
                self.restart(fault, qube)
        elif gone:
            self.nodes[qube].present = False
        else:
            self.nodes[qube].start_agent()

    def install_agent(self, qube: str, installed: bool) -> None:
        """See Driver."""
        self.away(Fault.AGENT, qube, not installed)
        self._feature(qube, limits.FEATURE_AGENT, "1" if installed else "")

    def arm(self, qube: str, steps: int) -> None:
        """See Driver."""
        self.nodes[qube].fuse.arm(steps)

    def die_publishing(self, qube: str, lines: str, steps: int) -> None:
        """See Driver."""
        self._fuse.arm(steps)
        with contextlib.suppress(KilledError):
            self.set_forwards(qube, lines)
        self._fuse.arm(0)
        self._away = True

    def die_saving(self, qube: str, lines: str, steps: int) -> bool:
        """See Driver."""
        path = self.vms[qube].firewall.path
        before = path.read_bytes() if path.exists() else b""
        child = os.fork()
        if child == 0:
            try:
                die_at_line(steps, {store.__file__})
                self.service.set(self.vms[qube], lines)
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        return before != (path.read_bytes() if path.exists() else b"")

    def wait(self, seconds: int) -> None:
        """See Driver."""
        self._time += seconds
