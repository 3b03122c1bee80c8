# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The static nftables text: our table in each family and the one rule in each base chain. PURE text.

Everything that changes later is an element of a map or set below; the cost of a packet or of a change does not grow
with the number of forwards. Three sides share one shape: `up` (relay for what enters by an uplink), `down` (relay for
qubes and tunnels behind us) and `in` (this qube is the target).

    SIDE-port   exact port        -> which class of clients may come in   (elements carry the expiry)
    SIDE-range  range of ports    -> the same
    SIDE-src    port, protocol, prefix of the allowed clients
    in-ends     port, protocol of the doors that have an end; in-late: the same, until shortly after that end
    SIDE-to, SIDE-to-one, SIDE-to-keep   where to: exact port; range to one port; range that keeps its ports
    near        interface, prefix of the networks attached to the uplinks
    home        interface, prefix of the addresses that can come by no other interface; attached: all these addresses
    shut        interfaces that are neither a known kind of uplink nor a known kind of tunnel
    via         interface -> chain that notes the uplink's number
    SIDE-hits   port -> connections that came in by a relay of this port, and when the newest did (grows by packets)

What a map counts in its elements is read when dom0 asks. A connection's first packet finds the target's door in
`arrival` and is done, the others find it in `standing`: each counts once.

Three bits of the connection mark are ours: they carry the verdict from our table to the base tables' custom chains, and
let our connections be found again; one of them is set on all, so that one look at conntrack finds them. Four more say
by which uplink the connection came, where replies would not leave by it of themselves; the same four of the packet mark
lead them to its routes (network/ways.py). All other bits are left as they are, since VPN and policy routing scripts use
them.

A source address that belongs to the network of one interface is refused at every other, at two look-ups for the first
packet of a connection. An inner hop does not ask again: what its own net qube hands on has been asked at the entrance.

At the target every packet of our connections asks whether its door still stands (chain `standing`). So an end of time
ends open connections, too, when nobody is left but the target's kernel. For two seconds it drops: an agent may be just
about to open a shared door anew for the others. Then it tells: a TCP client that only receives acknowledges what it
receives, and gets a reset for that; a UDP server is told that nobody hears it. A connection that has been let in is not
asked for its source.

A door is known by the port that was dialled, whatever the target's own NAT makes of it; what the target hands on, to a
container for example, is asked in both directions on its way through (`handed_on`).
"""

import hashlib

from portfwd.wire.values import Family, Proto, Side

TABLE = "qubes-port-forward"
BASE_TABLE = "qubes"
COMMENT = "qubes-port-forward"
MARK_OURS = 0x01000000
MARK_UP = MARK_OURS
MARK_DOWN = MARK_OURS | 0x02000000
MARK_IN = MARK_OURS | 0x04000000
MARK_BITS = 0x07000000
MARK_PROBE = 0x08000000
"""The connections of a diagnosis (answers/probe_service.py), which are no hits."""
UPLINK_SHIFT = 28
UPLINK_BITS = 0xF << UPLINK_SHIFT
UPLINK_MAX = 15
MARKS = {"up": MARK_UP, "down": MARK_DOWN, "in": MARK_IN}
RELAY_SIDES = {Side.UPLINK: "up", Side.INNER: "up", Side.DOWNSTREAM: "down"}
UPLINK_KINDS = ("veth", "bridge", "bond", "team", "vlan", "macvlan", "ipvlan", "macsec", "wwan", "rmnet")
"""Kinds of interfaces that count as a network card, as one without a kind does: cards, modems, Xen's network devices.

What stands on others counts as long as these do (network/uplinks.py). A kind in neither list is shut.
"""
TUNNEL_KINDS = ("tun", "wireguard", "ppp", "xfrm", "vti", "vti6", "gre", "ipip", "sit", "ip6tnl", "ovpn", "amneziawg")

FORWARD_RULE = (
    f"oifgroup 2 ct status dnat ct mark & 0x{MARK_OURS | 0x04000000:08x} == 0x{MARK_OURS:08x} "
    f'accept comment "{COMMENT}"'
)
INPUT_RULE = f'ct mark & 0x{MARK_BITS:08x} == 0x{MARK_IN:08x} accept comment "{COMMENT}"'
ASTRAY_RULE = f"oifgroup != 2 ct status dnat ct mark & 0x{MARK_OURS | 0x04000000:08x} == 0x{MARK_OURS:08x} counter drop"
"""While the destination's interface is not there, its route is the default one: to the uplink's network, which must not
answer in its place. A chain of type nat sees the first packet of a connection only, so others pay nothing."""
BASE_RULES = {"custom-forward": FORWARD_RULE, "custom-input": INPUT_RULE}
"""The only rules outside our table: chain of the base table -> rule."""

HANDED_ON = "handed-on"
GUARDS = ("guard-forward", "guard-input", "guard-output", "guard-arrived", "guard-farewell")
REPLY_CHAINS = ("reply-in", "reply-out", "back-in", "back")
HITS = "hits"
HITS_SECONDS = 30 * 86400
"""Seconds for which the newest connection of a port is remembered."""
HITS_MAX = 16384
"""Ports that are counted, at most; the others work without a count."""
LATE_SECONDS = 2.0
"""Seconds that the target's kernel waits for an agent after an end before it resets connections."""
MARK_FAREWELL = 0x08000000
"""Marks our packets to clients of ended connections (farewell.py), which conntrack must not take for new ones."""
_DOOR = "ct original proto-dst . meta l4proto"
DEAD_OUT = "dead-out"
DEAD_IN = "dead-in"
_DEAD_MAX = 1 << 20


def nft_family(family: Family) -> str:
    """The nft word for a family's table."""
    return "ip" if family is Family.V4 else "ip6"


def sets_of(family: Family) -> dict[str, str]:
    """Every set and map of our table that holds wanted state: name -> declaration."""
    addr = f"ipv{int(family)}_addr"
    found = {}
    for side in MARKS:
        counter = " counter;" if side == "in" else ""
        found[f"map {side}-port"] = f"type inet_proto . inet_service : verdict; flags timeout;{counter}"
        found[f"map {side}-range"] = f"type inet_service . inet_proto : verdict; flags interval,timeout;{counter}"
        found[f"set {side}-src"] = f"type inet_service . inet_proto . {addr}; flags interval;"
    for side in ("up", "down"):
        found[f"map {side}-to"] = f"type inet_proto . inet_service : {addr} . inet_service;"
        found[f"map {side}-to-one"] = f"type inet_service . inet_proto : {addr} . inet_service; flags interval;"
        found[f"map {side}-to-keep"] = f"type inet_service . inet_proto : {addr}; flags interval;"
    found["set in-ends"] = "type inet_service . inet_proto; flags interval;"
    found["set in-late"] = "type inet_service . inet_proto; flags interval,timeout;"
    found["set near"] = f"type ifname . {addr}; flags interval;"
    found["set home"] = f"type ifname . {addr}; flags interval;"
    found["set attached"] = f"type {addr}; flags interval;"
    found["set shut"] = "type ifname;"
    found["map via"] = "type ifname : verdict;"
    return found


def table(family: Family) -> str:
    """The whole static table of one family, empty of elements."""
    ip = nft_family(family)
    addr = f"ipv{int(family)}_addr"
    tunnels = ", ".join(f'"{kind}"' for kind in TUNNEL_KINDS)
    uplinks = ", ".join(f'"{kind}"' for kind in UPLINK_KINDS)
    sets = "\n".join(f"  {name} {{ {text} }}" for name, text in sets_of(family).items())
    hits = "\n".join(_hits_set(side) for side in ("up", "down"))
    vias = "\n".join(_via_chain(number) for number in range(1, UPLINK_MAX + 1))
    relays = "\n".join(_relay_chains(ip, side) for side in ("up", "down"))
    return f"""table {ip} {TABLE} {{
{sets}
{hits}
  set {DEAD_OUT} {{ type {addr} . inet_proto . inet_service . {addr}; size {_DEAD_MAX}; flags dynamic,timeout; }}
  set {DEAD_IN} {{ type inet_proto . {addr} . inet_service; size {_DEAD_MAX}; flags dynamic,timeout; }}
{vias}
{relays}
  chain up-near {{
    iifname . {ip} saddr @near goto up-any
  }}
  chain up-inner-any {{
    iifgroup 1 goto up-go
  }}
  chain up-inner-src {{
    iifgroup 1 th dport . meta l4proto . {ip} saddr @up-src goto up-go
  }}
  chain down-near {{
    iifgroup 2 goto down-go
  }}
  chain in-go {{
    ct mark set ct mark | 0x{MARK_IN:08x}
    iifname vmap @via
    accept
  }}
  chain in-any {{
    ct state != new accept
    goto in-go
  }}
  chain in-src {{
    ct state != new accept
{_dialled(f"{_DOOR} . {ip} saddr @in-src goto in-go")}
  }}
  chain entrance {{
    iifgroup 2 goto down
    meta iifkind {{ {tunnels} }} goto down
    iif lo return
    meta iifkind != {{ {uplinks} }} return
    iifname @shut return
    meta l4proto . th dport vmap @up-port
    th dport . meta l4proto vmap @up-range
  }}
  chain down {{
    meta l4proto . th dport vmap @down-port
    th dport . meta l4proto vmap @down-range
  }}
  chain arrival {{
{_doors()}
  }}
  chain standing {{
{_doors()}
{_dialled(f"{_DOOR} @in-late drop", f"{_DOOR} @in-ends goto over")}
    drop
  }}
  chain over {{
    meta l4proto tcp tcp flags & rst == rst return
    meta l4proto tcp reject with tcp reset
    reject
  }}
  chain leaving {{
    meta l4proto udp {_DOOR} @in-late return
    meta l4proto udp {_DOOR} @in-ends reject
  }}
  chain dead {{
    meta l4proto tcp tcp flags & (syn | rst | ack) == syn return
    meta l4proto tcp tcp flags & rst == rst return
    meta l4proto tcp counter reject with tcp reset
    counter drop
  }}
  chain prerouting {{
    type nat hook prerouting priority dstnat; policy accept;
    meta l4proto {{ tcp, udp }} fib daddr type local jump entrance
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat - 1; policy accept;
    {ASTRAY_RULE}
  }}
  chain input {{
    type filter hook input priority filter - 1; policy accept;
    iifgroup 1 meta l4proto {{ tcp, udp }} ct state new jump arrival
    ct mark & 0x{MARK_BITS:08x} == 0x{MARK_IN:08x} meta l4proto {{ tcp, udp }} jump standing
  }}
  chain output {{
    type filter hook output priority filter - 1; policy accept;
    ct mark & 0x{MARK_BITS:08x} == 0x{MARK_IN:08x} meta l4proto udp jump leaving
  }}
}}
"""


def _dialled(*rules: str) -> str:
    """These rules for each protocol. nft knows the type of `ct original proto-dst` only for a single protocol."""
    return "\n".join(f"    meta l4proto {proto.value} {rule}" for proto in Proto for rule in rules)


def _doors() -> str:
    return _dialled("meta l4proto . ct original proto-dst vmap @in-port", f"{_DOOR} vmap @in-range")


def _via_chain(number: int) -> str:
    # Two statements: older nft cannot clear and set bits in one.
    return f"""  chain via-{number} {{
    ct mark set ct mark & 0x{UPLINK_BITS ^ 0xFFFFFFFF:08x}
    ct mark set ct mark | 0x{number << UPLINK_SHIFT:08x}
  }}"""


def _hits_set(side: str) -> str:
    limits = f"size {HITS_MAX}; flags dynamic,timeout; timeout {HITS_SECONDS}s;"
    return f"  set {side}-{HITS} {{ type inet_proto . inet_service; {limits} counter; }}"


def _relay_chains(ip: str, side: str) -> str:
    via = "\n    iifname vmap @via" if side == "up" else ""
    # The base firewall knows whose address it is that comes from a qube.
    qubes = "\n    iifgroup 2 goto down-go" if side == "down" else ""
    return f"""  chain {side}-go {{
    ct mark set ct mark | 0x{MARKS[side]:08x}{via}
    ct mark & 0x{MARK_PROBE:08x} == 0 update @{side}-{HITS} {{ meta l4proto . th dport }}
    meta l4proto {{ tcp, udp }} dnat {ip} to meta l4proto . th dport map @{side}-to
    meta l4proto {{ tcp, udp }} dnat {ip} to th dport . meta l4proto map @{side}-to-one
    dnat {ip} to th dport . meta l4proto map @{side}-to-keep
  }}
  chain {side}-home {{
    iifname . {ip} saddr @home goto {side}-go
  }}
  chain {side}-any {{{qubes}
    {ip} saddr @attached goto {side}-home
    goto {side}-go
  }}
  chain {side}-src {{
    th dport . meta l4proto . {ip} saddr @{side}-src goto {side}-any
  }}"""


def guard(family: Family) -> str:
    """The base chains that end revoked connections. They cost every packet, so they stand only while needed.

    A revoked connection is forgotten by conntrack; its next packet then looks new. From inside it would be let out
    and picked up in mid-stream (tcp_loose), from outside it would be dropped in silence; both get a reset instead.
    Where this qube is the target, "inside" is its own program, or one to which it hands on. What comes in by no
    forward, and not by a DNAT of the user's own either, is for another service at the same port, and left alone.

    UDP has no first packet by which to tell an old flow from a new one: where a client comes in again, what leads back
    to it is no longer watched for, or a server that speaks first after a pause would not be heard.
    """
    ip = nft_family(family)
    again = "meta l4proto udp ct state new ct mark"
    inward = f"meta l4proto . {ip} saddr . ct original proto-dst"
    outward = f"{ip} daddr . meta l4proto . th dport . {ip} saddr"
    return f"""table {ip} {TABLE} {{
  chain {GUARDS[0]} {{
    type filter hook forward priority filter - 1; policy accept;
    ct state new {ip} saddr . meta l4proto . th sport . {ip} daddr @{DEAD_OUT} jump dead
    {again} & 0x{MARK_OURS:08x} != 0 delete @{DEAD_OUT} {{ {outward} }}
{_dialled(f"iifgroup 1 ct state new ct mark & 0x{MARK_OURS:08x} == 0 {inward} @{DEAD_IN} jump dead")}
  }}
  chain {GUARDS[1]} {{
    type filter hook input priority filter - 2; policy accept;
    ct state new meta l4proto tcp {inward} @{DEAD_IN} jump dead
  }}
  chain {GUARDS[2]} {{
    type filter hook output priority filter - 1; policy accept;
    ct state new meta l4proto . {ip} daddr . th sport @{DEAD_IN} jump dead
  }}
  chain {GUARDS[3]} {{
    type filter hook input priority filter + 1; policy accept;
    {again} & 0x{MARK_BITS:08x} == 0x{MARK_IN:08x} delete @{DEAD_IN} {{ meta l4proto . {ip} saddr . th dport }}
    {again} & 0x{MARK_BITS:08x} == 0x{MARK_IN:08x} delete @{DEAD_IN} {{ {inward} }}
    ct status dnat {again} & 0x{MARK_OURS:08x} == 0 {inward} @{DEAD_IN} jump dead
  }}
  chain {GUARDS[4]} {{
    type filter hook output priority raw; policy accept;
    meta mark & 0x{MARK_FAREWELL:08x} != 0 notrack
  }}
}}
"""


def handed_on(family: Family) -> str:
    """The base chain that checks what this qube, the target, hands on by its own user's DNAT.

    It costs every forwarded packet one look at the mark, so it stands only where something is let in. Traffic that
    no entry of ours let in is the user's own, and left alone.
    """
    ours = f"ct mark & 0x{MARK_OURS:08x} == 0"
    return f"""{_empty_handed_on(family)}table {nft_family(family)} {TABLE} {{
  chain {HANDED_ON} {{
    iifgroup 1 ct status dnat ct state new {ours} meta l4proto {{ tcp, udp }} jump arrival
    ct mark & 0x{MARK_BITS:08x} == 0x{MARK_IN:08x} meta l4proto {{ tcp, udp }} jump standing
  }}
}}
"""


def not_handed_on(family: Family) -> str:
    """The text that removes that chain, whether it exists or not."""
    return f"{_empty_handed_on(family)}delete chain {nft_family(family)} {TABLE} {HANDED_ON}\n"


def _empty_handed_on(family: Family) -> str:
    place = f"{nft_family(family)} {TABLE} {HANDED_ON}"
    hook = "{ type filter hook forward priority filter - 2; policy accept; }"
    return f"add chain {place} {hook}\nflush chain {place}\n"


def replies(family: Family) -> str:
    """The chains that copy the uplink's number from a connection to its replies, whatever stood there before.

    They cost every packet, so they stand only while some uplink is numbered. What goes the other way loses the number,
    in case that a script has restored the packet mark from the connection's: it is routed as ever. `route` makes the
    kernel look again for the way of what a program of this qube sends.
    """
    table = f"{nft_family(family)} {TABLE}"
    numbered = f"ct mark & 0x{UPLINK_BITS:08x} != 0"
    without = f"meta mark set meta mark & 0x{UPLINK_BITS ^ 0xFFFFFFFF:08x}"
    bits = [1 << bit for bit in range(UPLINK_SHIFT, 32)]
    copied = "\n".join(f"    ct mark & 0x{b:08x} != 0 meta mark set meta mark | 0x{b:08x}" for b in bits)
    return f"""{_empty_replies(family)}table {table} {{
  chain back {{
    {without}
{copied}
  }}
  chain back-in {{
    ct direction original {without} return
    iifgroup 2 goto back
  }}
  chain reply-in {{
    {numbered} goto back-in
  }}
  chain reply-out {{
    ct direction reply {numbered} goto back
  }}
}}
"""


def no_replies(family: Family) -> str:
    """The text that removes those chains, whether they exist or not."""
    table = f"{nft_family(family)} {TABLE}"
    return _empty_replies(family) + "".join(f"delete chain {table} {name}\n" for name in REPLY_CHAINS)


def _empty_replies(family: Family) -> str:
    table = f"{nft_family(family)} {TABLE}"
    hooks = {
        "reply-in": " { type filter hook prerouting priority mangle + 1; policy accept; }",
        "reply-out": " { type route hook output priority mangle + 1; policy accept; }",
    }
    made = "".join(f"add chain {table} {name}{hooks.get(name, '')}\n" for name in REPLY_CHAINS)
    return made + "".join(f"flush chain {table} {name}\n" for name in REPLY_CHAINS)


def marker(family: Family) -> str:
    """The name of an empty chain that identifies the text from which the table was made."""
    text = table(family) + guard(family) + handed_on(family) + replies(family)
    return f"made-from-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
