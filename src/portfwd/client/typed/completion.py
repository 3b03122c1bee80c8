# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Completion at Tab: qubes, forwards, services. argcomplete connects it with bash and zsh.

Imported only when a shell asks (completion/). It reads names and rules from dom0 and changes nothing. What cannot be
read is not offered, without a message, since the user's half typed line is on the screen.
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from portfwd.client.adminapi import AdminClient, Transport, connect
from portfwd.client.typed.shorthand import service_text
from portfwd.wire.errors import RefusedError
from portfwd.wire.values import QubeName

_SERVICES = Path("/etc/services")
_WORDS = {
    "CLIENTS": ("neighbours",),
    "TIME": ("15m", "30m", "1h", "2h", "8h", "1d", "7d"),
    "END": ("reboot", "shutdown", "never"),
    "match": (
        *("accept", "drop", "forward", "action=", "dsthost=", "proto=tcp", "proto=udp", "proto=icmp", "dstports="),
        *("specialtarget=dns", "icmptype=", "forwardtype=external", "forwardtype=internal", "srcports=", "srchost="),
        *("enabled=no", "expire=", "comment="),
    ),
}


def complete(parser: argparse.ArgumentParser, transport: Transport | None = None) -> None:
    """Answer the shell on its descriptor 8, and end the program."""
    try:
        import argcomplete
    except ImportError:
        sys.exit(1)

    asking = _Asking(transport)
    offers: dict[str, Callable[[argparse.Namespace], Iterable[str]]] = {
        "QUBE": lambda _: asking.qubes(),
        "VMNAME": lambda _: asking.qubes(),
        "FORWARD": asking.forwards,
        "NUMBER": asking.numbers,
        "SERVICE": lambda _: services(),
        **{name: partial(_constant, words) for name, words in _WORDS.items()},
    }
    for action in _actions(parser):
        offer = offers.get("NUMBER" if action.dest in ("before", "rule_no") else str(action.metavar or action.dest))
        if offer is not None:
            _offer(action, offer)
    argcomplete.autocomplete(parser, always_complete_options=False)


class _Asking:
    def __init__(self, transport: Transport | None) -> None:
        self._transport = transport

    def qubes(self) -> list[str]:
        try:
            return [name for name in self._client().qubes() if name != "dom0"]
        except (RefusedError, OSError):
            return []

    def forwards(self, args: argparse.Namespace) -> list[str]:
        """The forwards of the qube that was typed already, by number and by service."""
        try:
            rules = self._client().forwards(QubeName(args.qube)).rules
        except (RefusedError, OSError):
            return []
        return [f"f{number}" for number in range(len(rules))] + [service_text(rule) for rule in rules]

    def numbers(self, args: argparse.Namespace) -> list[str]:
        """The numbers that --before and --rule-no of qvm-firewall take."""
        try:
            qube, client = QubeName(args.VMNAME[0]), self._client()
            ordinary, forwards = client.rules(qube), client.forwards(qube).rules
        except (RefusedError, OSError):
            return []
        return [*map(str, range(len(ordinary))), *(f"f{number}" for number in range(len(forwards)))]

    def _client(self) -> AdminClient:
        return AdminClient(self._transport or connect())


def _constant(words: Iterable[str], _: argparse.Namespace) -> Iterable[str]:
    return words


def services() -> Iterator[str]:
    """Names of the services database (services(5)), which Python can look up, but not list."""
    try:
        lines = _SERVICES.read_text(errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        words = line.partition("#")[0].split()
        if len(words) > 1 and words[1].endswith(("/tcp", "/udp")):
            yield words[0]


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    # argparse has no public way to list the actions of a parser.
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for child in set(action.choices.values()):
                yield from _actions(child)


def _offer(action: argparse.Action, offer: Callable[[argparse.Namespace], Iterable[str]]) -> None:
    def completer(prefix: str, parsed_args: argparse.Namespace, **_: Any) -> list[str]:
        return sorted({word for word in offer(parsed_args) if word.startswith(prefix)})

    action.completer = completer  # type: ignore[attr-defined]
