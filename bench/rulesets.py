# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The rulesets that are compared: plain routing, ours as the product loads it, and two other ways to do the same."""

from collections.abc import Iterator

from bench.network import HOP1, HOP2, HOP2_AT, TARGET_AT

_TO = {HOP1: HOP2_AT, HOP2: TARGET_AT}
PLAIN_FORWARD = "add rule ip qubes custom-forward oifgroup 2 accept\n"
PLAIN_INPUT = "add rule ip qubes custom-input meta l4proto { tcp, udp } accept\n"
_CHUNK = 500


def linear(node: str, ports: list[int], udp: int) -> str:
    """A DNAT rule and an accept rule per forward, as people write them by hand."""
    to = _TO[node]
    pairs = [("tcp", port) for port in ports] + [("udp", udp)]
    dnat = "\n".join(f"iifgroup != 2 fib daddr type local {p} dport {port} dnat to {to}:{port}" for p, port in pairs)
    accept = "\n".join(f"oifgroup 2 ip daddr {to} {p} dport {port} ct state new accept" for p, port in pairs)
    return f"""table ip linear {{
  chain prerouting {{
    type nat hook prerouting priority dstnat; policy accept;
{dnat}
  }}
}}
table ip qubes {{
  chain custom-forward {{
{accept}
  }}
}}
"""


def marked(node: str, ports: list[int], udp: int) -> str:
    """The number of the forward in the connection mark, and all that follows from it looked up by this number."""
    pairs = [("tcp", port) for port in ports] + [("udp", udp)]
    ext = [f"{p} . {port} : 0x{0x51000001 + i:08x}" for i, (p, port) in enumerate(pairs)]
    to = [f"0x{0x51000001 + i:08x} : {_TO[node]} . {port}" for i, (_, port) in enumerate(pairs)]
    return f"""{_MARKED}
{"".join(_fill("ext", ext))}{"".join(_fill("to", to))}
add rule ip qubes custom-forward oifgroup 2 ct status dnat ct mark & 0xff000000 == 0x51000000 accept
"""


def _fill(name: str, elements: list[str]) -> Iterator[str]:
    for start in range(0, len(elements), _CHUNK):
        yield f"add element ip marked {name} {{ {', '.join(elements[start : start + _CHUNK])} }}\n"


_MARKED = """table ip marked {
  map ext { type inet_proto . inet_service : mark; flags timeout; }
  map range { type inet_service . inet_proto : mark; flags interval,timeout; }
  map to { type mark : ipv4_addr . inet_service; }
  map to_a { type mark : ipv4_addr; }
  map to_p { type mark . inet_service : ipv4_addr . inet_service; }
  set src { type inet_service . inet_proto . ipv4_addr; flags interval; }
  chain translate {
    meta l4proto { tcp, udp } dnat ip to ct mark map @to
    meta l4proto { tcp, udp } dnat ip to ct mark . th dport map @to_p
    dnat ip to ct mark map @to_a
    ct mark set 0
  }
  chain check {
    ct mark & 0x00800000 == 0 goto translate
    th dport . meta l4proto . ip saddr @src goto translate
    ct mark set 0
  }
  chain dispatch {
    ct mark set meta l4proto . th dport map @ext goto check
    ct mark set th dport . meta l4proto map @range goto check
  }
  chain pre {
    type nat hook prerouting priority dstnat; policy accept;
    iifgroup != 2 fib daddr type local meta l4proto { tcp, udp } jump dispatch
  }
}
"""
