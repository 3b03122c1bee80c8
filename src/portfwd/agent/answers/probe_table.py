# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The temporary nftables table that counts a probe at every place of a hop. PURE text.

The client's address and port, which the whole chain keeps, identify a probe. Only its first packet counts: the reset
that ends a half open connection does not. A bit of the connection mark tells a probe from a client, so that it is not
counted as a hit.
"""

from collections.abc import Iterable

from portfwd.agent.rules.skeleton import MARK_PROBE, nft_family
from portfwd.wire.answers.probe import Way
from portfwd.wire.values import Family, Proto

NAME = "qubes-port-forward-probe"
TABLE = {family: f"{nft_family(family)} {NAME}" for family in Family}
_COUNTERS = (
    *("arrived", "local", "delivered", "passing", "left", "back", "returned"),
    *("reset", "synack", "unreachable"),
)
_SYN = "tcp flags & (syn | ack | rst) == syn"
_SYN_ACK = "tcp flags & (syn | ack) == (syn | ack)"
_RST = "tcp flags & rst == rst"


def probe_table(family: Family, ways: Iterable[Way], *, drops: bool) -> str:
    """The table of one family. `drops`: this is the entrance, which drops everything for the client."""
    mine = [way for way in ways if way.entry.family is family and way.client is not None]
    chains: dict[str, list[str]] = {
        name: [] for name in ("incoming", "marking", "own", "let-in", "onward", "made", "outgoing")
    }
    for way in mine:
        _add(chains, family, way, drops=drops)
    counters = "".join(f"  counter {way.entry.proto.value}-{name} {{ }}\n" for way in mine for name in _COUNTERS)
    hooks = {
        "incoming": "prerouting priority -310",
        "marking": "prerouting priority -160",
        "own": "input priority -310",
        "let-in": "input priority 300",
        "onward": "forward priority -310",
        "made": "output priority -310",
        "outgoing": "postrouting priority 300",
    }
    text = "".join(
        f"  chain {name} {{\n    type filter hook {hooks[name]}; policy accept;\n"
        + "".join(f"    {rule}\n" for rule in rules)
        + "  }\n"
        for name, rules in chains.items()
    )
    return f"table {TABLE[family]} {{\n  flags owner\n{counters}{text}}}\n"


def _add(chains: dict[str, list[str]], family: Family, way: Way, *, drops: bool) -> None:
    ip, proto = nft_family(family), way.entry.proto
    of = f"{ip} saddr {way.client} meta l4proto {proto.value} th sport {way.sport}"
    first = f"{of} {_SYN}" if proto is Proto.TCP else of
    to = f"{ip} daddr {way.client} meta l4proto {proto.value} th dport {way.sport}"
    errors = (
        f"{ip} daddr {way.client} " + ("icmp" if family is Family.V4 else "icmpv6") + " type destination-unreachable"
    )

    def count(chain: str, match: str, name: str) -> None:
        chains[chain].append(f"{match} counter name {proto.value}-{name}")

    count("incoming", first, "arrived")
    chains["marking"].append(f"{of} ct mark set ct mark | 0x{MARK_PROBE:08x}")
    count("own", first, "local")
    count("let-in", first, "delivered")
    count("onward", first, "passing")
    count("outgoing", first, "left")
    for chain in ("incoming", "made"):
        count(chain, to, "back")
        count(chain, errors, "back")
        count(chain, errors, "unreachable")
        if proto is Proto.TCP:
            count(chain, f"{to} {_SYN_ACK}", "synack")
            count(chain, f"{to} {_RST}", "reset")
    for match in (to, errors):
        count("outgoing", match, "returned")
        if drops:
            chains["outgoing"].append(f"{match} drop")
