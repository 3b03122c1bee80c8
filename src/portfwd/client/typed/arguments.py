# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The command line of qvm-port-forward: its words and its help, and how they are read. Reads /etc/services only."""

import argparse
import socket
from collections.abc import Mapping
from typing import Any

from portfwd.client.edits import UsageError
from portfwd.client.typed.shorthand import Options
from portfwd.model.forward import ForwardType
from portfwd.wire.errors import RefusedError, shown
from portfwd.wire.values import Proto, QubeName

VERSION = "0.1.0"
PROGRAM = "qvm-port-forward"
_WAIT = 5.0
_WAIT_MAX = 600.0

_EPILOG = """\
examples:
  qvm-port-forward list
  qvm-port-forward add work 443:8443/tcp --for 2h --comment web
  qvm-port-forward show work 443
  qvm-port-forward remove work 443

exit codes: 0 done (after add, edit, resume: open on every hop), 1 refused or failed and nothing changed,
2 usage, 3 stored but not open on every hop, 4 check found a fault, 5 the answer to a change got lost
"""
_SERVICE_HELP = "ENTRANCE[:TARGET][/tcp|/udp], ports, ranges or service names: 443:8443/tcp, 8443, ssh, 5000-5010/udp"
_FORWARD_HELP = "number (f0), service (443, 443:8443/tcp, ssh) or id of the forward"
_EXAMPLES = {
    "list": "list\nlist work personal\nlist --json",
    "add": (
        "add work 443:8443/tcp\nadd work ssh --from 192.168.1.20 --until 18:00\nadd work 8443 --internal\n"
        "add work 5000-5010/udp --from 192.168.1.0/24 --for 2h --comment game\nadd work 8080/tcp --anyone --pick-port"
    ),
    "remove": "remove work 443\nremove work f0",
    "edit": (
        "edit work 443 --for 2h\nedit work f0 --from 192.168.1.0/24\nedit work 443 444:8443/tcp\n"
        "edit work f0 --until never"
    ),
    "pause": "pause work 443",
    "resume": "resume work 443",
    "show": "show work 443\nshow work f0 --json",
    "kill": "kill work 192.168.1.20:50123\nkill work '[2001:db8:1::14]:50123'",
    "plan": "plan work\nplan work add 443:8443/tcp --anyone\nplan work remove f0",
    "check": "check work\ncheck work 443\ncheck work 443 --from 192.168.1.20\ncheck work f0 --json",
}
_DOES = {
    "list": "all forwards of all qubes, or of those named",
    "add": "open a port of the network to a qube",
    "remove": "close a port and forget the forward",
    "edit": "change what is given of a forward; it keeps its number",
    "pause": "close a port and keep the forward",
    "resume": "open the port of a paused forward again",
    "show": "one forward, hop by hop, and who is connected",
    "kill": "end one open connection",
    "plan": "what each hop does or would do; touches nothing",
    "check": "find what is in the way of a forward",
}


class Parser(argparse.ArgumentParser):
    """A parser that prints the examples below its help as they are written."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **kwargs)


def make_parser() -> Parser:
    """The parser of the whole command line."""
    parser = Parser(prog=PROGRAM, description="Port forwarding to qubes: see and steer.", epilog=_EPILOG)
    version = f"{PROGRAM} (Qubes Port Forwarding) {VERSION}"
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    made: dict[str, Parser] = {}
    for name, does in _DOES.items():
        lines = "".join(f"  {PROGRAM} {line}\n" for line in _EXAMPLES[name].splitlines())
        made[name] = commands.add_parser(
            name, help=does, description=does.capitalize() + ".", epilog=f"examples:\n{lines}"
        )
    made["list"].add_argument("qubes", metavar="QUBE", nargs="*", help="only the forwards of these qubes")
    for name in ("add", "remove", "edit", "pause", "resume", "show", "kill", "plan", "check"):
        made[name].add_argument("qube", metavar="QUBE", help="name of the qube that serves")
    _add_change_arguments({name: made[name] for name in ("add", "remove", "edit", "pause", "resume")})
    for name in ("add", "remove", "edit", "pause", "resume"):
        _add_waiting(made[name])
    made["add"].add_argument(
        "--pick-port", action="store_true", help="if ENTRANCE is taken, choose the next port above that is free"
    )
    made["kill"].add_argument(
        "client", metavar="CLIENT:PORT", help="address and port of the client, as show prints them"
    )
    for name in ("show", "check"):
        made[name].add_argument("forward", metavar="FORWARD", nargs="?", help=_FORWARD_HELP)
    for name in ("list", "show", "check"):
        made[name].add_argument("--json", action="store_true", help="for programs: docs/qvm-port-forward.md")
    made["check"].add_argument(
        "--from", dest="client", metavar="ADDRESS", help="the probe comes from this client, who could not connect"
    )
    changes = made["plan"].add_subparsers(
        dest="change", metavar="CHANGE", help="show this change instead of the present"
    )
    _add_change_arguments({name: changes.add_parser(name) for name in ("add", "remove", "edit", "pause", "resume")})
    return parser


def qube_of(args: argparse.Namespace) -> QubeName:
    """The qube that the command is about. Raises UsageError."""
    return parse_qube(args.qube)


def parse_qube(text: str) -> QubeName:
    """Read a qube's name. Raises UsageError."""
    try:
        return QubeName(text)
    except RefusedError:
        raise UsageError(f"no such domain: {shown(text)}") from None


def options_of(args: argparse.Namespace) -> Options:
    """The options of a rule. Raises UsageError."""
    if len(args.source or ()) > 1:
        raise UsageError("one forward has one --from: add a second forward, or give a prefix that holds both")
    source = "any" if args.anyone else args.source[0] if args.source else None
    return Options(source, args.forwardtype, args.lifetime, args.until, args.comment)


def lookup_service(name: str) -> dict[Proto, int]:
    """The ports of a name in the services database (getservbyname)."""
    found = {}
    for proto in Proto:
        try:
            found[proto] = socket.getservbyname(name, proto)
        except (OSError, UnicodeError, ValueError):
            continue
    return found


def _add_change_arguments(parsers: Mapping[str, Parser]) -> None:
    for name in ("remove", "edit", "pause", "resume"):
        parsers[name].add_argument("forward", metavar="FORWARD", help=_FORWARD_HELP)
    parsers["add"].add_argument("service", metavar="SERVICE", help=_SERVICE_HELP)
    parsers["edit"].add_argument("service", metavar="SERVICE", nargs="?", help=_SERVICE_HELP)
    _add_rule_options(parsers["add"])
    _add_rule_options(parsers["edit"])


def _add_rule_options(parser: Parser) -> None:
    who = parser.add_mutually_exclusive_group()
    who.add_argument(
        "--from",
        dest="source",
        action="append",
        metavar="CLIENTS",
        help="an address, a prefix, a host name, or 'neighbours' (the default: the networks of the uplink, "
        "for --internal the qubes behind the same net qube)",
    )
    who.add_argument("--anyone", action="store_true", help="everyone who can reach the entrance")
    kind = parser.add_mutually_exclusive_group()
    internal, external = ForwardType.INTERNAL, ForwardType.EXTERNAL
    help_ = "reachable from the qubes and tunnels of the same net qube, not from outside"
    kind.add_argument("--internal", dest="forwardtype", action="store_const", const=internal, help=help_)
    help_ = "reachable from outside, the default of add"
    kind.add_argument("--external", dest="forwardtype", action="store_const", const=external, help=help_)
    end = parser.add_mutually_exclusive_group()
    end.add_argument("--for", dest="lifetime", metavar="TIME", help="close it after 30m, 2h, 1d12h...")
    help_ = "close it at 15:30, 2026-12-01, '2026-12-01 15:30', reboot (of the computer), shutdown (of QUBE); or never"
    end.add_argument("--until", metavar="END", help=help_)
    parser.add_argument("--comment", metavar="TEXT", help="your words for it")


def _add_waiting(parser: Parser) -> None:
    help_ = f"how long to wait until every hop has answered (default {_WAIT:.0f})"
    parser.add_argument("--wait", type=_seconds, default=_WAIT, metavar="SECONDS", help=help_)
    parser.add_argument("--no-wait", action="store_true", help="do not wait; then 0 means stored, no more")


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= _WAIT_MAX:
        raise argparse.ArgumentTypeError(f"{shown(text)} is not a number of seconds up to {_WAIT_MAX:.0f}")
    return seconds
