# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The JSON of list, show and check: schema version 1, described in docs/qvm-port-forward.md. Does no I/O.

Fields are added without a new version; none is renamed, removed or given another meaning. Unknown is null.
"""

import json
from collections.abc import Iterable, Mapping, Sequence

from portfwd.api.connections import Client
from portfwd.api.diagnosis import Diagnosis, Finding
from portfwd.api.status import HopStatus
from portfwd.client.forward_state import Fault, RuleStatus
from portfwd.client.text.sentences import explained, told
from portfwd.wire.entry import Accept, Relay
from portfwd.wire.values import PortRange, QubeName, format_source

VERSION = 1
Value = None | bool | int | str | Sequence["Value"] | dict[str, "Value"]


def list_json(found: Iterable[RuleStatus], untold: Mapping[QubeName, str], now: float) -> str:
    """The forwards that were asked for, and the qubes whose forwards dom0 does not tell, with the reason."""
    missing: list[Value] = [{"qube": qube, "reason": reason} for qube, reason in untold.items()]
    return _text("list", {"forwards": [_forward(status, now) for status in found], "not_told": missing})


def show_json(status: RuleStatus, connections: Sequence[Client] | None, more: int | None, now: float) -> str:
    """One forward and its connections; `more` connections of the qube are not listed."""
    told = None if connections is None else [_connection(connection) for connection in connections]
    return _text("show", {"forward": _forward(status, now), "connections": told, "more_connections": more})


def check_json(checked: Iterable[tuple[RuleStatus, Diagnosis]], now: float) -> str:
    """What the diagnosis found about each forward that was checked."""
    results: list[Value] = []
    for status, diagnosis in checked:
        fault = None if diagnosis.fault is None else _finding(diagnosis.fault)
        findings = [_finding(finding) for finding in diagnosis.findings]
        results.append(
            {"forward": _forward(status, now), "opens": diagnosis.opens, "fault": fault, "findings": findings}
        )
    return _text("check", {"checked": results})


def _finding(finding: Finding) -> dict[str, Value]:
    text = finding.text or None
    return {"hop": finding.hop, "check": str(finding.cause), "result": finding.result.value, "text": text}


def _text(kind: str, content: dict[str, Value]) -> str:
    return json.dumps({"version": VERSION, "kind": kind, **content}, indent=2)


def _forward(status: RuleStatus, now: float) -> dict[str, Value]:
    rule = status.rule
    return {
        "qube": status.qube,
        "number": status.number,
        "id": status.id,
        "type": rule.forwardtype.value,
        "protocols": [proto.value for proto in rule.protos],
        "entrance": {
            "qube": status.entrance,
            "addresses": [str(address) for address in status.addresses],
            "ports": _ports(rule.srcports),
        },
        "target_ports": _ports(rule.dstports),
        "clients": format_source(rule.srchost),
        "enabled": rule.enabled,
        "expire": None if rule.expire is None else rule.expire if isinstance(rule.expire, int) else str(rule.expire),
        "comment": rule.comment,
        "state": status.state.value,
        "doors": status.doors.value,
        "silent": list(status.silent),
        "sentence": told(status, now),
        "fault": None if status.fault is None else _fault(status, status.fault),
        "note": status.note or None,
        "kept_out": {name: word.value for name, word in status.siblings.items()},
        "packets": status.total("packets"),
        "bytes": status.total("bytes"),
        "open_connections": status.total("connections"),
        "hits": status.total("hits"),
        "last_hit": status.last,
        "hops": [_hop(hop) for hop in status.hops],
    }


def _fault(status: RuleStatus, fault: Fault) -> dict[str, Value]:
    what, advice = explained(status, fault)
    return {"hop": fault.hop, "reason": str(fault.reason), "text": what, "advice": advice}


def _hop(hop: HopStatus) -> dict[str, Value]:
    entry = hop.entry
    return {
        "hop": hop.hop,
        "family": int(entry.family),
        "protocol": entry.proto.value,
        "kind": entry.kind,
        "side": entry.side.value,
        "listen": _ports(entry.listen),
        "source": format_source(entry.source),
        "to": str(entry.to) if isinstance(entry, Relay) else None,
        "ports": _ports(entry.ports) if isinstance(entry, Relay) else None,
        "expire": entry.expire,
        "state": hop.state.value,
        "listening": (hop.listening or "unknown") if isinstance(entry, Accept) else None,
        "hits": hop.hits,
        "last_hit": hop.last,
        "packets": hop.packets,
        "bytes": hop.bytes,
        "open_connections": hop.connections,
    }


def _connection(client: Client) -> dict[str, Value]:
    connection = client.connection
    return {
        "family": int(connection.family),
        "protocol": connection.proto.value,
        "client": str(connection.client),
        "port": connection.port,
        "to": connection.to,
    }


def _ports(ports: PortRange) -> dict[str, Value]:
    return {"first": ports.first, "last": ports.last}
