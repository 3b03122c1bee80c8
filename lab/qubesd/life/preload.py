# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Preloaded disposables: started ahead of time and paused, until somebody asks for one.

As in Qubes, feature preload-dispvm-max of a disposable template says how many, its feature preload-dispvm lists them,
and is_preload is true for a disposable until it is used.
"""

import asyncio
from typing import Any

from lab.qubesd.base.events import Level
from lab.qubesd.life import lifecycle
from lab.qubesd.qubes.classes import PRELOADED, DispVM, preloaded
from lab.qubesd.qubes.qube import Application, Qube

MAXIMUM = "preload-dispvm-max"
_DONE, _BUSY = "preload-dispvm-completed", "preload-dispvm-in-progress"


def register(app: Application) -> None:
    """Put the handlers of all qubes in their place."""
    app.vm_handlers.add(Level.STOCK, f"domain-feature-set:{MAXIMUM}", _on_maximum)
    app.vm_handlers.add(Level.STOCK, "domain-unpaused", _on_unpaused)
    app.vm_handlers.add(Level.STOCK, "domain-stopped", _on_stopped)


async def take(template: Qube) -> DispVM | None:
    """A preloaded disposable of this template, unpaused and no longer preloaded; None when there is none ready."""
    for name in preloaded(template):
        vm: DispVM = template.app.domains[name]
        if vm.is_paused() and vm.features.get(_DONE):
            vm.features[_BUSY] = True
            _unlist(vm)
            vm.preload_requested = True
            vm.fire_event("property-reset:is_preload", name="is_preload")
            await lifecycle.unpause(vm)
            return vm
    return None


def _unlist(vm: DispVM) -> None:
    template = vm.template
    template.features[PRELOADED] = " ".join(name for name in preloaded(template) if name != vm.name)


def _on_maximum(template: Qube, _event: str, **_: Any) -> None:
    task = asyncio.ensure_future(_fill(template))
    task.add_done_callback(template.app.report)


async def _fill(template: Qube) -> None:
    while len(preloaded(template)) < int(template.features.get(MAXIMUM) or 0):
        vm = template.app.add("DispVM", "", template.label, template, auto_cleanup=True)
        vm.features[_BUSY] = True
        template.features[PRELOADED] = " ".join([*preloaded(template), vm.name])
        await lifecycle.start(vm)
        await lifecycle.pause(vm)
        vm.features[_DONE] = True
        vm.features[_BUSY] = False
        template.app.save()


async def _on_unpaused(vm: Qube, _event: str, **_: Any) -> None:
    if not isinstance(vm, DispVM) or not vm.is_preload or not vm.features.get(_DONE):
        return
    # Also when somebody unpauses it without having asked for a disposable.
    _unlist(vm)
    vm.preload_requested = False
    vm.fire_event("property-reset:is_preload", name="is_preload")
    vm.features[_BUSY] = False
    vm.app.save()


def _on_stopped(vm: Qube, _event: str, **_: Any) -> None:
    if isinstance(vm, DispVM) and vm.is_preload:
        vm.preload_requested = False
        _unlist(vm)
