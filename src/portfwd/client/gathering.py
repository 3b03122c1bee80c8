# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Gathers the forwards of many qubes, each qube by itself, with the reason for those that are not told."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from portfwd.api.errors import NO_QUBE
from portfwd.client.adminapi import AdminClient, ApiError, NoExtensionError
from portfwd.client.forward_state import RuleStatus, judged
from portfwd.wire.errors import RefusedError
from portfwd.wire.values import QubeName

_DOM0 = "dom0"


class Gathered(NamedTuple):
    """The forwards of the qubes that dom0 tells, by qube and number; for each other qube the reason."""

    statuses: list[RuleStatus]
    untold: Mapping[QubeName, str]


def gather(client: AdminClient) -> Gathered:
    """Gather the forwards of all qubes: in one call where dom0 allows that, else qube by qube."""
    try:
        told = client.status(None)
        return Gathered(_sorted(judged(told)), told.unread)
    except RefusedError:
        return gather_each(client, [name for name in client.qubes() if name != _DOM0], gone=True)


def gather_each(client: AdminClient, names: Sequence[QubeName], *, gone: bool = False) -> Gathered:
    """Gather the forwards of these qubes. `gone`: a qube that was removed meanwhile is no failure.

    Raises NoExtensionError when all calls do: a single one may only be forbidden to this client, which looks the same.
    """
    found: list[RuleStatus] = []
    untold: dict[QubeName, str] = {}
    without = 0
    for name in names:
        try:
            found += judged(client.status(name))
        except RefusedError as error:
            if gone and isinstance(error, ApiError) and error.exception == NO_QUBE:
                continue
            unknown = isinstance(error, NoExtensionError)
            without += unknown
            untold[name] = "dom0 does not answer" if unknown else str(error)
    if without and without == len(names):
        raise NoExtensionError
    return Gathered(_sorted(found), untold)


def _sorted(found: Sequence[RuleStatus]) -> list[RuleStatus]:
    return sorted(found, key=lambda status: (status.qube, status.number))
