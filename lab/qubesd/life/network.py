# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The network part of qubesd: attaching qubes to their net qube, and what the net qube's QubesDB says of them.

Its handlers stand at the place of NetVMMixin in the order of events. Where the real one does nothing (an address of a
running qube changes, feature ipv6 is set), this one does nothing either.
"""

from typing import Any

from lab.qubesd.base.errors import (
    QubesException,
    QubesVMError,
    QubesVMInUseError,
    QubesVMNotRunningError,
    QubesVMNotStartedError,
)
from lab.qubesd.base.events import Level
from lab.qubesd.life.entries import create_entries
from lab.qubesd.qubes.qube import Application, Qube

DEFERRED = "deferred-netvm-original"
"""The feature that holds the name of the net qube to which a paused qube is still attached ('' for none)."""


def register(app: Application) -> None:
    """Put the handlers of all qubes and of the application in their place."""
    for pattern, handler in (
        ("property-pre-set:netvm", _before_netvm),
        ("property-set:netvm", _after_netvm),
        ("property-pre-reset:netvm", _before_netvm_reset),
        ("property-reset:netvm", _after_netvm_reset),
        ("property-set:ip", _after_ip),
        ("property-reset:ip", _after_ip),
        ("property-set:ip6", _after_ip6),
        ("property-set:provides_network", _after_provides_network),
        ("net-domain-connect", _on_connect),
        ("domain-qdb-create", _on_qdb_create),
        ("domain-pre-spawn", _on_pre_spawn),
        ("domain-start", _on_start),
        ("domain-unpaused", _on_unpaused),
        ("domain-pre-shutdown", _on_pre_shutdown),
        ("domain-shutdown", _on_shutdown),
        ("firewall-changed", _on_firewall_changed),
    ):
        app.vm_handlers.add(Level.STOCK, pattern, handler)
    app.app_handlers.add(Level.STOCK, "property-pre-set:default_netvm", _before_default_netvm)
    app.app_handlers.add(Level.STOCK, "property-set:default_netvm", _after_default_netvm)


async def attach(vm: Qube) -> None:
    """Give a running qube its network interface. Raises QubesException."""
    if not vm.is_running():
        raise QubesVMNotRunningError(vm)
    if vm.netvm is None:
        raise QubesVMError(vm, "netvm should not be None")
    set_mapped_ip(vm.netvm, vm)
    if not vm.is_paused():
        await plug(vm)


async def plug(vm: Qube) -> None:
    """Tell the hypervisor to connect a qube with its net qube."""
    await vm.app.xen.attach(
        vm.name,
        backend=vm.netvm.name,
        ip=_text(vm.ip),
        ip6=_text(vm.ip6),
        gateway=_text(vm.netvm.gateway),
        gateway6=_text(vm.netvm.gateway6) if vm.has_ipv6() else None,
        mac=vm.mac,
        visible_ip=_text(vm.visible_ip),
        visible_gateway=_text(vm.visible_gateway),
    )


async def detach(vm: Qube) -> None:
    """Take a running qube's network interface away; when it is paused, remember to do so later."""
    if not vm.is_running():
        raise QubesVMNotRunningError(vm)
    if vm.is_paused():
        if DEFERRED not in vm.features and vm.netvm is not None:
            vm.features[DEFERRED] = vm.netvm.name
        return
    await vm.app.xen.detach(vm.name)


def reload_firewall(netvm: Qube, vm: Qube) -> None:
    """Write a qube's ordinary rules into its net qube: remove, write, then commit with the base key."""
    database = netvm.untrusted_qdb if netvm.is_running() else None
    if database is None:
        return
    for family, address in ((4, vm.ip), (6, vm.ip6)):
        if address is not None:
            base = f"/qubes-firewall/{address}"
            database.rm(f"{base}/")
            for key, value in vm.firewall.qdb_entries(family).items():
                database.write(f"{base}/{key}", value)
            database.write(base, "")


def reload_connected_ips(netvm: Qube) -> None:
    """Write which addresses may be behind a net qube, for its antispoofing."""
    database = netvm.untrusted_qdb
    if database is not None:
        connected = list(netvm.connected_vms)
        database.write("/connected-ips", " ".join(str(vm.visible_ip) for vm in connected if vm.visible_ip))
        database.write("/connected-ips6", " ".join(str(vm.visible_ip6) for vm in connected if vm.visible_ip6))


def set_mapped_ip(netvm: Qube, vm: Qube) -> None:
    """Write how a qube sees its own address and gateway; must stand before its interface comes up."""
    database = netvm.untrusted_qdb
    if database is not None:
        for key, value in (("visible-ip", vm.visible_ip), ("visible-gateway", vm.visible_gateway)):
            path = f"/mapped-ip/{vm.ip}/{key}"
            if value:
                database.write(path, str(value))
            else:
                database.rm(path)


async def apply_deferred(vm: Qube) -> None:
    """Do what was put off while the qube was paused: the whole sequence of a change of net qube once more."""
    if DEFERRED not in vm.features or (vm.netvm is not None and not vm.netvm.is_running()):
        return
    names = {"name": "netvm", "newvalue": vm.netvm, "oldvalue": vm.app.domains.get(vm.features[DEFERRED])}
    async with vm.app.network_lock:
        await vm.fire_event_in_order("property-pre-set:netvm", pre_event=True, **names)
        if vm.netvm is not None:
            await vm.fire_event_in_order("property-set:netvm", **names)
    del vm.features[DEFERRED]


async def _before_netvm(vm: Qube, _event: str, newvalue: Qube | None, oldvalue: Qube | None = None, **_: Any) -> None:
    # Once more, as another change may have come in between.
    vm.check_netvm(newvalue)
    if newvalue is not None and vm.is_running() and not newvalue.is_running():
        raise QubesVMNotStartedError(newvalue, f"Cannot dynamically attach to stopped qube {newvalue}")
    deferred = DEFERRED in vm.features
    if vm.is_paused():
        if not deferred:
            vm.features[DEFERRED] = oldvalue.name if oldvalue is not None else ""
        return
    attached = vm.netvm is not None and vm.is_running() and vm.netvm.is_running()
    if attached or deferred:
        await detach(vm)


async def _after_netvm(vm: Qube, _event: str, newvalue: Qube | None, oldvalue: Qube | None = None, **_: Any) -> None:
    if oldvalue is not None and oldvalue.is_running():
        reload_connected_ips(oldvalue)
    if newvalue is None:
        return
    if newvalue.is_running():
        reload_connected_ips(newvalue)
    if vm.is_running():
        create_entries(vm)
        if not vm.is_paused():
            await attach(vm)
        newvalue.fire_event("net-domain-connect", vm=vm)


async def _before_netvm_reset(vm: Qube, _event: str, oldvalue: Qube | None = None, **_: Any) -> None:
    newvalue = type(vm).properties()["netvm"].default_of(vm)
    vm.check_netvm(newvalue)
    if newvalue is not oldvalue:
        await vm.fire_event_in_order(
            "property-pre-set:netvm", pre_event=True, name="netvm", newvalue=newvalue, oldvalue=oldvalue
        )


async def _after_netvm_reset(vm: Qube, _event: str, oldvalue: Qube | None = None, **_: Any) -> None:
    if vm.netvm is not oldvalue:
        await vm.fire_event_in_order("property-set:netvm", name="netvm", newvalue=vm.netvm, oldvalue=oldvalue)


def _after_ip(vm: Qube, _event: str, newvalue: object = None, oldvalue: object = None, **_: Any) -> None:
    _addresses_changed(vm, "", newvalue == oldvalue)


def _after_ip6(vm: Qube, _event: str, newvalue: object = None, oldvalue: object = None, **_: Any) -> None:
    _addresses_changed(vm, "6", newvalue == oldvalue)


def _addresses_changed(vm: Qube, suffix: str, same: bool) -> None:
    if same:
        return
    if vm.provides_network:
        vm.fire_event(f"property-reset:gateway{suffix}", name=f"gateway{suffix}")
    own = f"visible_ip{suffix}"
    vm.fire_event(f"property-reset:{own}", name=own)
    for client in vm.connected_vms:
        client.fire_event(f"property-reset:visible_gateway{suffix}", name=f"visible_gateway{suffix}")


def _after_provides_network(vm: Qube, _event: str, newvalue: object = None, oldvalue: object = None, **_: Any) -> None:
    if newvalue != oldvalue:
        for name in ("gateway", "gateway6"):
            vm.fire_event(f"property-reset:{name}", name=name)


def _on_connect(netvm: Qube, _event: str, vm: Qube) -> None:
    reload_firewall(netvm, vm)


def _on_qdb_create(vm: Qube, _event: str) -> None:
    if vm.provides_network:
        reload_connected_ips(vm)
        for client in vm.connected_vms:
            if client.is_running():
                set_mapped_ip(vm, client)
                reload_firewall(vm, client)


def _on_pre_spawn(vm: Qube, _event: str, **_: Any) -> None:
    if vm.netvm is not None:
        reload_connected_ips(vm.netvm)
        set_mapped_ip(vm.netvm, vm)
        reload_firewall(vm.netvm, vm)


async def _on_start(vm: Qube, _event: str, **_: Any) -> None:
    if vm.netvm is not None:
        reload_firewall(vm.netvm, vm)
    for client in vm.connected_vms if vm.provides_network else ():
        if client.is_running() and not client.is_paused():
            try:
                if DEFERRED in client.features:
                    await apply_deferred(client)
                else:
                    async with vm.app.network_lock:
                        await attach(client)
            except QubesException as error:
                client.log.warning("Cannot attach network: %s", error)


async def _on_unpaused(vm: Qube, _event: str, **_: Any) -> None:
    if vm.get_power_state() == "Running":
        await apply_deferred(vm)


def _on_pre_shutdown(vm: Qube, _event: str, force: bool = False) -> None:
    running = [client.name for client in vm.connected_vms if client.is_running()] if vm.provides_network else []
    if running and not force:
        raise QubesVMInUseError(vm, f"There are other VMs connected to this VM: {', '.join(sorted(running))}")


async def _on_shutdown(vm: Qube, _event: str, **_: Any) -> None:
    if DEFERRED in vm.features:
        del vm.features[DEFERRED]
    for client in list(vm.connected_vms):
        if client.is_running():
            try:
                async with vm.app.network_lock:
                    await detach(client)
            except QubesException as error:
                client.log.info("Cannot detach network: %s", error)


def _on_firewall_changed(vm: Qube, _event: str, **_: Any) -> None:
    if vm.is_running() and vm.netvm is not None:
        reload_firewall(vm.netvm, vm)


def _text(value: object) -> str | None:
    return None if value is None else str(value)


async def _before_default_netvm(app: Application, _event: str, **change: Any) -> None:
    for vm in app.domains.qubes():
        if vm.uses_default_netvm():
            await vm.fire_event_in_order("property-pre-set:netvm", pre_event=True, **(change | {"name": "netvm"}))


async def _after_default_netvm(app: Application, _event: str, oldvalue: Qube | None = None, **_: Any) -> None:
    for vm in app.domains.qubes():
        if vm.uses_default_netvm():
            await vm.fire_event_in_order("property-reset:netvm", name="netvm", oldvalue=oldvalue)
