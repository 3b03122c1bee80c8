# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The qubes and their net qubes, for the picture of the network."""

from dataclasses import dataclass

from portfwd.client.adminapi import AdminClient, CallError
from portfwd.wire.errors import RefusedError
from portfwd.wire.values import QubeName

_ADMIN = "AdminVM"


@dataclass(frozen=True, slots=True)
class NetworkQube:
    """One qube. `netvm` is None for one without network, and for the outermost; `ip6`: whether it has IPv6."""

    name: QubeName
    label: str
    netvm: QubeName | None
    running: bool
    provides_network: bool
    ip6: bool = False


def read_qubes(client: AdminClient) -> tuple[NetworkQube, ...]:
    """Every qube but dom0, by name. One that cannot be read, such as a removed one, is left out. Raises CallError."""
    found = (read_qube(client, name, words) for name, words in client.listed().items() if words["class"] != _ADMIN)
    return tuple(sorted((qube for qube in found if qube is not None), key=lambda qube: qube.name))


def read_qube(client: AdminClient, name: QubeName, listed: dict[str, str]) -> NetworkQube | None:
    """Read one qube; `listed` are its words from admin.vm.List. None when it cannot be read."""
    try:
        properties = client.properties(name)
        netvm = properties.get("netvm", "")
        return NetworkQube(
            name=name,
            label=properties.get("label", "black"),
            netvm=QubeName(netvm) if netvm else None,
            running=listed.get("state") in ("Running", "Paused", "Transient"),
            provides_network=properties.get("provides_network") == "True",
            ip6=bool(properties.get("ip6")),
        )
    except (CallError, RefusedError):
        return None
