# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The firewall that Qubes OS itself loads in a qube, as a text: names, hooks, priorities, policies and order of rules.

Source: the tables ip/ip6 qubes and ip/ip6 qubes-firewall of qubes-core-agent-linux 4.2 to 4.4. The DNS redirection and
flow offload tables have no part in forwards and are left out.
"""

from collections.abc import Mapping, Sequence

from portfwd.wire.values import Family, IPAddress

TABLES = ("qubes", "qubes-firewall")


def base_tables(family: Family, clients: Mapping[str, Sequence[IPAddress]] | None = None) -> str:
    """The base tables of one family; `clients` are the qubes behind it, by the vif that leads to them."""
    served = [(vif, a) for vif, found in (clients or {}).items() for a in found if a.version == family]
    ip = "ip" if family is Family.V4 else "ip6"
    if family is Family.V4:
        before = "    iifgroup 2 meta l4proto udp udp dport 68 counter drop\n"
        local = (
            "    iifgroup 2 meta l4proto icmp accept\n    iif lo accept\n"
            "    iifgroup 2 counter reject with icmp type host-prohibited\n"
        )
        helper = ""
    else:
        before = ""
        local = (
            "    iifgroup 2 goto from-vif\n    iif lo accept\n"
            "    ip6 saddr fe80::/64 ip6 daddr fe80::/64 udp dport 546 accept\n    meta l4proto ipv6-icmp accept\n"
        )
        helper = (
            "  chain from-vif {\n    meta l4proto != ipv6-icmp counter reject with icmpv6 type admin-prohibited\n"
            "    icmpv6 type { nd-router-advert, nd-redirect } counter drop\n    accept\n  }\n"
        )
    per_client = "".join(f"    {ip} saddr {address} accept\n" for _, address in served)
    elements = "".join(
        f'add element {ip} qubes allowed {{ "{vif}" . {address} }}\nadd element {ip} qubes downstream {{ {address} }}\n'
        for vif, address in served
    )
    addr = f"ipv{int(family)}_addr"
    return f"""table {ip} qubes {{
  set downstream {{ type {addr}; }}
  set allowed {{ type ifname . {addr}; }}
  chain antispoof {{
    iifname . {ip} saddr @allowed accept
    counter drop
  }}
  chain prerouting {{
    type filter hook prerouting priority raw; policy accept;
    iifgroup 2 goto antispoof
    {ip} saddr @downstream counter drop
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    oifgroup 2 accept
    oif lo accept
    masquerade
  }}
{helper}  chain custom-input {{
  }}
  chain custom-forward {{
  }}
  chain input {{
    type filter hook input priority filter; policy drop;
    jump custom-input
    ct state invalid counter drop
{before}    ct state related,established accept
{local}    counter
  }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    jump custom-forward
    ct state invalid counter drop
    ct state related,established accept
    oifgroup 2 counter drop
  }}
}}
table {ip} qubes-firewall {{
  chain qubes-forward {{
{per_client}  }}
  chain forward {{
    type filter hook forward priority filter; policy drop;
    ct state related,established accept
    iifname != "vif*" accept
    jump qubes-forward
  }}
}}
{elements}"""
