# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The commands of qvm-port-forward that only look: list, show, check.

Each takes the client and the parsed arguments, prints, and returns the exit code.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterable

from portfwd.api.connections import Clients
from portfwd.api.diagnosis import CheckResult
from portfwd.client.adminapi import AdminClient
from portfwd.client.commands.codes import Exit
from portfwd.client.edits import UsageError
from portfwd.client.forward_state import RuleStatus, judged
from portfwd.client.gathering import gather, gather_each
from portfwd.client.text.sentences import notes
from portfwd.client.text.tables import list_table, rule_text
from portfwd.client.text.terminal import complain, say, wants_colour, width_of
from portfwd.client.typed.arguments import lookup_service, parse_qube, qube_of
from portfwd.client.typed.naming import find
from portfwd.wire.errors import RefusedError
from portfwd.wire.values import IPAddress, QubeName, parse_address


def list_(client: AdminClient, args: argparse.Namespace) -> Exit:
    """Print all forwards of the named qubes, or of all."""
    names = [parse_qube(name) for name in args.qubes]
    found, untold = gather(client) if not names else gather_each(client, names)
    now = time.time()
    if args.json:
        from portfwd.client.text.json_out import list_json

        print(list_json(found, untold, now))
    elif found:
        sys.stdout.write(list_table(found, now, colour=_colour(), width=width_of(sys.stdout)))
        _say_notes(found)
    elif not untold:
        say("No forwards.")
    for qube, reason in untold.items():
        complain(f"Error: {qube}: {reason}")
    return Exit.REFUSED if untold else Exit.DONE


def show(client: AdminClient, args: argparse.Namespace) -> Exit:
    """Print one forward hop by hop, and who is connected."""
    qube = qube_of(args)
    status = _one(client, qube, args.forward)
    try:
        connections = client.connections(qube)
    except RefusedError as error:
        complain(f"Note: the open connections are not known: {error}")
        connections = None
    mine = None if connections is None else [c for c in connections.told if c.rule == status.id]
    if args.json:
        from portfwd.client.text.json_out import show_json

        print(show_json(status, mine, connections.more if connections else None, time.time()))
        return Exit.DONE
    sys.stdout.write(rule_text(status, time.time(), colour=_colour(), width=width_of(sys.stdout)))
    _say_notes([status])
    if mine:
        _say_connections(Clients(tuple(mine), connections.more if connections else 0))
    return Exit.DONE


def _say_notes(found: Iterable[RuleStatus]) -> None:
    for note in notes(found):
        complain(note)


def check(client: AdminClient, args: argparse.Namespace) -> Exit:
    """Find what is in the way of one forward, or of all of a qube."""
    qube = qube_of(args)
    sender = None if args.client is None else _address(args.client)
    chosen = [_one(client, qube, args.forward)] if args.forward else list(judged(client.status(qube)))
    checked = [(status, client.check(qube, status.id, sender)) for status in chosen]
    now = time.time()
    if args.json:
        from portfwd.client.text.json_out import check_json

        print(check_json(checked, now))
    else:
        from portfwd.client.text.sentences import entrances, outcome, target

        for status, diagnosis in checked:
            where = entrances(status.rule, status.addresses, status.entrance)
            say(f"{target(qube, status.rule)} at {where}:")
            for finding in diagnosis.findings:
                mark = {CheckResult.OK: "ok  ", CheckResult.BAD: "BAD ", CheckResult.HINT: "hint"}.get(
                    finding.result, "?   "
                )
                say(f"  {mark} {finding.hop}: {finding.text or finding.cause}")
            say(f"  {outcome(diagnosis)}")
        if not checked:
            say(f"{qube} has no forwards.")
    opens = {diagnosis.opens for _, diagnosis in checked}
    return Exit.FAULT if False in opens else Exit.NOT_OPEN if None in opens else Exit.DONE


def _address(text: str) -> IPAddress:
    try:
        return parse_address(text)
    except RefusedError as error:
        raise UsageError(f"--from: {error}") from None


def _colour() -> bool:
    return wants_colour(sys.stdout, os.environ)


def _one(client: AdminClient, qube: QubeName, words: str | None) -> RuleStatus:
    found = judged(client.status(qube))
    if words is None:
        if len(found) == 1:
            return found[0]
        raise UsageError(f"{qube} has {len(found)} forwards; say which one")
    return found[find(words, qube, [status.rule for status in found], lookup_service).number]


def _say_connections(connections: Clients) -> None:
    say("")
    say("Open connections:")
    for client in connections.told:
        say(f"  {client.connection.proto} {client.peer} to port {client.connection.to}")
    if connections.more:
        say(f"  and {connections.more} more")
