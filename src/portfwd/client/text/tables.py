# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Forwards as tables: a line for each, or one of them hop by hop. Takes values, gives text; does no I/O."""

from collections.abc import Sequence

from portfwd.api.status import HopState, HopStatus, Outbound
from portfwd.client.forward_state import RuleStatus, State
from portfwd.client.text.sentences import clients_short, duration, left, place, told
from portfwd.client.text.terminal import Cell, clean, table
from portfwd.client.typed.shorthand import service_text
from portfwd.model.forward import ForwardRule, ForwardType
from portfwd.wire.answers.report import Listening
from portfwd.wire.entry import Accept, Relay
from portfwd.wire.values import format_source

_LIST = ("QUBE", "NO", "SERVICE", "ENTRANCE", "TARGET", "CLIENTS", "LEFT", "STATE", "TRAFFIC", "CONN", "COMMENT")
_SPARE = ("TARGET", "COMMENT", "TRAFFIC", "CONN")
"""Columns that a narrow terminal can do without, in this order; SERVICE shows the target, too."""
_HOPS = ("HOP", "IP", "PROTO", "DOES", "LISTENS", "CLIENTS", "HANDS TO", "STATE", "TOLD")
_COLOUR_OF = {
    State.OPEN: "green",
    State.PAUSED: "dim",
    State.PROBLEM: "red",
    State.UNCLEAR: "red",
}
_OUTBOUND = {
    Outbound.REFUSED: "its own firewall rules keep it out",
    Outbound.PARTLY: "its own firewall rules keep it out of a part",
    Outbound.UNKNOWN: "whether its own firewall rules keep it out depends on names that dom0 does not resolve",
}
_LISTENING = {
    Listening.LOCAL: "server on loopback only",
    Listening.NO: "no server",
    Listening.YES: "server listens",
    None: "server unknown",
}
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def list_table(found: Sequence[RuleStatus], now: float, *, colour: bool, width: int | None) -> str:
    """A line for each forward; `now` is in epoch seconds."""
    return table(_LIST, [_row(status, now) for status in found], colour=colour, width=width, spare=_SPARE)


def rule_text(status: RuleStatus, now: float, *, colour: bool, width: int | None) -> str:
    """One forward: the sentence, its words, and its hops in the order in which a packet passes them."""
    words = [
        f"{told(status, now)}",
        "",
        f"qube      {status.qube}, forward f{status.number}, id {status.id}",
        f"rule      {status.rule}",
        f"state     {status.state}",
        f"lifetime  {left(status.rule, now)}",
    ]
    if status.addresses:
        words.append(f"entrance  {', '.join(place(a, status.rule.srcports) for a in status.addresses)}")
    words += [f"sibling   {name}: {_OUTBOUND[word]}" for name, word in status.siblings.items()]
    text = "".join(f"{clean(line)}\n" for line in words)
    if status.hops:
        rows = [_hop_row(hop) for hop in status.hops]
        text += "\n" + table(_HOPS, rows, colour=colour, width=width)
    return text


def amount(count: int | None) -> str:
    """Bytes in a fitting unit, with two or three digits."""
    if count is None:
        return "-"
    size = float(count)
    for unit in _UNITS:
        if size < 999.5 or unit == _UNITS[-1]:
            break
        size /= 1000
    return f"{size:.1f}{unit}" if unit != "B" and size < 9.95 else f"{size:.0f}{unit}"


def _row(status: RuleStatus, now: float) -> list[Cell]:
    rule = status.rule
    connections = status.total("connections")
    return [
        Cell(status.qube),
        Cell(f"f{status.number}"),
        Cell(service_text(rule)),
        Cell(where(status), short=True),
        Cell(rule.dstports.short),
        Cell(who(rule), short=True),
        Cell(left(rule, now)),
        Cell(state_text(status), _colour(status), short=True),
        Cell(amount(status.total("bytes"))),
        Cell("-" if connections is None else str(connections)),
        Cell(rule.comment or "-", short=True),
    ]


def _colour(status: RuleStatus) -> str:
    return "yellow" if status.in_doubt else _COLOUR_OF.get(status.state, "yellow")


def where(status: RuleStatus) -> str:
    """The entrance as a client types it; the first of several, and how many more there are."""
    rule = status.rule
    places = [place(address, rule.srcports) for address in status.addresses]
    more = f" +{len(places) - 1}" if len(places) > 1 else ""
    return f"{places[0]}{more}" if places else f"{status.entrance or ''}:{rule.srcports.short}"


def who(rule: ForwardRule) -> str:
    """Who may connect, for a column."""
    return clients_short(rule) + (" (internal)" if rule.forwardtype is ForwardType.INTERNAL else "")


def state_text(status: RuleStatus) -> str:
    """The state's word, and what is in the way unless the word says it."""
    if status.in_doubt:
        return f"{status.state} ({status.silent[0]}: not confirmed)"
    if status.fault is None or status.state.passes:
        return status.state
    return f"{status.state} ({status.fault.hop}: {status.fault.reason})"


def _hop_row(hop: HopStatus) -> list[Cell]:
    bad = hop.state is not HopState.APPLIED
    deaf = isinstance(hop.entry, Accept) and hop.listening in (Listening.NO, Listening.LOCAL)
    to = place(hop.entry.to, hop.entry.ports) if isinstance(hop.entry, Relay) else "-"
    return [
        Cell(hop.hop),
        Cell(f"v{hop.entry.family:d}"),
        Cell(hop.entry.proto),
        Cell(hop.entry.kind),
        Cell(f"{hop.entry.listen.short} ({hop.entry.side})"),
        Cell(format_source(hop.entry.source), short=True),
        Cell(to, short=True),
        Cell(hop.state, "red" if bad else "green"),
        Cell(_told(hop), "yellow" if deaf else "", short=True),
    ]


def _told(hop: HopStatus) -> str:
    parts = []
    if hop.hits is not None:
        parts.append(f"{hop.hits} connections so far")
    if hop.last is not None:
        parts.append(f"the last {duration(hop.last)} ago")
    if isinstance(hop.entry, Accept):
        parts.append(_LISTENING[hop.listening])
    if hop.connections is not None:
        parts.append(f"{hop.connections} open")
    if hop.bytes is not None and hop.packets is not None:
        parts.append(f"{hop.packets} packets, {amount(hop.bytes)}")
    return ", ".join(parts) or "-"
