# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The classes of qubes that can be created."""

from __future__ import annotations

import ipaddress

from lab.qubesd.base.holder import Property, as_bool, as_qube
from lab.qubesd.qubes.qube import IPV6_PREFIX, Qube, accept_netvm, numbered_ipv4

PRELOADED = "preload-dispvm"
"""The feature of a disposable template that lists its preloaded disposables."""


class AppVM(Qube):
    """A qube whose system is that of a template."""

    template = Property("vm", lambda _q: None, as_qube("template"))


class StandaloneVM(Qube):
    """A qube with a system of its own."""


class TemplateVM(Qube):
    """The system of other qubes. It has no network unless told so."""

    folder = "vm-templates"
    netvm = Property("vm", lambda _q: None, accept_netvm)

    def uses_default_netvm(self) -> bool:
        return False


class DispVM(Qube):
    """A disposable."""

    template = Property("vm", lambda _q: None, as_qube("template"))
    dispid = Property("int")
    auto_cleanup = Property("bool", lambda _q: False, as_bool)
    is_preload = Property("bool", lambda q: q.preload_requested or q.name in preloaded(q.template))
    preload_requested = False

    def own_ipv4(self) -> ipaddress.IPv4Address:
        return numbered_ipv4("10.138", self.dispid)

    def own_ipv6(self) -> ipaddress.IPv6Address:
        return ipaddress.IPv6Address(f"{IPV6_PREFIX}a8a:{self.dispid:x}")


def preloaded(template: Qube | None) -> list[str]:
    """The names of a template's preloaded disposables; none for a disposable without template."""
    return [] if template is None else str(template.features.get(PRELOADED, "")).split()


CLASSES: dict[str, type[Qube]] = {c.__name__: c for c in (AppVM, StandaloneVM, TemplateVM, DispVM)}
"""The classes that can be created."""
