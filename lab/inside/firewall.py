# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""A stand-in for the stock firewall agent of a net qube: python -m lab.inside.firewall.

Reads the ordinary rules of each qube from /qubes-firewall/ADDRESS/ and enforces them in the tables, chains and
priorities of core-agent-linux (qubesagent/firewall.py): `forward` at priority 0 with policy drop, where what does not
come from a vif is accepted and each source address has a chain of its own; what it does not understand is blocked.
Ends with SIGTERM and takes its tables away. Unlike the stock agent it ends no open connections.
"""

import contextlib
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import NoReturn

from lab.inside.commands import nft, nft_if_there
from portfwd.base.qubesdb_client import Database, QubesDB
from portfwd.kernel.systemd import notify

SERVICE = "qubes-firewall"
WANTED = Path("/rw/config/lab-stock-firewall")
"""Where this file is, the service starts with the qube."""
BASE = "/qubes-firewall/"
HANDLED = "/qubes-firewall-handled/"
CONNECTED = {"ip": "/connected-ips", "ip6": "/connected-ips6"}
DNS = ("10.139.1.1", "10.139.1.2")
_OPTIONS = {"action", "proto", "dst4", "dst6", "dsthost", "dstports", "specialtarget", "icmptype"}
_ADMIN_PROHIBITED = {"ip": "reject with icmp type admin-prohibited", "ip6": "reject with icmpv6 type admin-prohibited"}


class UnknownRuleError(ValueError):
    """A rule that cannot be translated: all traffic of its qube is blocked."""


def tables() -> str:
    """Both tables without any qube."""
    return "".join(
        f"""add table {family} qubes-firewall
delete table {family} qubes-firewall
table {family} qubes-firewall {{
	chain qubes-forward {{
	}}
	chain forward {{
		type filter hook forward priority 0; policy drop;
		ct state established,related accept
		meta iifname != "vif*" accept
		jump qubes-forward
	}}
	chain prerouting {{
		type filter hook prerouting priority -300; policy accept;
	}}
	chain postrouting {{
		type filter hook postrouting priority -300; policy accept;
	}}
}}
"""
        for family in ("ip", "ip6")
    )


def connected(family: str, addresses: list[str]) -> str:
    """The addresses of the qubes behind this one come from vifs and go to vifs."""
    table = f"{family} qubes-firewall"
    text = f"flush chain {table} prerouting\nflush chain {table} postrouting\n"
    if addresses:
        found = ", ".join(addresses)
        text += f'add rule {table} prerouting iifname != "vif*" {family} saddr {{ {found} }} drop\n'
        text += f'add rule {table} postrouting oifname != "vif*" {family} daddr {{ {found} }} drop\n'
    return text


def rules_of(address: str, entries: Mapping[str, str]) -> str:
    """The chain of one qube, from its entries in QubesDB."""
    family = "ip6" if ":" in address else "ip"
    try:
        lines = list(_lines(family, entries))
    except UnknownRuleError as error:
        print(f"blocking {address}: {error}", file=sys.stderr, flush=True)
        lines = [_ADMIN_PROHIBITED[family]]
    chain = f"{family} qubes-firewall {_chain(address)}"
    return f"flush chain {chain}\n" + "".join(f"add rule {chain} {line}\n" for line in lines)


def _chain(address: str) -> str:
    return "qbs-" + address.replace(".", "-").replace(":", "-")


def _lines(family: str, entries: Mapping[str, str]) -> Iterator[str]:
    if "policy" not in entries:
        raise UnknownRuleError("there is no policy")
    for key in sorted(entries):
        if key != "policy":
            if not (len(key) == 4 and key.isdigit()):
                raise UnknownRuleError(f"{key!r} is not the number of a rule")
            words = dict(word.partition("=")[::2] for word in entries[key].split())
            yield from _translated(family, words)
    yield _verdict(family, entries["policy"])


def _verdict(family: str, action: str) -> str:
    if action not in ("accept", "drop"):
        raise UnknownRuleError(f"action {action!r}")
    return "accept" if action == "accept" else _ADMIN_PROHIBITED[family]


def _translated(family: str, words: Mapping[str, str]) -> Iterator[str]:
    if unknown := words.keys() - _OPTIONS:
        raise UnknownRuleError(f"option {min(unknown)!r}")
    proto, ports = words.get("proto"), words.get("dstports", "")
    first, _, last = ports.partition("-")
    ports = first if first == last else ports
    match = ""
    if proto is not None:
        match += f"meta l4proto {'icmpv6' if proto == 'icmp' and family == 'ip6' else proto} "
    if target := words.get("dst4") or words.get("dst6"):
        match += f"{family} daddr {target} "
    elif host := words.get("dsthost"):
        match += f"{family} daddr {{ {', '.join(_resolved(host, family))} }} "
    if words.get("specialtarget") == "dns":
        if family == "ip6" or ports not in ("", "53"):
            return
        ports, match = "53", match + f"ip daddr {{ {', '.join(DNS)} }} "
    if "icmptype" in words:
        match += f"{'icmpv6' if family == 'ip6' else 'icmp'} type {words['icmptype']} "
    verdict = _verdict(family, words.get("action", ""))
    if not ports:
        yield match + verdict
    for name in ([proto] if proto else ["tcp", "udp"]) if ports else ():
        yield f"{match}{name} dport {ports} {verdict}"


def _resolved(host: str, family: str) -> list[str]:
    kind = socket.AF_INET6 if family == "ip6" else socket.AF_INET
    try:
        return sorted({str(found[4][0]) for found in socket.getaddrinfo(host, None, kind)})
    except OSError:
        raise UnknownRuleError(f"name {host!r} is not resolved") from None


class StockFirewall:
    """The tables of one net qube, kept equal to its QubesDB."""

    def __init__(self, commands: Database) -> None:
        self._commands = commands
        self._handled: dict[str, int] = {}

    def start(self) -> None:
        """Make the tables and load what stands there."""
        nft(tables())
        for family in CONNECTED:
            self._connect(family)
        for path in self._commands.list(BASE):
            if "/" not in path.removeprefix(BASE):
                self.changed(path)

    def changed(self, path: str) -> None:
        """A key has changed: the base key of an address is written last, as the commit of its rules."""
        for family, key in CONNECTED.items():
            if path == key:
                self._connect(family)
        address = path.removeprefix(BASE)
        if path.startswith(BASE) and address and "/" not in address:
            self._apply(address)

    def _connect(self, family: str) -> None:
        value = self._commands.read(CONNECTED[family]) or b""
        nft(connected(family, value.decode().split()))

    def _apply(self, address: str) -> None:
        family = "ip6" if ":" in address else "ip"
        if address not in self._handled:
            table, chain = f"{family} qubes-firewall", _chain(address)
            nft(f"add chain {table} {chain}\nadd rule {table} qubes-forward {family} saddr {address} jump {chain}\n")
        base = f"{BASE}{address}/"
        entries = {path.removeprefix(base): value.decode() for path, value in self._commands.multiread(base).items()}
        nft(rules_of(address, entries))
        self._handled[address] = self._handled.get(address, 0) + 1
        self._commands.write(f"{HANDLED}{address}", str(self._handled[address]))


def _end(_number: int, _frame: FrameType | None) -> NoReturn:
    nft_if_there("delete table ip qubes-firewall\ndelete table ip6 qubes-firewall\n")
    sys.exit(0)


def main() -> None:
    """Enforce until SIGTERM."""
    signal.signal(signal.SIGTERM, _end)
    with contextlib.closing(QubesDB()) as watch, contextlib.closing(QubesDB()) as commands:
        for path in (BASE, *CONNECTED.values()):
            watch.watch(path)
        firewall = StockFirewall(commands)
        firewall.start()
        notify("READY=1")
        while True:
            firewall.changed(watch.read_watch())


if __name__ == "__main__":
    main()
