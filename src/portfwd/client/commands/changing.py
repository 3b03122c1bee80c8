# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The commands of qvm-port-forward that change something: add, remove, edit, pause, resume, kill.

Each takes the client and the parsed arguments, prints the result as a sentence, and returns the exit code.
"""

import argparse
import contextlib
import dataclasses
import functools
import time
from collections.abc import Iterator

from portfwd.api.errors import ErrorWord
from portfwd.api.status import HopState
from portfwd.client.adminapi import AdminClient, ApiError, UnstoredError
from portfwd.client.commands.codes import Exit
from portfwd.client.edits import Edit, Rules, UsageError, added, edited
from portfwd.client.following import follow, shut
from portfwd.client.forward_state import RuleStatus, State
from portfwd.client.text.sentences import notes, target, told
from portfwd.client.text.terminal import complain, say
from portfwd.client.typed.arguments import PROGRAM, lookup_service, options_of, qube_of
from portfwd.client.typed.naming import find
from portfwd.client.typed.shorthand import Options, changed_rule, free_ports, new_rule, parse_peer, parse_service
from portfwd.model.errors import RuleError
from portfwd.model.forward import ForwardRule
from portfwd.wire.errors import RefusedError, shown
from portfwd.wire.values import PortRange, QubeName

_PICKS = 50
"""Refused ports after which the search for a free one ends: others take them faster."""


def add(client: AdminClient, args: argparse.Namespace) -> Exit:
    """Store a new forward and wait until every hop has acknowledged it."""
    qube, rule = qube_of(args), rule_of(args, time.time())
    if args.pick_port:
        return _add_on_free_port(client, qube, rule, args)
    client.edit_forwards(qube, lambda present: added(present, rule))
    return _report(client, qube, rule, args)


def remove(client: AdminClient, args: argparse.Namespace) -> Exit:
    """Remove a forward, and wait until every hop has confirmed it."""
    qube = qube_of(args)
    rule, _ = _edit(client, qube, args, edit_of("remove", args))
    good = f"{target(qube, rule)} is no longer reachable at {_entrance(rule)}; the forward is removed"
    return _code(args, _say_shut(client, qube, rule, args, good, "The forward is removed"))


def edit(client: AdminClient, args: argparse.Namespace) -> Exit:
    """Change the given words of a forward; it keeps its number."""
    qube = qube_of(args)
    before, after = _edit(client, qube, args, edit_of("edit", args))
    return _code(args, _report(client, qube, after or before, args))


def pause(client: AdminClient, args: argparse.Namespace) -> Exit:
    """Shut the port and keep the forward; wait until every hop has confirmed it."""
    qube = qube_of(args)
    rule, _ = _edit(client, qube, args, edit_of("pause", args))
    good = f"{target(qube, rule)} is not reachable at {_entrance(rule)} until you resume the forward"
    return _code(args, _say_shut(client, qube, rule, args, good, "The forward is paused"))


def resume(client: AdminClient, args: argparse.Namespace) -> Exit:
    """Open the port of a paused forward again."""
    qube = qube_of(args)
    before, after = _edit(client, qube, args, edit_of("resume", args))
    return _report(client, qube, after or before, args)


def kill(client: AdminClient, args: argparse.Namespace) -> Exit:
    """End one open connection."""
    qube = qube_of(args)
    try:
        address, port = parse_peer(args.client)
    except RuleError as error:
        raise UsageError(str(error)) from None
    meant = [c for c in client.connections(qube).told if (c.connection.client, c.connection.port) == (address, port)]
    if not meant:
        raise RefusedError(f"{qube} has no open connection of {shown(args.client)}")
    # A connection that several forwards allow is listed with each of them.
    for connection in dict.fromkeys(c.connection for c in meant):
        client.kill(qube, connection)
        say(f"Ended the {connection.proto} connection of {args.client} to {qube}'s port {connection.to}")
    return Exit.DONE


def rule_of(args: argparse.Namespace, now: float) -> ForwardRule:
    """The rule that add stores. Raises UsageError."""
    try:
        return new_rule(parse_service(args.service, lookup_service), options_of(args), now)
    except RuleError as error:
        raise UsageError(str(error)) from None


def edit_of(command: str, args: argparse.Namespace) -> Edit:
    """The edit of remove, edit, pause or resume: rule -> new rule, None to remove it. Raises UsageError."""
    if command == "remove":
        return lambda _: None
    if command in ("pause", "resume"):
        return lambda rule: dataclasses.replace(rule, enabled=command == "resume")
    try:
        service = None if args.service is None else parse_service(args.service, lookup_service)
    except RuleError as error:
        raise UsageError(str(error)) from None
    options, now = options_of(args), time.time()
    if service is None and options == Options():
        raise UsageError("say what to change: a service, --from, --for, --until, --comment...")

    def change(rule: ForwardRule) -> ForwardRule:
        try:
            return changed_rule(rule, service, options, now)
        except RuleError as error:
            raise UsageError(str(error)) from None

    return change


def _add_on_free_port(client: AdminClient, qube: QubeName, rule: ForwardRule, args: argparse.Namespace) -> Exit:
    """Try the wanted port, then those above, skipping ports that dom0 or a net qube reports as taken."""
    taken = _taken(client, qube, rule)
    for _ in range(_PICKS):
        ports = next(free_ports(rule.srcports, taken), None)
        if ports is None:
            break
        picked = dataclasses.replace(rule, srcports=ports)
        try:
            client.edit_forwards(qube, functools.partial(added, rule=picked))
        except ApiError as error:
            if error.exception != ErrorWord.TAKEN:
                raise
            taken.append(ports)
            continue
        status = _wait(client, qube, picked, args)
        if status is None or status.fault is None or status.fault.reason != HopState.OCCUPIED:
            return _say_outcome(status, qube, picked, args)
        # dom0 cannot know the ports of a net qube's own programs.
        client.edit_forwards(qube, functools.partial(_without, rule=picked))
        taken.append(ports)
    raise RefusedError(f"no free port was found from {rule.srcports.short} on")


def _without(present: Rules, rule: ForwardRule) -> Rules:
    return tuple(other for other in present if other.does != rule.does)


def _taken(client: AdminClient, qube: QubeName, rule: ForwardRule) -> list[PortRange]:
    """The ports of all forwards of that kind and protocol, or of this qube's where dom0 tells no more."""
    try:
        rules = [forward.rule for forward in client.status(None).forwards]
    except RefusedError:
        rules = list(client.forwards(qube).rules)
    return [r.srcports for r in rules if r.forwardtype is rule.forwardtype and set(r.protos) & set(rule.protos)]


def _edit(
    client: AdminClient, qube: QubeName, args: argparse.Namespace, change: Edit
) -> tuple[ForwardRule, ForwardRule | None]:
    """Edit the forward that the words mean; returns it before and after (None after its removal)."""
    outcome: list[tuple[ForwardRule, ForwardRule | None]] = []

    def change_list(present: Rules) -> Rules:
        found = find(args.forward, qube, present, lookup_service)
        if outcome and found.by_number:
            raise RefusedError("forwards were changed by someone else meanwhile; nothing was done, list them again")
        rules, after = edited(present, found.number, change)
        outcome[:] = [(present[found.number], after)]
        return rules

    try:
        client.edit_forwards(qube, change_list)
    except UnstoredError as error:
        if not outcome:
            raise
        complain(f"Note: {error}")
        args.unstored = True
    return outcome[0]


def _code(args: argparse.Namespace, code: Exit) -> Exit:
    """The exit code; a change that dom0 could not store is no success."""
    return Exit.NOT_OPEN if code is Exit.DONE and getattr(args, "unstored", False) else code


def _report(client: AdminClient, qube: QubeName, rule: ForwardRule, args: argparse.Namespace) -> Exit:
    return _say_outcome(_wait(client, qube, rule, args), qube, rule, args)


def _wait(client: AdminClient, qube: QubeName, rule: ForwardRule, args: argparse.Namespace) -> RuleStatus | None:
    """The status of the forward once every hop has answered, or after `args.wait` seconds; None when it is unknown."""
    removed_by = f"'{PROGRAM} remove {qube} {rule.srcports.short}:{rule.dstports.short}' takes it away"
    with _standing(f"the forward is stored, and opens {target(qube, rule)} when every hop is ready; {removed_by}"):
        followed = follow(client, qube, rule.id(qube), 0 if args.no_wait else args.wait)
    if followed.error:
        complain(f"Note: the status cannot be read: {followed.error}")
    return followed.status


def _say_shut(
    client: AdminClient, qube: QubeName, rule: ForwardRule, args: argparse.Namespace, good: str, done: str
) -> Exit:
    with _standing(f"{done[:1].lower()}{done[1:]}, but it is not known whether the port is shut"):
        found = shut(client, qube, (rule,), 0 if args.no_wait else args.wait)
    if found.certain:
        say(good)
        return Exit.DONE
    complain(f"{done}, but {found.doubt}")
    return Exit.DONE if args.no_wait else Exit.NOT_OPEN


def _say_outcome(status: RuleStatus | None, qube: QubeName, rule: ForwardRule, args: argparse.Namespace) -> Exit:
    now = time.time()
    if status is None:
        complain(f"Stored, but it is not known whether {target(qube, rule)} is open")
        return Exit.DONE if args.no_wait else Exit.NOT_OPEN
    for note in notes([status]):
        complain(note)
    if status.state.passes:
        say(told(status, now, "can now reach"))
        return Exit.DONE
    complain(f"Stored as forward f{status.number}, but {told(status, now)}")
    return Exit.DONE if args.no_wait or status.state is State.PAUSED else Exit.NOT_OPEN


@contextlib.contextmanager
def _standing(text: str) -> Iterator[None]:
    """On Ctrl-C while waiting, say what is stored: nothing is undone."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(text) from None


def _entrance(rule: ForwardRule) -> str:
    return f"{' and '.join(rule.protos)} port{'s' if len(rule.srcports) > 1 else ''} {rule.srcports.short}"
