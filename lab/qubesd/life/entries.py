# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""What a qube reads about itself in its QubesDB."""

from lab.qubesd.qubes.qube import DNS, NETMASK, Qube
from portfwd.base.qubesdb_client import Error


def create_entries(vm: Qube) -> None:
    """Write them, then fire domain-qdb-create. Raises Error."""
    database = vm.untrusted_qdb
    if database is None:
        raise Error(f"QubesDB of {vm.name} is not there")
    for path, value in _entries(vm).items():
        database.write(path, value)
    vm.fire_event("domain-qdb-create")


def _entries(vm: Qube) -> dict[str, str]:
    outermost = "NetVM" if vm.netvm is None else "ProxyVM"
    of_class = "TemplateVM" if vm.klass == "TemplateVM" else "AppVM"
    entries = {
        "/name": vm.name,
        "/type": vm.klass,
        "/qubes-vm-type": outermost if vm.provides_network else of_class,
        "/default-user": vm.default_user,
        "/qubes-base-template": str(vm.template or ""),
        "/qubes-vm-persistence": "rw-only" if vm.template else "full",
    }
    dns = dict(zip(("primary-dns", "secondary-dns"), DNS, strict=True))
    if vm.provides_network:
        net = {"network": vm.gateway, "gateway": vm.gateway, "gateway6": vm.gateway6, "netmask": NETMASK}
        entries |= {f"/qubes-netvm-{key}": str(value) for key, value in (net | dns).items() if value}
        entries |= {"/qubes-service/qubes-network": "1", "/qubes-service/qubes-firewall": "1"}
    if vm.netvm is not None:
        own = {"mac": vm.mac, "ip": vm.visible_ip, "netmask": vm.visible_netmask} | dns
        own |= {"gateway": vm.visible_gateway, "ip6": vm.visible_ip6, "gateway6": vm.visible_gateway6}
        entries |= {f"/qubes-{key}": str(value) for key, value in own.items() if value}
    return entries
