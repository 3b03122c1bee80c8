# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""How the forwards of many qubes fare, and what could not be asked."""

from collections.abc import Sequence

from portfwd.client.adminapi import AdminClient, NoExtensionError
from portfwd.client.status import RuleStatus
from portfwd.client.status_lines import parse_status, parse_unread
from portfwd.wire.errors import RefusedError
from portfwd.wire.values import QubeName

_DOM0 = "dom0"


def gather(client: AdminClient) -> tuple[list[RuleStatus], list[str]]:
    """Of all qubes: in one call where dom0 allows that, else qube by qube."""
    try:
        told = client.status(None)
        return _sorted(parse_status(told)), [f"{name}: {reason}" for name, reason in parse_unread(told).items()]
    except RefusedError:
        return gather_each(client, [name for name in client.qubes() if name != _DOM0])


def gather_each(client: AdminClient, names: Sequence[QubeName]) -> tuple[list[RuleStatus], list[str]]:
    """Of these qubes, and a sentence for each that gave no answer."""
    found: list[RuleStatus] = []
    failed = []
    for name in names:
        try:
            found += parse_status(client.status(name))
        except NoExtensionError:
            raise
        except RefusedError as error:
            failed.append(f"{name}: {error}")
    return _sorted(found), failed


def _sorted(found: Sequence[RuleStatus]) -> list[RuleStatus]:
    return sorted(found, key=lambda status: (status.qube, status.number))
