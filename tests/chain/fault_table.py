# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Each fault of faults.py with the hop, the cause and the sentence of check; docs/diagnosis.md is made from it."""

from dataclasses import dataclass

from portfwd.wire import limits
from tests.chain.faults import (
    OWN,
    WEB,
    Making,
    agent_stopped,
    cards_pulled,
    chain_flushed,
    elements_flushed,
    everything_flushed,
    expired,
    feature,
    half_written,
    hop_halted,
    mask_removed,
    no_forwarding,
    nothing,
    other_address,
    own_address_gone,
    port_in_use,
    qube_paused,
    route_gone,
    rule_of_the_user,
    sender_refused,
    server_for_itself,
    server_stopped,
    table_of_the_user,
    taken_port,
    tor,
    way_untold,
    without_net,
)
from tests.chain.world import LAPTOP, PHONE, SERVER

INTERNAL = WEB.replace("external", "internal")
AGENT = "sys-firewall"


@dataclass(frozen=True)
class Fault:
    """One fault, the forward that it hits, and the answer: the hop, the cause, the sentence.

    `client` is a name of a machine whose address the user gives to check, or an address.
    """

    title: str
    make: Making
    hop: str
    cause: str
    says: str
    qube: str = "work"
    rule: str = WEB
    client: str = ""


FAULTS = [
    Fault(
        "the server was stopped",
        server_stopped,
        "work",
        "no-server",
        "nothing listens on tcp port 7502 in 'work'; start the server",
        rule=OWN,
    ),
    Fault(
        "the server listens on 127.0.0.1 and ::1",
        server_for_itself,
        "work",
        "local-only",
        "the server on tcp port 7502 in 'work' listens on 127.0.0.1 or ::1 only; let it listen on 0.0.0.0 or ::",
        rule=OWN,
    ),
    Fault(
        "a program in sys-net itself uses the port",
        port_in_use,
        "sys-net",
        "occupied",
        "a program in 'sys-net' itself uses port 7501; stop it, or take another port",
        rule=OWN,
    ),
    Fault(
        "the agent of a hop is dead when the forward is added",
        agent_stopped,
        AGENT,
        "agent-dead",
        "the port forwarding agent in 'sys-firewall' does not run; start its service qubes-port-forward",
    ),
    Fault(
        "someone empties custom-forward while the agent is dead",
        chain_flushed,
        AGENT,
        "rule-missing",
        "in 'sys-firewall' the chain custom-forward has been emptied; restart its agent",
    ),
    Fault(
        "someone empties our maps while the agent hangs",
        elements_flushed,
        "sys-net",
        "door-missing",
        "in 'sys-net' the nftables table qubes-port-forward does not open this port; restart its agent",
    ),
    Fault("a net qube is halted", hop_halted, "sys-disp", "halted", "'sys-disp' is not running", qube="untrusted"),
    Fault(
        "someone flushes the whole ruleset",
        everything_flushed,
        "sys-disp",
        "no-base-firewall",
        "'sys-disp' has no base firewall; restart its qubes-iptables service",
        qube="untrusted",
    ),
    Fault(
        "a user's drop in custom-forward",
        rule_of_the_user(AGENT, "qubes", "custom-forward", "tcp dport 8443 drop"),
        AGENT,
        "dropped",
        "a firewall rule in 'sys-firewall' drops the probe; rules of yours before ours in custom-forward: 1",
    ),
    Fault(
        "a user's drop in custom-input",
        rule_of_the_user("work", "qubes", "custom-input", "tcp dport 8443 drop"),
        "work",
        "dropped",
        "a firewall rule in 'work' drops the probe; rules of yours before ours in custom-input: 1",
    ),
    Fault(
        "a user's reject in custom-forward",
        rule_of_the_user("sys-net", "qubes", "custom-forward", "tcp dport 443 reject with tcp reset"),
        "sys-net",
        "rejected",
        "a firewall rule in 'sys-net' rejects the probe; rules of yours before ours in custom-forward: 1",
    ),
    Fault(
        "a user's own table drops what is handed on",
        table_of_the_user(AGENT, "forward", "tcp dport { 443, 8443 } drop"),
        AGENT,
        "dropped",
        "a firewall rule in 'sys-firewall' drops the probe; look for a table or chain of your own",
    ),
    Fault(
        "a user's own table drops what comes in",
        table_of_the_user("sys-net", "prerouting", "tcp dport 443 drop"),
        "sys-net",
        "not-routed",
        "the probe was lost in 'sys-net' before it was routed; a rule in prerouting, or no route",
    ),
    Fault(
        "a user's own table drops the answers",
        table_of_the_user("work", "output", "tcp sport 8443 drop"),
        "work",
        "answer-dropped",
        "a firewall rule in 'work' drops the answer; look for a table or chain of your own",
    ),
    Fault(
        "a user's own table in a hop drops the answers",
        table_of_the_user(AGENT, "forward", "ct direction reply tcp sport 8443 drop"),
        AGENT,
        "answer-dropped",
        "a firewall rule in 'sys-firewall' drops the answer; look for a table or chain of your own",
    ),
    Fault(
        "the client is not the one that the rule names",
        nothing,
        "sys-net",
        "wrong-source",
        "the rule is for clients in 192.168.1.20/32, and 192.168.1.30 is none",
        rule=f"{WEB} srchost={LAPTOP}",
        client=PHONE,
    ),
    Fault(
        "the client is no neighbour of sys-net",
        nothing,
        "sys-net",
        "not-a-neighbour",
        "the rule is for neighbours, and 203.0.113.80 is in no network of 'sys-net'; give the rule a srchost",
        client=SERVER,
    ),
    Fault(
        "an older rule of another qube has the port",
        taken_port,
        "sys-net",
        "conflict",
        "port is taken at 'sys-net' by external tcp port 443 of 'dmz'",
    ),
    Fault("the qube has no net qube", without_net, "work", "no-net-qube", "'work' has no net qube"),
    Fault(
        "the route to the qube is gone",
        route_gone,
        AGENT,
        "no-route",
        "IPv4 tcp: in 'sys-firewall' the route to 10.137.0.9 leads to its uplink; it should lead to a qube behind it",
    ),
    Fault(
        "the kernel of a net qube forwards nothing",
        no_forwarding,
        AGENT,
        "not-forwarding",
        "IPv4 tcp: the kernel of 'sys-firewall' hands nothing on (sysctl net.ipv4.ip_forward)",
    ),
    Fault(
        "the qube lost its address",
        own_address_gone,
        "work",
        "not-routed",
        "IPv4 tcp: the probe was lost in 'work' before it was routed; a rule in prerouting, or no route",
    ),
    Fault(
        "sys-net has no network",
        cards_pulled,
        "sys-net",
        "no-uplink",
        "'sys-net' has no uplink with an address by which clients of this rule could come; connect its network",
    ),
    Fault(
        "the client qube's own rules drop it",
        sender_refused,
        "personal",
        "sender-refused",
        "the firewall rules of 'personal' itself do not let it connect there",
        rule=INTERNAL,
        client="personal",
    ),
    Fault("the time of the rule is over", expired, "work", "gone", "there is no such forward (any more)"),
    Fault(
        "the rule is paused", nothing, "work", "paused", "this forward is paused; resume it", rule=f"{WEB} enabled=no"
    ),
    Fault("the qube is paused", qube_paused, "work", "qube-paused", "'work' is paused; unpause it"),
    Fault(
        "the qube got another address and was not restarted",
        other_address,
        "work",
        "restart-needed",
        "IPv4 tcp: 'work' still uses its old address; restart it",
    ),
    Fault(
        "net.fake-ip was changed and the qube not restarted",
        mask_removed,
        "masked",
        "restart-needed",
        "IPv6 tcp: 'masked' still uses its old address; restart it",
        "masked",
    ),
    Fault(
        "a net qube forbids forwards",
        feature(AGENT, limits.FEATURE_DENY, "1", None),
        AGENT,
        "denied",
        "'sys-firewall' forbids forwards by its feature",
    ),
    Fault(
        "a net qube is a Tor gateway",
        tor,
        AGENT,
        "tor-gateway",
        "'sys-firewall' is a Tor gateway and takes no forwards",
    ),
    Fault(
        "a net qube is a VPN qube",
        feature(AGENT, limits.FEATURE_VPN, "1", None),
        AGENT,
        "vpn",
        "'sys-firewall' is a VPN qube (feature port-forward.vpn); "
        "its feature port-forward.allow-transit lets forwards cross",
    ),
    Fault(
        "a net qube does not tell by what its packets leave",
        way_untold,
        AGENT,
        "way-unknown",
        "'sys-firewall' does not tell whether what it sends leaves by a tunnel; its feature port-forward.allow-transit "
        "lets forwards cross",
    ),
    Fault(
        "a net qube has no agent",
        feature(AGENT, limits.FEATURE_AGENT, None, "1"),
        AGENT,
        "no-agent",
        "'sys-firewall' has no port forwarding agent",
    ),
    Fault(
        "IPv6 is off at one hop, and the rule is for IPv6",
        feature(AGENT, "ipv6", "", None),
        AGENT,
        "no-address",
        "'sys-firewall' has no IPv6 address",
        rule=f"{WEB} srchost=::/0",
    ),
    Fault(
        "the host name of the clients does not resolve",
        nothing,
        "sys-net",
        "unresolved",
        "'sys-net' finds no address for the host name of the clients",
        rule=f"{WEB} srchost=nobody.invalid",
    ),
    Fault(
        "a write into QubesDB broke off",
        half_written,
        AGENT,
        "incomplete",
        "only a part of what dom0 wrote is in the QubesDB of 'sys-firewall'; restart that qube",
    ),
]
