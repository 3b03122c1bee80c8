# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The command plan of qvm-port-forward: each hop's part now, or after a change that is not stored."""

import argparse
import time
from collections.abc import Sequence

from portfwd.api.plan import PlanAnswer
from portfwd.api.status import HopStatus
from portfwd.client.adminapi import AdminClient
from portfwd.client.commands.changing import edit_of, rule_of
from portfwd.client.commands.codes import Exit
from portfwd.client.edits import Rules, added, edited
from portfwd.client.forward_state import RuleStatus, State, judged_plan
from portfwd.client.text.sentences import entrances, place, target, told
from portfwd.client.text.terminal import say
from portfwd.client.typed.arguments import lookup_service, qube_of
from portfwd.client.typed.naming import find
from portfwd.model.forward import ForwardRule
from portfwd.wire.entry import Entry, Relay
from portfwd.wire.values import HostName, QubeName, Side, SourceWord

_SIDES = {
    Side.UPLINK: "that comes in by its uplink",
    Side.INNER: "that its net qube hands on",
    Side.DOWNSTREAM: "of the qubes and tunnels behind it",
}


def plan(client: AdminClient, args: argparse.Namespace) -> Exit:
    """Print in sentences what stands or would stand on each hop, with its nft elements."""
    qube = qube_of(args)
    present = client.forwards(qube).rules
    if args.change is None:
        _say_plan(client.plan(qube), qube, present, present)
        return Exit.DONE
    wanted, changed = _candidate(qube, present, args)
    # dom0 decides whether it would take the list, also where no rule of it is to be shown.
    answer = client.plan(qube, wanted)
    gone = [rule for rule in present if rule.does not in {other.does for other in wanted if other.enabled}]
    for rule in gone:
        say(f"Every hop would forget {target(qube, rule)} at {entrances(rule, (), None)}, and end its connections.")
    if changed is not None and changed.enabled:
        _say_plan(answer, qube, wanted, [changed])
    say("Nothing has been changed.")
    return Exit.DONE


def _candidate(qube: QubeName, present: Rules, args: argparse.Namespace) -> tuple[Rules, ForwardRule | None]:
    if args.change == "add":
        rule = rule_of(args, time.time())
        return added(present, rule), rule
    number = find(args.forward, qube, present, lookup_service).number
    return edited(present, number, edit_of(args.change, args))


def _say_plan(answer: PlanAnswer, qube: QubeName, rules: Rules, chosen: Sequence[ForwardRule]) -> None:
    wanted = {rule.id(qube) for rule in chosen}
    for status in judged_plan(answer, qube, rules):
        if status.id in wanted:
            _say_rule(status)
    if not chosen:
        say(f"{qube} has no forwards.")
    for hop, preview in answer.elements.items():
        say(f"nft elements of {hop}:")
        for line in ("not known: its agent does not answer",) if preview is None else preview.elements:
            say(f"    {line}")
        if preview is not None and preview.more:
            say(f"    ... and {preview.more} more")


def _say_rule(status: RuleStatus) -> None:
    rule = status.rule
    if status.state in (State.PROBLEM, State.PAUSED):
        say(told(status, time.time()))
        return
    say(f"{target(status.qube, rule)} at {entrances(rule, status.addresses, status.entrance)}:")
    for hop in status.hops:
        say(f"    {hop.hop}: {_sentence(hop)}")


def _sentence(hop: HopStatus) -> str:
    entry = hop.entry
    ports = f"IPv{entry.family:d} {entry.proto} port{'s' if len(entry.listen) > 1 else ''} {entry.listen.short}"
    if isinstance(entry, Relay):
        return f"hands {ports} {_SIDES[entry.side]}{_from(entry)} to {place(entry.to, entry.ports)}"
    return f"lets in {ports}{_from(entry)}"


def _from(entry: Entry) -> str:
    if entry.source is SourceWord.ANYONE:
        return ""
    if entry.source is SourceWord.NEIGHBOURS:
        return " from its neighbours"
    return f" from {entry.source}{', as it resolves it' if isinstance(entry.source, HostName) else ''}"
