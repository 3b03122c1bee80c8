# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Features service.NAME of a qube as /qubes-service/NAME in its QubesDB, kept so while it runs."""

from typing import Any

from lab.qubesd.base.errors import QubesValueError
from lab.qubesd.base.events import Level
from lab.qubesd.qubes.qube import Application, LocalVM

_NAME_MAX = 48


def register(app: Application) -> None:
    """Put the handlers of all qubes in their place: qubesd does this in an extension."""
    for pattern, handler in (
        ("domain-qdb-create", _on_qdb_create),
        ("domain-feature-pre-set:service.*", _on_pre_set),
        ("domain-feature-set:service.*", _on_set),
        ("domain-feature-delete:service.*", _on_delete),
    ):
        app.vm_handlers.add(Level.LOCAL, pattern, handler)


def _on_qdb_create(vm: LocalVM, _event: str) -> None:
    for feature, value in vm.features.items():
        if feature.startswith("service."):
            _on_set(vm, "", feature, value)


def _on_pre_set(_vm: LocalVM, _event: str, feature: str, **_: Any) -> None:
    name = feature.removeprefix("service.")
    if not name:
        raise QubesValueError("Service name cannot be empty")
    if len(name) > _NAME_MAX:
        raise QubesValueError(f"Service name must not exceed {_NAME_MAX} bytes")


def _on_set(vm: LocalVM, _event: str, feature: str, value: str, **_: Any) -> None:
    database = vm.untrusted_qdb
    name = feature.removeprefix("service.")
    if database is not None and 0 < len(name) <= _NAME_MAX:
        database.write(f"/qubes-service/{name}", "1" if value else "0")


def _on_delete(vm: LocalVM, _event: str, feature: str) -> None:
    if (database := vm.untrusted_qdb) is not None:
        database.rm(f"/qubes-service/{feature.removeprefix('service.')}")
