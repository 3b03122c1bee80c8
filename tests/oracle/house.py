# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The laboratory of house.toml as a Driver: real kernels, real agents, real packets."""

import contextlib
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from lab.client import ApiError, Lab
from lab.dom0 import gather
from lab.inside.vpn import CONFIG
from portfwd.dom0.planning.tunnels import ABSENT_SECONDS
from portfwd.wire import limits
from portfwd.wire.acknowledgement import WAY_OUT, WayOut
from tests.oracle.driver import Fault, Mischief, Refused
from tests.oracle.house_forged import Heard, forgeries, send
from tests.oracle.house_net import NETWORKS, PORTS, TARGETS, HouseNet, address
from tests.oracle.kernel import read_doors, read_near
from tests.oracle.rules import Doors, Forged, Home, Qube

QUBES = {
    "sys-net": None,
    "sys-firewall": "sys-net",
    "sys-spare": "sys-net",
    "work": "sys-firewall",
    "personal": "sys-firewall",
    "media": "sys-spare",
}
DEADLINE = 40.0
"""Seconds for an event to arrive everywhere; it takes some tenths on a loaded machine."""
_CLEAR = 1.5
"""Seconds that the questions after an event may take, so that no rule may end within them."""
_FLUSHES = {
    Mischief.FLUSH_CHAINS: "".join(
        f"flush chain {ip} qubes custom-{hook}\n" for ip in ("ip", "ip6") for hook in ("input", "forward")
    ),
    Mischief.FLUSH_TABLE: "flush table ip qubes-port-forward\nflush table ip6 qubes-port-forward\n",
    Mischief.DELETE_TABLE: "delete table ip qubes-port-forward\ndelete table ip6 qubes-port-forward\n",
}
_FAKE = {"net.fake-ip": "192.168.200.5", "net.fake-gateway": "192.168.200.1"}
_NAMES = itertools.count(1)


class House(HouseNet):
    """See Driver. `seconds` gets how long each event took to arrive everywhere."""

    ports = PORTS
    targets = TARGETS
    mischiefs = tuple(_FLUSHES)
    can = frozenset({"disposable", "detach", "reboot", "tunnel"})

    def __init__(self, seconds: list[float]) -> None:
        self._stack = contextlib.ExitStack()
        super().__init__(self._stack.enter_context(Lab(f"oracle-{os.getpid()}-{next(_NAMES)}", str(_TOPOLOGY))))
        try:
            known = self.lab.call("dom0", gather)
            self._addresses = {name: {4: known[name]["ip"], 6: known[name]["ip6"]} for name in QUBES}
            self.seconds = seconds
            self._happened = time.monotonic()
            self._away = False
            self._boots = itertools.count(2)
            self._heard = Heard(Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="oracle-"))))
            for name in QUBES:
                # After a restart of the host what ran before is started, and nothing else.
                self.lab.set(name, "autostart", "False")
                self._serve(name)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """See Driver."""
        self._stack.close()

    def home(self) -> Home:
        """See Driver."""
        qubes = {
            name: Qube(name, netvm, self._addresses[name], provides=name.startswith("sys-"))
            for name, netvm in QUBES.items()
        }
        return Home(qubes, self.now())

    def now(self) -> int:
        """See Driver."""
        return int(time.time())

    # Rules

    def set_forwards(self, qube: str, lines: str) -> None:
        """See Driver."""
        self._began()
        try:
            self.lab.api(qube, "admin.vm.firewall.Set", "forward", lines)
        except ApiError as error:
            raise Refused(str(error)) from None

    def set_ordinary(self, qube: str, drop: bool) -> None:
        """See Driver."""
        self._began()
        self.lab.api(qube, "admin.vm.firewall.Set", "", f"action={'drop' if drop else 'accept'}\n")

    def reload(self, qube: str) -> None:
        """See Driver."""
        self._began()
        self.lab.api(qube, "admin.vm.firewall.Reload")

    # Network

    def set_netvm(self, qube: str, netvm: str | None) -> None:
        """See Driver."""
        self._began()
        self.lab.set(qube, "netvm", netvm or "")

    def follow_default(self, qube: str, netvm: str) -> None:
        """See Driver."""
        del netvm
        self._began()
        self.lab.reset(qube, "netvm")

    def set_default(self, netvm: str, followers: list[str]) -> None:
        """See Driver."""
        del followers
        self._began()
        self.lab.api("dom0", "admin.property.Set", "default_netvm", netvm)

    def set_address(self, qube: str, address: str) -> None:
        """See Driver."""
        self._began()
        self.lab.set(qube, "ip", address)

    def ipv6_of(self, home: Home) -> list[str]:
        """Halted qubes that are no net qubes: of a running one the address does not change inside."""
        return [q.name for q in home.qubes.values() if not q.running and not q.provides]

    def set_ipv6(self, qube: str, on: bool) -> None:
        """See Driver."""
        self._began()
        self.lab.feature(qube, "ipv6", "1" if on else "")

    def set_fake_address(self, qube: str, on: bool) -> None:
        """See Driver."""
        self._began()
        for name, value in _FAKE.items():
            self.lab.feature(qube, name, value if on else None)

    def set_provides(self, qube: str, provides: bool) -> None:
        """See Driver."""
        self._began()
        self.lab.set(qube, "provides_network", str(provides))

    def set_refusal(self, qube: str, refuses: bool, tor: bool) -> None:
        """See Driver."""
        self._began()
        for name, wanted in (("tag", refuses and tor), ("feature", refuses and not tor)):
            method, word = (name, limits.TAG_TOR_GATEWAY) if name == "tag" else (name, limits.FEATURE_DENY)
            if wanted:
                self.lab.api(qube, f"admin.vm.{method}.Set", word, "" if name == "tag" else "1")
            else:
                with contextlib.suppress(ApiError):
                    self.lab.api(qube, f"admin.vm.{method}.Remove", word)

    def set_transit(self, qube: str, transit: bool) -> None:
        """See Driver."""
        self._began()
        self.lab.feature(qube, limits.FEATURE_TRANSIT, "1" if transit else None)

    def may_tunnel(self, home: Home, qube: str) -> bool:
        """See Driver. One VPN qube, whose program finds its server when it starts."""
        above = home.above(qube)
        return qube == "sys-spare" and bool(above) and all(hop.running and not hop.paused for hop in above)

    def set_tunnel(self, qube: str, tunnel: bool) -> None:
        """See Driver."""
        self._began()
        if tunnel:
            self.lab.vpn(qube, "up")
            return
        self.lab.vpn(qube, "down")
        self.lab.run(qube, ["rm", "-f", str(CONFIG)], check=True)
        deadline = time.monotonic() + DEADLINE
        while self._way_out(qube) == WayOut.TUNNEL and time.monotonic() < deadline:
            time.sleep(0.02)
        # dom0 believes that when it was said for a while, and the user must take back what it remembers.
        time.sleep(ABSENT_SECONDS + 1)
        with contextlib.suppress(ApiError):
            self.lab.feature(qube, limits.FEATURE_VPN, None)
        self._began()

    def _way_out(self, qube: str) -> str:
        argv = ["qubesdb-read", "-e", "", limits.STATUS + WAY_OUT]
        return str(self.lab.run(qube, argv, capture_output=True, text=True, check=True).stdout).strip()

    # Qubes

    def clone(self, qube: str, new: str) -> Qube:
        """See Driver."""
        self._began()
        self.lab.clone(qube, new)
        return self._new(new, {"ipv6": "1", "net.fake-ip": None, "net.fake-gateway": None})

    def create(self, name: str, netvm: str, address: str | None) -> Qube:
        """See Driver."""
        self._began()
        self.lab.create(name, netvm)
        if address:
            self.lab.set(name, "ip", address)
        return self._new(name, {"ipv6": "1"})

    def disposable(self, template: str) -> Qube:
        """See Driver."""
        self._began()
        name = self.lab.disposable(template)
        self._serve(name)
        qube = self._new(name, {})
        qube.running = qube.disposable = True
        return qube

    def remove(self, qube: str) -> None:
        """See Driver."""
        self._began()
        self.lab.remove(qube)

    def start(self, qube: str) -> None:
        """See Driver."""
        self._began()
        self.lab.start(qube)
        self._began()
        self._serve(qube)

    def kill(self, qube: str) -> None:
        """See Driver."""
        self._began()
        if self._away:
            self.lab.ask("destroy", name=qube)
        else:
            self.lab.kill(qube)

    def shut_down(self, qube: str) -> None:
        """See Driver."""
        self._began()
        self.lab.stop(qube, force=True)

    def pause(self, qube: str, on: bool) -> None:
        """See Driver."""
        self._began()
        (self.lab.pause if on else self.lab.unpause)(qube)

    def reboot(self, names: Sequence[str]) -> None:
        """See Driver. The power fails: nobody is told, and what was kept for as long as the host runs is gone."""
        listed = self.lab.api("dom0", "admin.vm.List").splitlines()
        running = [line.split(" ")[0] for line in listed if "state=Running" in line or "state=Paused" in line]
        self.lab.service("dom0", "qubesd", "stop")
        for name in running:
            if name != "dom0":
                self.lab.ask("destroy", name=name)
        words = f"echo oracle-{next(self._boots)} > /run/boot_id; rm -f /var/run/qubes/port-forward-ends"
        self.lab.run("dom0", ["sh", "-c", words], check=True)
        self.lab.service("dom0", "qubesd", "start")
        for name in names:
            self.lab.start(name)
            self._serve(name)
        self._began()

    # Faults

    def disturb(self, qube: str, mischief: Mischief) -> None:
        """See Driver."""
        self._began()
        self.lab.run(qube, ["nft", "-f", "-"], input=_FLUSHES[mischief].encode(), check=True, timeout=DEADLINE)

    def restart(self, fault: Fault, qube: str) -> None:
        """See Driver."""
        self._began()
        self.lab.service(*_service(fault, qube), "kill")

    def away(self, fault: Fault, qube: str, gone: bool) -> None:
        """See Driver."""
        self._began()
        if fault is Fault.QUBESD:
            self._away = gone
        self.lab.service(*_service(fault, qube), "stop" if gone else "start")

    def install_agent(self, qube: str, installed: bool) -> None:
        """See Driver."""
        self._began()
        (self.lab.install_agent if installed else self.lab.uninstall_agent)(qube)

    def wait(self, seconds: int) -> None:
        """See Driver."""
        time.sleep(seconds)
        self._began()

    def settle(self, home: Home) -> Iterator[None]:
        """See Driver."""
        qubes = home.qubes.values()
        dead = [q.name for q in qubes if q.silent or not q.agent]
        self.lab.converge(DEADLINE, dead, [q.name for q in qubes if q.unplugged])
        deadline = time.monotonic() + DEADLINE
        while time.monotonic() < deadline:
            home.now = self.now()
            if self._near_is_right(home) and all(
                home.stands(name, self.doors(name), doors) for name, doors in home.doors().items()
            ):
                break
        self.seconds.append(time.monotonic() - self._happened)
        silent = [q.silent for q in home.qubes.values() if q.silent]
        rules = [r for h in (home, *silent) for q in h.qubes.values() for _, r in q.rules]
        while any(isinstance(r.expire, int) and -0.3 < r.expire - time.time() < _CLEAR for r in rules):
            time.sleep(0.05)
        yield from ()

    def forgeries(self, home: Home) -> list[Forged]:
        """See Driver."""
        return forgeries(home, self.cards)

    def forge(self, home: Home, forged: Sequence[Forged]) -> list[tuple[str, int] | None]:
        """See Driver."""
        return send(self.lab, self._heard, home, forged)

    def doors(self, qube: str) -> Doors:
        """See Driver."""
        return self.lab.call(qube, read_doors)

    def _near_is_right(self, home: Home) -> bool:
        if not home.qubes["sys-net"].running or home.qubes["sys-net"].silent:
            return True
        wanted = {(name, f"{NETWORKS[network][0]}.0/24") for name, (network, _) in self.cards.items()}
        return self.lab.call("sys-net", read_near) in (set(), wanted)

    def _new(self, name: str, features: dict[str, str | None]) -> Qube:
        for feature, value in features.items():
            with contextlib.suppress(ApiError):
                self.lab.feature(name, feature, value)
        if features:
            self.lab.feature(name, limits.FEATURE_AGENT, "1")
        words = self.lab.call("dom0", gather)[name]
        by_default = self.lab.api(name, "admin.vm.property.Get", "netvm").startswith("default=True")
        own = {4: words["ip"] or "10.137.0.0", 6: words["ip6"]}
        if not words["ip"]:
            own = address("lan", 0)
        return Qube(name, words["netvm"] or None, own, running=False, by_default=by_default)

    def _began(self) -> None:
        self._happened = time.monotonic()

    def _serve(self, name: str) -> None:
        span = f"{TARGETS[0]}-{TARGETS[-1]}"
        argv = [sys.executable, "-I", "-m", "lab.inside.server", "--tcp", span, "--udp", span, "--tell"]
        # A file, which nobody has to read for the server to go on.
        told = self._heard.file(name)
        with told.open("a") as file:
            server = self.lab.popen(name, argv, stdout=file)
        self._stack.callback(_end, server)
        deadline = time.monotonic() + DEADLINE
        while "serving\n" not in told.read_text():
            assert server.poll() is None, name
            assert time.monotonic() < deadline, name
            time.sleep(0.01)


_TOPOLOGY = Path(__file__).parent / "house.toml"


def _service(fault: Fault, qube: str) -> tuple[str, str]:
    names = {Fault.AGENT: "port-forward-agent", Fault.QUBESDB: "qubesdb-daemon"}
    return ("dom0", "qubesd") if fault is Fault.QUBESD else (qube, names[fault])


def _end(server: "subprocess.Popen[bytes]") -> None:
    with server:
        server.kill()
