# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The words and sentences of a diagnosis (dom0/diagnosis/judge.py): what is wrong and what to do about it. PURE text.

Names and numbers are dom0's own; nothing that a qube says is put into a sentence as it stands.
"""

from collections.abc import Sequence

from portfwd.api.diagnosis import Cause
from portfwd.api.status import HopState, Outbound
from portfwd.wire.answers.probe import RouteWord, Sight
from portfwd.wire.entry import Entry, Relay
from portfwd.wire.values import Family, IPAddress, IPNetwork, QubeName

GONE = "there is no such forward (any more)"
EXPIRED = "the time of this forward is over"
PAUSED = "this forward is paused; resume it"

_STATES = {
    HopState.PLANNED: (Cause.NOT_WRITTEN, "dom0 could not write into the QubesDB of '{}'; restart that qube"),
    HopState.WRITTEN: (Cause.NOT_ACKNOWLEDGED, "the agent in '{}' has not done its part yet"),
    HopState.UNKNOWN: (Cause.NOT_ACKNOWLEDGED, "the agent in '{}' has not answered since its last change"),
    HopState.UNCLEAR: (Cause.UNCLEAR, "what '{}' says of its part cannot be read; restart its agent"),
    HopState.RESTART: (Cause.RESTART_NEEDED, "'{}' still uses its old address; restart it"),
    HopState.INCOMPLETE: (
        Cause.HALF_SET,
        "only a part of what dom0 wrote is in the QubesDB of '{}'; restart that qube",
    ),
    HopState.FAILED: (Cause.FAILED, "nft refuses the rules in '{}'; see the journal of its agent"),
    HopState.REFUSED: (Cause.OLDER_AGENT, "the agent in '{}' does not know this kind of entry; update it"),
    HopState.CLASH: (Cause.CLASH, "two entries want the same port in '{}'"),
    HopState.EXPIRED: (Cause.EXPIRED, "the time of this forward is over by the clock of '{}'"),
    HopState.UNRESOLVED: (Cause.UNRESOLVED, "'{}' finds no address for the host name of the clients"),
    HopState.NO_BASE: (Cause.NO_BASE, "'{}' has no base firewall; restart its qubes-iptables service"),
}


def of_state(name: QubeName, state: HopState, entry: Entry) -> tuple[Cause, str]:
    """The cause and sentence for an entry that is not applied."""
    if state is HopState.OCCUPIED:
        text = f"a program in '{name}' itself uses port {entry.listen.short}; stop it, or take another port"
        return Cause.OCCUPIED, text
    if state is HopState.NO_ROUTE and isinstance(entry, Relay):
        return Cause.NO_ROUTE, no_route(name, entry, None)
    if state is HopState.NOT_FORWARDING:
        return Cause.NOT_FORWARDING, not_forwarding(name, entry.family)
    cause, text = _STATES.get(state, (Cause.UNCLEAR, "'{}' says what dom0 does not understand; update its agent"))
    return cause, text.format(name)


def restart_needed(name: QubeName) -> str:
    """The qube still uses its old address, or its old value of the feature net.fake-ip."""
    return _STATES[HopState.RESTART][1].format(name)


def agent_dead(name: QubeName) -> str:
    """No agent process runs."""
    return f"the port forwarding agent in '{name}' does not run; start its service qubes-port-forward"


def no_address(name: QubeName, families: Sequence[Family]) -> str:
    """The planner's sentence, for the first hop without the address."""
    return f"'{name}' has no {' or '.join(f'IPv{int(family)}' for family in families)} address"


def qube_paused(name: QubeName) -> str:
    """The qube is paused."""
    return f"'{name}' is paused; unpause it"


def no_base(name: QubeName) -> str:
    """The base table or its custom chain is not there."""
    return _STATES[HopState.NO_BASE][1].format(name)


def rule_missing(name: QubeName, entry: Entry) -> str:
    """Our own rule is not in the custom chain."""
    return f"in '{name}' the chain {_chain(entry)} has been emptied; restart its agent"


def door_missing(name: QubeName) -> str:
    """The elements are not in our table."""
    return f"in '{name}' the nftables table qubes-port-forward does not open this port; restart its agent"


def not_forwarding(name: QubeName, family: Family) -> str:
    """The sysctl is off."""
    sysctl = "net.ipv4.ip_forward" if family is Family.V4 else "net.ipv6.conf.all.forwarding"
    return f"the kernel of '{name}' hands nothing on (sysctl {sysctl})"


def no_route(name: QubeName, entry: Relay, route: RouteWord | None) -> str:
    """The next hop is not behind a vif."""
    where = {RouteWord.UPLINK: "its uplink", RouteWord.TUNNEL: "a tunnel", RouteWord.LOCAL: "itself"}
    leads = f"leads to {where[route]}" if route in where else "is missing"
    return f"in '{name}' the route to {entry.to} {leads}; it should lead to a qube behind it"


def no_server(name: QubeName, entry: Entry) -> str:
    """Nothing listens."""
    return f"nothing listens on {entry.proto.value} port {entry.listen.short} in '{name}'; start the server"


def local_only(name: QubeName, entry: Entry) -> str:
    """The server listens on a loopback address only."""
    port = f"{entry.proto.value} port {entry.listen.short}"
    return f"the server on {port} in '{name}' listens on 127.0.0.1 or ::1 only; let it listen on 0.0.0.0 or ::"


def passed(name: QubeName, *, target: bool) -> str:
    """The probe was seen to go on."""
    return f"the probe reached '{name}'" if target else f"'{name}' handed the probe on"


def no_uplink(name: QubeName) -> str:
    """The entrance has no uplink by which a client could come."""
    return f"'{name}' has no uplink with an address by which clients of this rule could come; connect its network"


def no_client(name: QubeName) -> str:
    """No qube is there that could be a client of an internal forward."""
    return f"no other qube runs behind '{name}' that could be a client, so no probe was sent"


def not_probed(name: QubeName) -> str:
    """The hop did not answer in time, or not in the words of the probe."""
    return f"'{name}' does not answer the call for a probe; its part is known by looking only"


def cannot_probe(name: QubeName) -> str:
    """The entrance could not make the probe."""
    return f"'{name}' could not make a probe (its kernel lacks veth, clsact or mirred); the rest is by looking only"


def of_loss(cause: Cause, hops: Sequence[QubeName], place: int, sight: Sight | None) -> str:
    """The sentence for a probe, or its answer, that was lost at one hop."""
    name = hops[place]
    before = hops[place - 1] if place else "the uplink"
    behind = hops[place + 1] if place + 1 < len(hops) else "its program"
    chain = "custom-input" if place + 1 == len(hops) else "custom-forward"
    user = sight.before if sight is not None else 0
    whose = f"; rules of yours before ours in {chain}: {user}" if user else "; look for a table or chain of your own"
    return {
        Cause.NOT_ARRIVED: f"'{before}' handed the probe on, but it did not arrive in '{name}'; restart '{name}'",
        Cause.NOT_TRANSLATED: f"'{name}' took the probe for its own; its rules do not let this client in",
        Cause.NOT_ROUTED: f"the probe was lost in '{name}' before it was routed; a rule in prerouting, or no route",
        Cause.NOT_FOR_IT: f"'{name}' does not have the address to which the probe was sent; restart it",
        Cause.DROPPED: f"a firewall rule in '{name}' drops the probe{whose}",
        Cause.REJECTED: f"a firewall rule in '{name}' rejects the probe{whose}",
        Cause.REFUSED: f"the system of '{name}' refuses the connection although something listens on the port",
        Cause.NO_SERVER: f"nothing listens on that port in '{name}'; start the server",
        Cause.SILENT: f"the probe reached '{name}', but nothing answered; is the server stuck?",
        Cause.ANSWER_LOST: f"the answer of '{behind}' did not arrive in '{name}'; look at the routes of '{behind}'",
        Cause.ANSWER_DROPPED: f"a firewall rule in '{name}' drops the answer; look for a table or chain of your own",
    }[cause]


def wrong_source(client: IPAddress, allowed: IPNetwork) -> str:
    """The client is not in the rule's prefix."""
    return f"the rule is for clients in {allowed}, and {client} is none"


def wrong_family(client: IPAddress) -> str:
    """The forward has no way in the client's family."""
    return f"the forward has no IPv{client.version} way, so {client} cannot use it"


def not_a_neighbour(client: IPAddress, entrance: QubeName) -> str:
    """The client is in no network of the uplinks."""
    return f"the rule is for neighbours, and {client} is in no network of '{entrance}'; give the rule a srchost"


def sender_refused(name: QubeName) -> str:
    """The client qube's own ordinary rules refuse it."""
    return f"the firewall rules of '{name}' itself do not let it connect there"


def sender_may_be_refused(name: QubeName, word: Outbound) -> str:
    """The own rules of a qube that could be a client refuse it, in part or whole, or depend on host names."""
    if word is Outbound.UNKNOWN:
        return f"whether the firewall rules of '{name}' let it connect there depends on host names"
    partly = " for all ports and protocols of this rule" if word is Outbound.PARTLY else ""
    return f"the firewall rules of '{name}' do not let it connect there{partly}"


def private_uplink(entrance: QubeName, address: IPAddress) -> str:
    """The uplink has a private address: there is another NAT in front of it."""
    text = f"the uplink of '{entrance}' has the private address {address}"
    return f"{text}: for clients beyond it your router must forward, too"


def no_ipv6(name: QubeName) -> str:
    """Some qube on the way has IPv4 only."""
    return f"'{name}' has no IPv6 address, so this forward is open for IPv4 only"


def _chain(entry: Entry) -> str:
    return "custom-forward" if isinstance(entry, Relay) else "custom-input"
