# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""qvm-firewall: the outbound rules of a qube (as in the stock tool), and its forwards.

Exit codes: 0 done, 1 qubesd refused or did not answer, 2 wrong usage or a rule that does not exist.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

from portfwd.client.adminapi import AdminClient, CallError, NoExtensionError, Transport, connect
from portfwd.client.edits import Number, UsageError, add_forward, add_ordinary, delete, remove_all, reset
from portfwd.client.text.rule_table import forwards_table, ordinary_table
from portfwd.model.command import Rule, parse_match
from portfwd.model.forward import ForwardRule
from portfwd.wire.errors import RefusedError, shown
from portfwd.wire.values import QubeName

VERSION = "0.1.0"
_SHUT_SECONDS = 5.0
"""Seconds that the hops have to confirm a removal before the user learns that they have not."""
_PROGRAM = "qvm-firewall"
_EPILOG = """
Rules can be given as positional arguments:
    <action> [<dsthost> [<proto> [<dstports>|<icmptype>]]]
    forward <forwardtype> <proto> <srcports> [<dstports> [<srchost>]]

And as keyword arguments:
    action=<action> [specialtarget=dns] [dsthost=<dsthost>]
    [proto=<proto>] [dstports=<dstports>] [icmptype=<icmptype>]
    [expire=<expire>]

    action=forward forwardtype=<forwardtype> [proto=<proto>]
    srcports=<srcports> [dstports=<dstports>] [srchost=<srchost>]
    [enabled=no] [expire=<expire>]

Both formats, positional and keyword arguments, can be used
interchangeably.

Available matches:
    action:        accept or drop
    dst4           synonym for dsthost
    dst6           synonym for dsthost
    dsthost        IP, network or hostname
                     (e.g. 10.5.3.2, 192.168.0.0/16,
                     www.example.com, fd00::/8)
    dstports       port or port range
                     (e.g. 443 or 1200-1400)
    icmptype       icmp type number (e.g. 8 for echo requests)
    proto          icmp, tcp or udp
    specialtarget  only the value dns is currently supported,
                     it matches the configured dns servers of
                     a VM
    expire         the rule is automatically removed at the time given as
                     seconds since 1/1/1970, or from now: +seconds, +30m,
                     +2h, +7d (e.g. +300 for a rule to expire in 5 minutes)

Port forwarding (action=forward), from the network to VMNAME:
    forwardtype    external: reachable from outside the outermost net qube
                   internal: reachable from the qubes, and from the VPN
                     tunnel, that end in the net qube of VMNAME
    proto          tcp or udp; both when omitted
    srcports       port or port range at the entrance
    dstports       port or port range of VMNAME; the same when omitted.
                     A range is as long as srcports, or one port
    srchost        who may connect: IP, network, hostname, or any for
                     everyone. When omitted only the neighbours: the
                     networks that the outermost net qube is attached to,
                     or the qubes behind the same net qube
    src4, src6     synonyms for srchost
    enabled        no keeps the rule and shuts the port
    expire         also reboot (of the computer) and shutdown (of VMNAME)
    Forwards have numbers of their own: f0, f1, ...
    del finds a forward by what it does; enabled, expire and comment do
    not matter.

Comments:
    Rules can be annotated with free form text on creation using [comment=<text>]

"""


class _Parser(argparse.ArgumentParser):
    """A parser with the options that every tool of Qubes has; its help shows the usage of the commands, too."""

    def __init__(self, default: Any = argparse.SUPPRESS, **kwargs: Any) -> None:
        """`default`: None in the outermost parser; a command's parser must not reset options given before its name."""
        super().__init__(add_help=False, **kwargs)
        self.commands: dict[str, _Parser] = {}
        self.add_argument("--verbose", "-v", action="count", default=default, help="increase verbosity")
        self.add_argument("--quiet", "-q", action="count", default=default, help="decrease verbosity")
        self.add_argument("--force-root", action="store_true", help=argparse.SUPPRESS)
        self.add_argument("--help", "-h", action="help", help="show this help message and exit")
        version = f"{_PROGRAM} (Qubes Port Forwarding) {VERSION}\nLicense: GPL-2.0-or-later"
        self.add_argument("--version", action="version", version=version)

    def print_help(self, file: Any = None) -> None:
        super().print_help(file)
        for command, parser in self.commands.items():
            usage = "".join(f"  {line}\n" for line in parser.format_usage().splitlines())
            print(f"\nCommand '{command}':\n{usage}", end="", file=file)


def main(argv: Sequence[str] | None = None, transport: Transport | None = None) -> int:
    """Run one command; returns the exit code. `transport` leads to qubesd, by default as this machine does."""
    parser = _parser()
    if "_ARGCOMPLETE" in os.environ:
        from portfwd.client.typed.completion import complete

        complete(parser, transport)
    args = parser.parse_args(argv)
    user = parser.commands.get(args.command, parser)
    now = time.time()
    try:
        match = parse_match(args.rule, now) if getattr(args, "rule", None) else None
        if args.command == "del" and args.rule_no is None and match is None:
            raise UsageError("give the number of a rule (--rule-no) or its description")
    except RefusedError as error:
        user.error(str(error))
    try:
        client = AdminClient(transport or connect())
        qubes = client.qubes()
        try:
            qube = _find(qubes, args.VMNAME[0])
        except UsageError as error:
            parser.error(str(error))
        return _run(client, qube, args, match, now)
    except UsageError as error:
        user.error(str(error))
    except (CallError, RefusedError) as error:
        return _failed(error)
    except KeyboardInterrupt:
        if args.command in ("add", "del", "reset"):
            seen = f"{_PROGRAM} {args.VMNAME[0]} list"
            print(f"Interrupted: a change may have been made, see {shown(seen)}", file=sys.stderr)
        return 130


def _run(client: AdminClient, qube: QubeName, args: argparse.Namespace, match: Rule | None, now: float) -> int:
    if args.command == "del":
        meant = args.rule_no if match is None or args.rule_no is not None else match
        return _said_shut(client, qube, delete(client, qube, meant))
    if args.command == "reset":
        return _reset(client, qube, forwards=args.forwards, quiet=bool(args.quiet))
    if isinstance(match, ForwardRule):
        add_forward(client, qube, match, args.before)
        if match.enabled and (problem := client.problem(qube, match)) is not None:
            print(f"Note: the forward is stored but opens nothing yet: {problem}", file=sys.stderr)
    elif match is not None:
        add_ordinary(client, qube, match, args.before)
    else:
        # A file that was mended by hand is listed as it is now.
        mended = args.reload and _is_damaged(client, qube)
        if mended:
            client.reload(qube)
        code = _list(client, qube, now, raw=args.raw)
        if args.reload and not mended:
            client.reload(qube)
        return code
    return 0


def _is_damaged(client: AdminClient, qube: QubeName) -> bool:
    try:
        client.forwards(qube)
    except NoExtensionError:
        return False
    except RefusedError:
        return True
    return False


def _reset(client: AdminClient, qube: QubeName, *, forwards: bool, quiet: bool) -> int:
    """Reset outbound rules as the stock does. Forwards stay without --forwards; the user is told either way."""
    code = 0
    if forwards and (gone := remove_all(client, qube)):
        if not quiet:
            print(f"Note: {_count(gone, qube)} {'are' if len(gone) > 1 else 'is'} removed", file=sys.stderr)
        code = _said_shut(client, qube, gone)
    reset(client, qube, lambda text: print(f"Note: {text}", file=sys.stderr))
    if forwards or quiet:
        return code
    command = f"'{_PROGRAM} {qube} reset --forwards'"
    try:
        left = client.forwards(qube).rules
    except NoExtensionError:
        return code
    except RefusedError as error:
        print(f"Note: forwards of {qube} stay as they were, and cannot be listed: {error}", file=sys.stderr)
        return code
    if left:
        stays, them = ("stay as they were", "them") if len(left) > 1 else ("stays as it was", "it")
        print(f"Note: {_count(left, qube)} {stays}; {command} removes {them}", file=sys.stderr)
    return code


def _count(forwards: Sequence[ForwardRule], qube: QubeName) -> str:
    return f"{len(forwards)} forward{'s' if len(forwards) > 1 else ''} of {qube}"


def _said_shut(client: AdminClient, qube: QubeName, removed: Sequence[ForwardRule]) -> int:
    """Print when it is not certain that removed forwards are shut; returns the exit code."""
    if not removed:
        return 0
    # Imported here: only removals need it, and every start of the program would pay for it.
    from portfwd.client.commands.codes import Exit
    from portfwd.client.following import shut

    doubt = shut(client, qube, removed, _SHUT_SECONDS).doubt
    if not doubt:
        return 0
    print(f"Note: the forward is removed, but {doubt}", file=sys.stderr)
    return Exit.NOT_OPEN


def _list(client: AdminClient, qube: QubeName, now: float, *, raw: bool) -> int:
    """Print the ordinary rules as the stock tool, then the forwards if there are any."""
    rules = client.rules(qube)
    sys.stdout.write("".join(f"{rule.line()}\n" for rule in rules) if raw else ordinary_table(rules, now))
    try:
        forwards = client.forwards(qube).rules
    except NoExtensionError:
        return 0
    except RefusedError as error:
        return _failed(error)
    if raw:
        sys.stdout.write("".join(f"{rule}\n" for rule in forwards))
    elif forwards:
        sys.stdout.write("\n" + forwards_table(forwards, now))
    return 0


def _failed(error: Exception) -> int:
    print("Error:", error, file=sys.stderr)
    return 1


def _find(qubes: Sequence[QubeName], pattern: str) -> QubeName:
    """The one qube of that name or shell pattern."""
    if not any(wildcard in pattern for wildcard in "*?[!]"):
        found = [qube for qube in qubes if qube == pattern]
    else:
        # Imported here: few command lines have a pattern, and every start of the program would pay for it.
        import fnmatch

        found = [qube for qube in qubes if fnmatch.fnmatchcase(qube, pattern)]
    if not found:
        raise UsageError(f"no such domain: {shown(pattern)}")
    if len(found) > 1:
        raise UsageError(f"{shown(pattern)} means several domains: {', '.join(sorted(found))}")
    return found[0]


def _number(text: str) -> Number:
    try:
        return Number.parse(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _parser() -> _Parser:
    parser = _Parser(default=None, prog=_PROGRAM, epilog=_EPILOG, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("VMNAME", nargs=1, help="a domain name")
    commands = parser.add_subparsers(dest="command", help="action to perform")
    add = commands.add_parser("add", help="add rule")
    where = "Add rule before rule with given number instead at the end"
    add.add_argument("--before", type=_number, help=where)
    add.add_argument("rule", metavar="match", nargs="+", help="rule description")
    delete_ = commands.add_parser("del", help="remove rule")
    delete_.add_argument("--rule-no", dest="rule_no", type=_number, help="rule number")
    delete_.add_argument("rule", metavar="match", nargs="*", help="rule to be removed")
    list_ = commands.add_parser("list", help="list rules")
    what = "remove all firewall rules and reset to default (accept all connections);\nforwards stay, unless --forwards"
    reset_ = commands.add_parser("reset", help=what)
    reset_.add_argument("--forwards", action="store_true", help="remove all forwards of the qube, too")
    parser.commands = {"add": add, "del": delete_, "list": list_, "reset": reset_}
    parser.add_argument("--reload", "-r", action="store_true", help="force reload of rules even when unchanged")
    parser.add_argument("--raw", action="store_true", help="output rules as raw strings, instead of nice table")
    return parser


if __name__ == "__main__":
    sys.exit(main())
