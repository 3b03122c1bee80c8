# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Draws a laboratory: its networks with their members, then the qubes as a tree of net qubes. Text out of values."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from lab.base.topology import Topology

# A qube's label as an ANSI colour (ECMA-48).
_COLOURS = {
    "red": "31",
    "orange": "38;5;208",
    "yellow": "33",
    "green": "32",
    "gray": "90",
    "blue": "34",
    "purple": "35",
    "black": "1",
}


@dataclass(frozen=True)
class Machine:
    """A machine that runs, in the hypervisor's words."""

    name: str
    domid: int
    state: str
    kind: str


def draw(plan: Topology, machines: Sequence[Machine], qubes: Mapping[str, Mapping[str, str]], colour: bool) -> str:
    """The drawing. qubes: per name, its state, netvm, ip, ip6, label and forwards (rule lines), as qubesd says."""
    lines = [*_networks(plan), "", *_tree(plan, {m.name: m for m in machines}, qubes, colour)]
    return "\n".join(lines)


def _networks(plan: Topology) -> Iterator[str]:
    for network in plan.networks.values():
        yield f"{network.name}  {network.ip}" + (f"  {network.ip6}" if network.ip6 else "")
        members = [(f"{r.name} ({side})", n) for r in plan.routers for side, n in (("wan", r.wan), ("lan", r.lan))]
        members += [(h.name, h.nic) for h in plan.hosts]
        members += [(f"{q.name} ({nic.name})", nic) for q in plan.qubes for nic in q.nics]
        for name, nic in members:
            if nic.network == network.name:
                yield f"  |- {name:<18} {nic.ip!s:<15} {nic.ip6 or ''}".rstrip()


def _tree(
    plan: Topology, machines: Mapping[str, Machine], qubes: Mapping[str, Mapping[str, str]], colour: bool
) -> Iterator[str]:
    cards = {q.name: ", ".join(nic.name for nic in q.nics) for q in plan.qubes}

    def branch(name: str, depth: int) -> Iterator[str]:
        qube = qubes[name]
        shape = "   " * depth + ("<- " if depth else "")
        painted = f"\x1b[{_COLOURS.get(qube['label'], '0')}m{name}\x1b[0m" if colour else name
        padding = " " * max(1, 30 - len(shape) - len(name))
        machine = machines.get(name)
        state = qube["state"].lower() + (f" (domain {machine.domid})" if machine else "")
        nics = f"  [{cards[name]}]" if cards.get(name) else ""
        yield f"{shape}{painted}{padding}{qube['ip']:<15} {qube['ip6']:<26} {state}{nics}".rstrip()
        for line in qube["forwards"].splitlines():
            yield f"{'   ' * depth}      {_forward(line)}"
        for client in sorted(other for other in qubes if qubes[other]["netvm"] == name):
            yield from branch(client, depth + 1)

    for name in sorted(name for name in qubes if qubes[name]["netvm"] not in qubes):
        yield from branch(name, 0)


def _forward(line: str) -> str:
    """One rule, as short as it can be understood."""
    words = dict(word.partition("=")[::2] for word in line.partition("comment=")[0].split())
    inner, outer = words.get("dstports") or words.get("srcports", ""), words.get("srcports", "")
    kept = " ".join(f"{key}={words[key]}" for key in ("srchost", "src4", "src6", "expire", "enabled") if key in words)
    return f"* {words.get('forwardtype')} {words.get('proto', 'tcp+udp')} {outer} -> {inner} {kept}".rstrip()
