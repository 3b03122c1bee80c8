# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Start, stop and pause of a qube: the calls to the hypervisor and the events around them, in the order of qubesd.

A start: domain-pre-start, the net qube, domain-pre-spawn, the domain is made paused, domain-spawn, QubesDB and its
entries (domain-qdb-create), domain-pre-unpaused, the domain runs, domain-unpaused, domain-start.
"""

import asyncio
import time
from collections.abc import AsyncIterator

from lab.qubesd.base.errors import (
    QubesException,
    QubesVMNotFoundError,
    QubesVMNotPausedError,
    QubesVMNotRunningError,
    QubesVMNotStartedError,
    QubesVMShutdownTimeoutError,
)
from lab.qubesd.life import network
from lab.qubesd.life.entries import create_entries
from lab.qubesd.outside.xen import XenError
from lab.qubesd.qubes.classes import DispVM
from lab.qubesd.qubes.qube import Application, Power, Qube

SHUTDOWN_TIMEOUT = 60.0
"""Seconds that `wait` waits for the end of a shutdown."""


async def autostart(app: Application) -> None:
    """Start the qubes that want it; each starts its net qubes first. One that fails does not hold up the others."""
    await asyncio.gather(*(_autostart(vm) for vm in app.domains.qubes() if vm.autostart))


async def _autostart(vm: Qube) -> None:
    try:
        await start(vm)
    except Exception as error:
        vm.log.error("autostart failed: %s", error)


async def follow(app: Application, reports: AsyncIterator[str]) -> None:
    """Follow the hypervisor's reports of domains that died, to their end."""
    async for name in reports:
        if name in app.domains:
            task = asyncio.ensure_future(died(app.domains[name]))
            task.add_done_callback(app.report)


async def start(vm: Qube) -> None:
    """Start a halted qube, its net qubes first; nothing happens when it is not halted. Raises QubesException."""
    async with vm.startup_lock:
        if vm not in vm.app.domains:
            raise QubesVMNotFoundError(vm.name)
        if not vm.is_halted():
            return
        try:
            await vm.fire_event_async("domain-pre-start", pre_event=True, start_guid=True, mem_required=None)
            if vm.netvm is not None and not vm.netvm.is_running():
                await start(vm.netvm)
            await vm.fire_event_async("domain-pre-spawn", pre_event=True, start_guid=True)
            await _create(vm)
        except Exception as error:
            vm.log.error("Start failed: %s", error)
            await vm.fire_event_async("domain-start-failed", reason=_ascii(error))
            raise
        try:
            await _bring_up(vm)
        except Exception as error:
            vm.log.error("Start failed: %s", error)
            await vm.fire_event_async("domain-start-failed", reason=_ascii(error))
            await _give_up(vm)
            raise


async def shutdown(vm: Qube, force: bool = False, wait: bool = False) -> None:
    """Shut a qube down. Raises QubesException, for one that other running qubes need unless `force` is set."""
    if vm.is_halted():
        raise QubesVMNotStartedError(vm)
    try:
        await vm.fire_event_async("domain-pre-shutdown", pre_event=True, force=force)
        if vm.is_paused() and not force:
            raise QubesVMNotRunningError(vm)
        before, vm.power = vm.power, Power.HALTING
        try:
            await vm.app.xen.destroy(vm.name)
        except XenError:
            vm.power = before
            raise
        if wait:
            await _gone(vm)
    except Exception as error:
        await vm.fire_event_async("domain-shutdown-failed", reason=_ascii(error))
        raise


async def kill(vm: Qube) -> None:
    """End a qube at once, whoever needs it."""
    if vm.is_halted():
        raise QubesVMNotStartedError(vm)
    await _destroy(vm)


async def pause(vm: Qube) -> None:
    """Stop a running qube's time."""
    if vm.power is not Power.RUNNING:
        raise QubesVMNotRunningError(vm)
    await vm.fire_event_async("domain-pre-paused", pre_event=True)
    await vm.app.xen.pause(vm.name)
    _check_alive(vm)
    vm.power = Power.PAUSED
    vm.fire_event("domain-paused")


async def unpause(vm: Qube) -> None:
    """Let a paused qube go on; a change of its net qube that was put off happens now."""
    if vm.power is not Power.PAUSED or vm.startup_lock.locked():
        raise QubesVMNotPausedError(vm)
    await vm.fire_event_async("domain-pre-unpaused", pre_event=True)
    await vm.app.xen.unpause(vm.name)
    _check_alive(vm)
    vm.power = Power.RUNNING
    await vm.fire_event_async("domain-unpaused")


async def died(vm: Qube) -> None:
    """What follows the end of a domain, whoever ended it. Does nothing when that is already done."""
    if vm.is_halted():
        return
    vm.power = Power.HALTED
    vm.domid = -1
    vm.close_qdb()
    try:
        await vm.fire_event_async("domain-stopped")
        for name in ("xid", "start_time"):
            vm.fire_event(f"property-reset:{name}", name=name)
        await vm.fire_event_async("domain-shutdown")
        if isinstance(vm, DispVM) and vm.auto_cleanup and vm in vm.app.domains:
            vm.app.remove(vm)
    finally:
        vm.app.save()
        vm.stopped.set()


async def _create(vm: Qube) -> None:
    vm.stopped.clear()
    vm.domid = await vm.app.xen.create(vm.name, vm.klass, vm.nics)
    vm.power = Power.PAUSED
    vm.started = time.time()
    for name in ("xid", "start_time"):
        vm.fire_event(f"property-reset:{name}", name=name)


async def _bring_up(vm: Qube) -> None:
    await vm.fire_event_async("domain-spawn", start_guid=True)
    await vm.app.databases.start(vm.name, vm.domid)
    create_entries(vm)
    vm.qdb_watch.start()
    async with vm.app.network_lock:
        if vm.netvm is not None:
            await network.plug(vm)
    await vm.fire_event_async("domain-pre-unpaused", pre_event=True)
    await vm.app.xen.boot(vm.name)
    _check_alive(vm)
    vm.power = Power.TRANSIENT
    await vm.fire_event_async("domain-unpaused")
    _check_alive(vm)
    vm.power = Power.RUNNING
    vm.app.save()
    await network.apply_deferred(vm)
    await vm.fire_event_async("domain-start", start_guid=True)


def _check_alive(vm: Qube) -> None:
    if not vm.is_running():
        raise QubesException(f"qube {vm} was killed in the meantime")


async def _destroy(vm: Qube) -> None:
    await vm.app.xen.destroy(vm.name)
    await _gone(vm)


async def _give_up(vm: Qube) -> None:
    """Undo a start that failed, even when the hypervisor cannot be asked to."""
    if vm.is_running():
        try:
            await _destroy(vm)
        except QubesException as error:
            vm.log.error("%s", error)
            await died(vm)


async def _gone(vm: Qube) -> None:
    try:
        await asyncio.wait_for(vm.stopped.wait(), SHUTDOWN_TIMEOUT)
    except TimeoutError:
        raise QubesVMShutdownTimeoutError(vm) from None


def _ascii(error: BaseException) -> str:
    """Events carry ASCII only."""
    return str(error).encode("ascii", "replace").decode()
