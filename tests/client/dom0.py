# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""A dom0 that knows forwards and how they fare, behind the transport of the client: what tests of the tool talk to."""

import ipaddress
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from portfwd.api.errors import ErrorWord
from portfwd.api.forwards import format_forwards, parse_forwards, token
from portfwd.client.adminapi import ApiError, CallError
from portfwd.model.forward import ForwardRule, ForwardType
from portfwd.wire.errors import RefusedError
from portfwd.wire.values import QubeName, SourceWord, format_source, source_family

PREFIX = "admin.vm.firewall."
CONNECTION = "family=4 proto=tcp client=192.168.1.20 port=50123 to=8443"


@dataclass
class Dom0:
    """Two net qubes, sys-net and sys-firewall, and the qubes behind them."""

    forwards: dict[str, str] = field(default_factory=lambda: {"work": "", "personal": ""})
    uplinks: str = "192.168.1.10/24,192.168.77.10/24,2001:db8:1::a/64,fe80::1/64"
    states: dict[str, str] = field(default_factory=dict)
    """hop -> its state; applied where none is given. `problem reason=... text=...` is dom0's own."""
    confirmed: dict[str, str] = field(default_factory=lambda: dict.fromkeys(("sys-net", "sys-firewall", "work"), "yes"))
    listening: str = "yes"
    families: tuple[int, ...] = (4,)
    connections: str = ""
    check: str = ""
    elements: str = ""
    whole: bool = True
    """Whether dom0 answers for all qubes at once."""
    occupied: set[int] = field(default_factory=set)
    log: list[tuple[str, str, str]] = field(default_factory=list)
    before: dict[str, Callable[[], None]] = field(default_factory=dict)

    def call(self, dest: str, method: str, arg: str = "", payload: bytes = b"") -> bytes:
        """Carries one call, as a Transport."""
        self.log.append((f"{method}+{arg}", dest, payload.decode()))
        self.before.pop(f"{method}+{arg.partition('.')[0]}", lambda: None)()
        if method == "admin.vm.List":
            return "".join(f"{name} class=AppVM state=Running\n" for name in ("dom0", *self.forwards)).encode()
        if dest == "dom0":
            if not self.whole:
                raise CallError("Service call error: Request refused")
            return "".join(self.status(name) for name in self.forwards).encode()
        if dest not in self.forwards:
            raise ApiError("QubesVMNotFoundError", f"No such domain: '{dest}'")
        return self._firewall(dest, f"{method.removeprefix(PREFIX)} {arg}", payload.decode()).encode()

    def _firewall(self, dest: str, call: str, payload: str) -> str:
        if call == "Get forward":
            return self.forwards[dest]
        if call == "Get forward.status":
            return self.status(dest)
        if call == "Get forward.hops":
            inner = ("sys-firewall", dest)
            return "".join(
                f"hop={hop} internal={'yes' if hop in inner else 'no'} confirmed={word}\n"
                for hop, word in self.confirmed.items()
            )
        if call == "Get forward.connections":
            return self.connections
        if call == "Set forward.check":
            return self.check
        if call == "Get forward.plan":
            rules = parse_forwards(payload or self.forwards[dest])
            lines = [line for rule in rules for line in self.lines(QubeName(dest), rule, plan=True)]
            return "".join(f"{line}\n" for line in lines) + self.elements
        if call == "Set forward.kill":
            return ""
        if call.startswith("Set forward."):
            self._set(dest, payload, call.removeprefix("Set forward."))
            return ""
        raise AssertionError(f"unexpected call {call}")

    def _set(self, dest: str, payload: str, known: str) -> None:
        if known != token(self.forwards[dest]):
            raise ApiError(ErrorWord.CHANGED, "forwards were changed by someone else meanwhile")
        try:
            rules = parse_forwards(payload)
        except RefusedError as error:
            raise ApiError("QubesValueError", str(error)) from None
        held = [(name, r) for name, text in self.forwards.items() if name != dest for r in parse_forwards(text)]
        for rule in rules:
            for name, other in held:
                if other.srcports.overlaps(rule.srcports):
                    raise ApiError(ErrorWord.TAKEN, f"port {rule.srcports.short} of 'sys-net' belongs to {name}")
        self.forwards[dest] = format_forwards(rules)

    def status(self, name: str) -> str:
        """The lines of one qube."""
        qube, lines = QubeName(name), []
        for number, rule in enumerate(parse_forwards(self.forwards[name])):
            lines.append(f"qube={qube} rule={rule.id(qube)} number={number} {rule}")
            lines += self.lines(qube, rule)
        lines += [f"entrance=sys-net uplinks={self.uplinks}", "entrance=sys-firewall uplinks=10.137.0.6/32"]
        return "".join(f"{line}\n" for line in lines)

    def lines(self, qube: QubeName, rule: ForwardRule, *, plan: bool = False) -> Iterator[str]:
        """What is told of one rule."""
        head = f"rule={rule.id(qube)}"
        if not rule.enabled:
            yield f"{head} hop={qube} state=paused"
            return
        for hop, state in self.states.items():
            if state.startswith("problem "):
                yield f"{head} hop={hop} state={state}"
                return
        only = source_family(rule.srchost)
        hops = ["sys-net", "sys-firewall"] if rule.forwardtype is ForwardType.EXTERNAL else ["sys-firewall"]
        for family in self.families if only is None else (int(only),):
            for proto in rule.protos:
                yield from (self._relay(head, hop, hops, rule, f"{family} proto={proto}", plan) for hop in hops)
                source = "any" if rule.srchost is SourceWord.NEIGHBOURS else format_source(rule.srchost)
                told = "state=planned" if plan else self._told(str(qube), f"listening={self.listening}")
                way = f"family={family} proto={proto} kind=accept side=uplink listen={rule.dstports}"
                yield f"{head} hop={qube} {way} source={source} {told}"

    def _relay(self, head: str, hop: str, hops: list[str], rule: ForwardRule, way: str, plan: bool) -> str:
        side = "downstream" if rule.forwardtype is ForwardType.INTERNAL else "uplink" if hop == hops[0] else "inner"
        source = format_source(rule.srchost) if hop == hops[0] else "any"
        to = "10.137.0.6" if hop != hops[-1] else "10.137.0.10"
        if way.startswith("6"):
            to = str(ipaddress.ip_address("fd09:24ef:4179::a89:1"))
        ports = rule.srcports if hop != hops[-1] else rule.dstports
        told = "state=planned" if plan else self._told(hop, "hits=12 last=3", rule)
        words = f"kind=relay side={side} listen={rule.srcports} source={source} to={to} ports={ports}"
        return f"{head} hop={hop} family={way} {words} {told}"

    def _told(self, hop: str, counts: str, rule: ForwardRule | None = None) -> str:
        state = self.states.get(hop, "applied")
        if rule is not None and hop == "sys-net" and rule.srcports.first in self.occupied:
            state = "occupied"
        if "listening" in counts:
            counts += " packets=9 bytes=4711 connections=1"
        return f"state={state} {counts}"
