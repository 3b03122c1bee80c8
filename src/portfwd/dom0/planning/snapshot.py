# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The only reader of qubesd's objects: one look at all qubes, frozen, for the planner.

Takes the `qubes.Qubes` application object (or the laboratory's, which has the same attributes), gives a Snapshot.
A qube that cannot be read is left out of the snapshot, so no port is opened for or through it.
"""

import logging
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from types import MappingProxyType
from typing import Any

from portfwd.base.qubesdb_client import Store
from portfwd.dom0.planning.claims import Holders
from portfwd.dom0.planning.tunnels import WayReport
from portfwd.dom0.storage.store import StoredForward
from portfwd.wire import limits
from portfwd.wire.acknowledgement import WAY_OUT, Acknowledgement, WayOut
from portfwd.wire.errors import RefusedError, shown
from portfwd.wire.values import Family, IPAddress, QubeName, RuleId, parse_address

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Qube:
    """The planner's view of one qube. `session` names the present run of the qube ('' when halted)."""

    name: QubeName
    netvm: QubeName | None = None
    running: bool = False
    ip: IPv4Address | None = None
    ip6: IPv6Address | None = None
    agent: bool = False
    provides_network: bool = False
    tor_gateway: bool = False
    denies: bool = False
    tunnel: bool = False
    """A VPN qube: its agent reports, or has reported before, that the qube's own traffic leaves by a tunnel."""
    way_untold: bool = False
    """Whether it is a VPN qube is not known: its agent works and does not report its way out."""
    vpn: str | None = None
    """The feature by which dom0 remembers a VPN qube; empty to remember nothing, None when it is not set."""
    transit: bool = False
    """The user lets external forwards cross it nevertheless."""
    session: str = ""
    forwards: tuple[StoredForward, ...] = ()
    damage: str = ""
    """Why its own forwards, none of which is open, cannot be read; '' if they can. Those of others still cross it."""

    def address(self, family: Family) -> IPAddress | None:
        """The qube's own address as its net qube sees it, in that family."""
        return self.ip if family is Family.V4 else self.ip6


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All qubes at one moment. `now` is in epoch seconds; `boot_id` names the present run of the host.

    `over`: rules that have expired, even if the clock has been set back since. `held`: who
    holds which ports, by the last plan.
    """

    qubes: Mapping[QubeName, Qube]
    now: int
    boot_id: str = ""
    unread: tuple[str, ...] = field(default=())
    over: frozenset[tuple[QubeName, RuleId]] = frozenset()
    held: Holders = field(default_factory=Holders)

    def path(self, name: QubeName) -> tuple[Qube, ...]:
        """The net qubes above a qube, its own first and the outermost last. Ends at an unknown qube or a loop."""
        path: dict[QubeName, Qube] = {}
        hop = self.qubes[name].netvm
        while hop is not None and hop in self.qubes and hop not in path:
            path[hop] = self.qubes[hop]
            hop = path[hop].netvm
        return tuple(path.values())


def take_snapshot(
    app: Any, now: int, boot_id: str, tunnels: Container[str] = (), untold: Container[str] = ()
) -> Snapshot:
    """Read every qube once. `tunnels`: qubes whose agent reports a tunnel; `untold`: those that report nothing.

    Never raises for one bad qube: it is logged, named in `unread` and left out.
    """
    qubes: dict[QubeName, Qube] = {}
    unread: list[str] = []
    for vm in app.domains:
        name = str(getattr(vm, "name", ""))
        if getattr(vm, "klass", "") == "AdminVM":
            continue
        try:
            qube = _read(vm, tunnels, untold)
        except Exception as error:
            log.warning("port forwarding: cannot read qube %s: %s", name, error)
            unread.append(name)
        else:
            qubes[qube.name] = qube
    return Snapshot(MappingProxyType(qubes), now, boot_id, tuple(unread))


def _read(vm: Any, tunnels: Container[str], untold: Container[str]) -> Qube:
    netvm = getattr(vm, "netvm", None)
    running = runs(vm)
    ip = _address(getattr(vm, "ip", None))
    # With net.fake-ip the vif passes no IPv6 (vif-qubes-nat.sh), whatever address the qube has.
    ip6 = None if vm.features.check_with_template("net.fake-ip", None) else _address(getattr(vm, "ip6", None))
    agent = bool(vm.features.check_with_template(limits.FEATURE_AGENT, None))
    vpn = vm.features.check_with_template(limits.FEATURE_VPN, None)
    says_tunnel = running and agent and str(vm.name) in tunnels
    forwards, damage = _forwards(vm)
    return Qube(
        name=QubeName(str(vm.name)),
        netvm=QubeName(str(netvm.name)) if netvm is not None else None,
        running=running,
        ip=ip if isinstance(ip, IPv4Address) else None,
        ip6=ip6 if isinstance(ip6, IPv6Address) else None,
        provides_network=bool(getattr(vm, "provides_network", False)),
        agent=agent,
        tor_gateway=limits.TAG_TOR_GATEWAY in vm.tags,
        denies=bool(vm.features.check_with_template(limits.FEATURE_DENY, None)),
        tunnel=bool(getattr(vm, "provides_network", False)) and (bool(vpn) or says_tunnel),
        way_untold=running and agent and str(vm.name) in untold,
        vpn=vpn,
        transit=bool(vm.features.check_with_template(limits.FEATURE_TRANSIT, None)),
        session=session_of(vm) if running else "",
        forwards=forwards,
        damage=damage,
    )


def _forwards(vm: Any) -> tuple[tuple[StoredForward, ...], str]:
    """The forwards of a qube, or none and the reason when they cannot be read; it stays a hop for others."""
    try:
        return tuple(vm.firewall.forwards), ""
    except Exception as error:
        return (), shown(error) if not isinstance(error, RefusedError) else str(error)


def runs(vm: Any) -> bool:
    """Whether a qube runs and is in use; a preloaded disposable is not in use yet."""
    return bool(vm.is_running()) and not getattr(vm, "is_preload", False)


def may_run(vm: Any) -> bool:
    """Whether a qube runs, or cannot be asked. Never raises."""
    try:
        return bool(vm.is_running())
    except Exception as error:
        log.warning("port forwarding: whether %s runs is not known: %s", vm.name, error)
        return True


def reports_way_out(vm: Any) -> bool:
    """Whether a qube is a running net qube whose agent reports its way out. Never raises."""
    try:
        return vm.klass != "AdminVM" and bool(getattr(vm, "provides_network", False)) and runs(vm)
    except Exception as error:
        log.warning("port forwarding: whether %s sends into a tunnel is not known: %s", vm.name, error)
        return False


def session_of(vm: Any) -> str:
    """A name of the qube's present run: the same during one run, another for the next."""
    return f"{getattr(vm, 'xid', -1)}@{getattr(vm, 'start_time', None) or 0}"


def read_way_out(_name: QubeName, database: Store) -> WayReport:
    """The way out that the qube's agent reports. A qube that lies closes forwards through it, or leads them astray.

    An agent that has acknowledged a commit has reported it before, if it knows.
    """
    try:
        said = _way_out(database)
        if said is WayReport.NONE:
            untrusted_ack = database.read(limits.STATUS_BASE) or b""
            at_work = Acknowledgement.parse(untrusted_ack.decode("ascii", "replace")).generation > 0
            # Both keys may have been written since the first look.
            return _way_out(database) if at_work else WayReport.UNREAD
    except (RuntimeError, OSError, RefusedError):
        return WayReport.UNREAD
    return said


def _way_out(database: Store) -> WayReport:
    untrusted_word = database.read(limits.STATUS + WAY_OUT)
    words = {WayOut.TUNNEL.value.encode(): WayReport.TUNNEL, WayOut.UPLINK.value.encode(): WayReport.UPLINK}
    return words.get(untrusted_word or b"", WayReport.NONE)


def _address(value: object) -> IPAddress | None:
    return parse_address(str(value)) if value else None
