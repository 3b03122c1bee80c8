# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""A forward as a sentence: who can reach what, where, and until when; or what is in the way and what to do about it.

Takes values, gives plain English in printable ASCII; does no I/O.
"""

import time
from collections.abc import Iterable
from typing import NamedTuple

from portfwd.api.diagnosis import Diagnosis
from portfwd.api.status import HopState
from portfwd.client.forward_state import NOT_UNDERSTOOD, Fault, RuleStatus, State, unconfirmed
from portfwd.model.forward import ForwardRule, ForwardType, Lifetime
from portfwd.wire import limits
from portfwd.wire.answers.report import Listening
from portfwd.wire.values import (
    Family,
    HostName,
    IPAddress,
    IPNetwork,
    PortRange,
    QubeName,
    SourceWord,
    family_of,
)

_ADDRESSES_MAX = 4
_DAY = 86400


class _Explained(NamedTuple):
    what: str
    advice: str


_FAULTS = {
    "no-net-qube": _Explained("", "give it one: qvm-prefs {qube} netvm NAME"),
    "halted": _Explained("{hop} is not running", "start {hop}"),
    "no-agent": _Explained(
        "{hop} has no port forwarding agent", "install qubes-port-forwarding-agent in its template and restart {hop}"
    ),
    "tor-gateway": _Explained(
        "{hop} is a Tor gateway and takes no forwards", "use another net qube for {qube}, or do without this forward"
    ),
    "denied": _Explained(
        "{hop} forbids forwards", f"if it should allow them: qvm-features --unset {{hop}} {limits.FEATURE_DENY}"
    ),
    "vpn": _Explained(
        "{hop} is a VPN qube, and an external forward would go around its tunnel",
        f"use --internal, or let forwards cross: qvm-features {{hop}} {limits.FEATURE_TRANSIT} 1",
    ),
    "way-unknown": _Explained(
        "{hop} does not tell whether what it sends leaves by a VPN's tunnel",
        "look at its service: systemctl status qubes-port-forward in {hop}",
    ),
    "no-address": _Explained("", "switch that version on for {hop}, or choose other clients"),
    "conflict": _Explained("", "choose another port (--pick-port), or remove the other one"),
    "too-wide": _Explained("", "use the same range on both sides, or several smaller rules"),
    "too-many": _Explained("", "remove forwards that are no longer needed"),
    "no-clients": _Explained("", "say who its clients are (edit --from), or remove the forward"),
    "outermost": _Explained("", "remove the forward"),
    HopState.PLANNED: _Explained("{hop} has not been told yet", "see if its QubesDB answers; restart {hop} if not"),
    HopState.WRITTEN: _Explained(
        "{hop} has not answered yet", "look at its service: systemctl status qubes-port-forward in {hop}"
    ),
    HopState.UNKNOWN: _Explained(
        "{hop} has not answered since its last change",
        "look at its service: systemctl status qubes-port-forward in {hop}",
    ),
    HopState.INCOMPLETE: _Explained("{hop} has not received everything yet", "if that lasts, restart {hop}"),
    HopState.UNCLEAR: _Explained(
        "{hop} answers what dom0 does not understand", "update the agent in its template; if it is new, distrust {hop}"
    ),
    HopState.REFUSED: _Explained("the agent of {hop} refuses this forward", "update the agent in its template"),
    HopState.CLASH: _Explained("another forward holds the port in {hop}", "remove one of the two"),
    HopState.OCCUPIED: _Explained(
        "{hop} itself uses {srcport}", "choose another port (--pick-port), or stop that program in {hop}"
    ),
    HopState.EXPIRED: _Explained("its time is over in {hop}", "give it a new end (edit --for)"),
    HopState.UNRESOLVED: _Explained(
        "{hop} finds no address for the client's name", "see the name and the DNS of {hop}, or give an address"
    ),
    HopState.NO_BASE: _Explained("the Qubes firewall of {hop} is not loaded", "restart {hop}"),
    HopState.NO_ROUTE: _Explained(
        "{hop} has no interface to the qube behind it", "if that lasts, set the netvm of that qube anew, or restart it"
    ),
    HopState.NOT_FORWARDING: _Explained("{hop} does not forward packets", "if that lasts, restart {hop}"),
    HopState.RESTART: _Explained("{hop} still has the address that it was started with", "restart {hop}"),
    HopState.FAILED: _Explained(
        "the kernel of {hop} refuses the forward", "see the journal: journalctl -u qubes-port-forward in {hop}"
    ),
    NOT_UNDERSTOOD: _Explained("dom0 tells of {hop} what this program does not know", "update this program"),
    State.NO_SERVER: _Explained("nothing listens on {dstport} in {hop}", "start the server in {hop}"),
    State.SERVER_UNKNOWN: _Explained(
        "whether anything listens on {dstport} is not known, since {hop} does not tell",
        "look at its service: systemctl status qubes-port-forward in {hop}",
    ),
    State.LOCAL_ONLY: _Explained(
        "the server in {hop} listens on {loopback} only", "let it listen on {everywhere} or on the address of {hop}"
    ),
}
_UNKNOWN = _Explained("", "see the journal of qubesd in dom0")
"""For a reason that this client does not know, and those with an empty sentence above: dom0's sentence explains it."""


def clients(rule: ForwardRule, entrance: QubeName | None) -> str:
    """Who may connect: LAN hosts, 192.168.1.20, Hosts in 10.0.0.0/8..."""
    source = rule.srchost
    internal = rule.forwardtype is ForwardType.INTERNAL
    behind = f"behind {entrance}" if entrance else "behind the same net qube"
    if source is SourceWord.NEIGHBOURS:
        return f"Qubes {behind}" if internal else "LAN hosts"
    if source is SourceWord.ANYONE:
        return f"Everyone {behind}, tunnels included," if internal else "Anyone"
    if isinstance(source, HostName):
        return source
    if source.prefixlen == 0:
        return f"Everyone {behind} with IPv{source.version}" if internal else f"Anyone with IPv{source.version}"
    if not _is_prefix(source):
        return str(source.network_address)
    return f"{'Qubes' if internal else 'Hosts'} in {source}"


def clients_short(rule: ForwardRule) -> str:
    """Who may connect, for a table: neighbours, any, a name, an address or a prefix."""
    source = rule.srchost
    # A single address is written without its prefix length; in IPv6 /32 is a network.
    return str(source) if isinstance(source, str) or _is_prefix(source) else str(source.network_address)


def _is_prefix(source: IPNetwork) -> bool:
    return source.prefixlen < source.max_prefixlen


def target(qube: QubeName, rule: ForwardRule) -> str:
    """What they reach: work's port 8443."""
    return f"{qube}'s {_ports(rule.dstports)}"


def place(address: IPAddress, ports: PortRange) -> str:
    """An address and ports as a client types them: 192.168.1.10:443, [2001:db8::1]:443."""
    return f"{f'[{address}]' if family_of(address) is Family.V6 else address}:{ports.short}"


def entrances(rule: ForwardRule, addresses: Iterable[IPAddress], entrance: QubeName | None) -> str:
    """Where they reach it: tcp 192.168.1.10:443 or [2001:db8::1]:443."""
    protos = " and ".join(rule.protos)
    places = [place(address, rule.srcports) for address in addresses]
    if not places:
        where = entrance or ("the net qube" if rule.forwardtype is ForwardType.INTERNAL else "the outermost net qube")
        return f"{protos} {_ports(rule.srcports)} of {where}"
    more = [f"{len(places) - _ADDRESSES_MAX} more addresses"] if len(places) > _ADDRESSES_MAX else []
    return f"{protos} {' or '.join(places[:_ADDRESSES_MAX] + more)}"


def until(rule: ForwardRule, qube: QubeName, now: float) -> str:
    """The end of a rule with a leading space, or '': ' until 15:30', ' until work shuts down'."""
    if rule.expire is None:
        return ""
    if rule.expire is Lifetime.REBOOT:
        return " until the computer restarts"
    if rule.expire is Lifetime.SHUTDOWN:
        return f" until {qube} shuts down"
    return f" until {local_time(rule.expire, now)}"


def local_time(moment: float, now: float) -> str:
    """A time in local time, with as much of the date as is needed."""
    then, today = time.localtime(moment), time.localtime(now)
    # Within the present minute the time alone would look like now.
    clock = time.strftime("%H:%M" if abs(moment - now) >= 60 else "%H:%M:%S", then)
    if then[:3] == today[:3]:
        return clock
    noon = time.mktime((*today[:3], 12, 0, 0, 0, 0, -1))
    if then[:3] == time.localtime(noon + _DAY)[:3]:
        return f"tomorrow {clock}"
    return f"{then.tm_year:04}-{then.tm_mon:02}-{then.tm_mday:02} {clock}"


def left(rule: ForwardRule, now: float) -> str:
    """The lifetime left, for a table: 2h05m, 3d, reboot, - for no end."""
    if rule.expire is None:
        return "-"
    return rule.expire.value if isinstance(rule.expire, Lifetime) else duration(max(0, rule.expire - int(now)))


def duration(seconds: int) -> str:
    """Seconds in the two largest units that matter: 45s, 12m, 2h05m, 3d04h."""
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m"
    if seconds < _DAY:
        return f"{seconds // 3600}h{seconds % 3600 // 60:02}m"
    return f"{seconds // _DAY}d{seconds % _DAY // 3600:02}h"


def opened(status: RuleStatus, now: float, can: str = "can now reach") -> str:
    """'LAN hosts can now reach work's port 8443 at tcp 192.168.1.10:443 until 15:30'."""
    rule = status.rule
    where = entrances(rule, status.addresses, status.entrance)
    who, what = clients(rule, status.entrance), target(status.qube, rule)
    return f"{who} {can} {what} at {where}{until(rule, status.qube, now)}"


def told(status: RuleStatus, now: float, can: str = "can reach") -> str:
    """The state of a forward in a sentence, with advice where something has to be done."""
    if status.in_doubt:
        return f"{_told(status, now, can)}; {unconfirmed(status.silent)}"
    return _told(status, now, can)


def _told(status: RuleStatus, now: float, can: str) -> str:
    if status.state is State.OPEN:
        return opened(status, now, can)
    if status.state is State.PAUSED:
        return f"{target(status.qube, status.rule)} is not open: the forward is paused"
    if status.fault is None:
        return f"{target(status.qube, status.rule)}: {status.state}"
    what, advice = explained(status, status.fault)
    if status.state.passes:
        return f"{opened(status, now, can)}, but {what}; {advice}"
    not_open = {
        State.PENDING: "is not open yet",
        State.PARTLY: "is only partly open",
        State.UNCLEAR: "may not be open",
        State.UNKNOWN: "may be open or not",
    }
    return f"{target(status.qube, status.rule)} {not_open.get(status.state, 'is not open')}: {what}; {advice}"


def notes(found: Iterable[RuleStatus]) -> list[str]:
    """What the entrances of these forwards ignore, each sentence once."""
    told_by = {(status.entrance, status.note): None for status in found if status.note}
    return [f"Note: {entrance} says that {note}" for entrance, note in told_by]


def outcome(diagnosis: Diagnosis) -> str:
    """The last word of a check."""
    fault = diagnosis.fault
    if fault is not None:
        return f"{fault.hop} is where it ends ({fault.cause})."
    return "No fault was found." if diagnosis.opens else "Whether packets pass could not be found out."


def explained(status: RuleStatus, fault: Fault) -> tuple[str, str]:
    """Two sentences: what is wrong, and what to do about it."""
    local = {hop.entry.family for hop in status.hops if hop.listening is Listening.LOCAL}
    only_ipv6 = local == {Family.V6}
    words = {
        "qube": status.qube,
        "hop": fault.hop,
        "srcport": _one_of(status.rule.srcports),
        "dstport": _one_of(status.rule.dstports),
        "loopback": "::1" if only_ipv6 else "127.0.0.1",
        "everywhere": "::" if only_ipv6 else "0.0.0.0",  # noqa: S104 - advice for a server, not a bind
    }
    known = _FAULTS.get(fault.reason, _UNKNOWN)
    what = known.what.format(**words) or fault.text.replace("'", "") or f"{fault.hop} is in the way"
    return what, known.advice.format(**words)


def _ports(ports: PortRange) -> str:
    return f"port{'s' if len(ports) > 1 else ''} {ports.short}"


def _one_of(ports: PortRange) -> str:
    return f"port {ports.short}" if len(ports) == 1 else f"a port of {ports.short}"
