# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Properties as qubesd has them: a value or a default, a type word for the wire, and events around every change."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import re
import string
from collections.abc import Callable
from typing import Any, Protocol

from lab.qubesd.base.errors import QubesLabelNotFoundError, QubesPropertyValueError, QubesValueError
from lab.qubesd.base.events import Emitter, Handlers

LABELS = ("red", "orange", "yellow", "green", "gray", "blue", "purple", "black")
_TRUE, _FALSE = ("1", "yes", "true", "on"), ("0", "no", "false", "off")
_MAC = re.compile(r"([0-9a-f]{2}:){5}[0-9a-f]{2}")
_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9_.-]*")


class Property:
    """One property. `kind` is the type word of the API; without `accept` it cannot be set.

    `accept` turns the text of a client into a value. `default` works out the value of a holder that has none set.
    """

    def __init__(
        self,
        kind: str = "str",
        default: Callable[[Any], Any] | None = None,
        accept: Callable[[Any, str], Any] | None = None,
    ) -> None:
        self.kind = kind
        self.default = default
        self.accept = accept
        self.name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, holder: Holder | None, owner: type) -> Any:
        return self if holder is None else self.value(holder)

    def __set__(self, holder: Holder, value: object) -> None:
        raise AttributeError(f"property {self.name!r} is set with set_property()")

    def value(self, holder: Holder) -> Any:
        """The value that is set, else the default; AttributeError when there is neither."""
        return holder.values[self.name] if self.name in holder.values else self.default_of(holder)

    def default_of(self, holder: Holder) -> Any:
        """The value when none is set; AttributeError when there is no default."""
        if self.default is None:
            raise AttributeError(f"property {self.name!r} has no default")
        return self.default(holder)

    def serialize(self, holder: Holder) -> str:
        """The answer to property.Get."""
        try:
            value = self.value(holder)
        except AttributeError:
            return f"default=True type={self.kind} "
        is_default = self.name not in holder.values
        return f"default={is_default} type={self.kind} {'' if value is None else value}"

    def sanitize(self, holder: Holder, untrusted_payload: bytes) -> Any:
        """The value in a client's bytes. Raises QubesValueError, and AttributeError when it cannot be set."""
        try:
            untrusted_text = untrusted_payload.decode("ascii")
        except UnicodeDecodeError:
            raise QubesValueError("Non-ASCII bytes in property value") from None
        del untrusted_payload
        if not set(untrusted_text) <= set(string.printable):
            raise QubesValueError("Invalid characters in property value")
        if self.accept is None:
            raise AttributeError(f"property {self.name!r} cannot be set")
        return self.accept(holder, untrusted_text)


class Named(Protocol):
    """Qubes by name."""

    def get(self, name: str) -> Any:
        """The qube of that name, or None."""


class Holder(Emitter):
    """Something with properties: the application or a qube. `values` are those that are not at their default.

    Properties may name any of `qubes`. A change of the network holds `network_lock`.
    """

    def __init__(self, shared: Handlers, qubes: Named, network_lock: asyncio.Lock) -> None:
        super().__init__(shared)
        self.values: dict[str, Any] = {}
        self._qubes = qubes
        self._network_lock = network_lock

    def qube(self, name: str) -> Any:
        """The qube of that name, or None."""
        return self._qubes.get(name)

    @classmethod
    def properties(cls) -> dict[str, Property]:
        """All properties by name, in the order of their names."""
        found = {name: p for base in cls.__mro__ for name, p in vars(base).items() if isinstance(p, Property)}
        return dict(sorted(found.items()))

    async def set_property(self, name: str, value: Any) -> None:
        """Set a property, with the events before and after. Handlers of qubesd itself are awaited in their place."""
        async with self._changing(name):
            old = self._old(name)
            await self.fire_event_in_order(f"property-pre-set:{name}", pre_event=True, name=name, newvalue=value, **old)
            self.values[name] = value
            await self.fire_event_in_order(f"property-set:{name}", name=name, newvalue=value, **old)

    async def reset_property(self, name: str) -> None:
        """Bring a property back to its default."""
        async with self._changing(name):
            old = self._old(name)
            for word in ("reset", "del"):
                await self.fire_event_in_order(f"property-pre-{word}:{name}", pre_event=True, name=name, **old)
            self.values.pop(name, None)
            for word in ("reset", "del"):
                await self.fire_event_in_order(f"property-{word}:{name}", name=name, **old)

    def _changing(self, name: str) -> contextlib.AbstractAsyncContextManager[object]:
        """Changes of the network wait for one another, as they call the hypervisor in between."""
        return self._network_lock if name in ("netvm", "default_netvm") else contextlib.nullcontext()

    def _old(self, name: str) -> dict[str, Any]:
        try:
            return {"oldvalue": getattr(self, name)}
        except AttributeError:
            return {}


def as_bool(_holder: Holder, untrusted_text: str) -> bool:
    """1, yes, true, on; 0, no, false, off."""
    word = untrusted_text.lower()
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise QubesValueError(f"Invalid literal for boolean property: {untrusted_text!r}")


def as_text(_holder: Holder, untrusted_text: str) -> str:
    """Any printable text."""
    return untrusted_text


def as_ipv4(_holder: Holder, untrusted_text: str) -> ipaddress.IPv4Address:
    """An IPv4 address."""
    try:
        return ipaddress.IPv4Address(untrusted_text)
    except ValueError:
        raise QubesValueError("Failed to parse property value as IPv4Address") from None


def as_ipv6(_holder: Holder, untrusted_text: str) -> ipaddress.IPv6Address:
    """An IPv6 address."""
    try:
        return ipaddress.IPv6Address(untrusted_text)
    except ValueError:
        raise QubesValueError("Failed to parse property value as IPv6Address") from None


def as_mac(_holder: Holder, untrusted_text: str) -> str:
    """A MAC address. As in qubesd, a wrong one is an error that no client sees."""
    if not _MAC.fullmatch(untrusted_text.lower()):
        raise ValueError("Invalid MAC address value")
    return untrusted_text.lower()


def as_label(_holder: Holder, untrusted_text: str) -> str:
    """The name of a label."""
    if untrusted_text not in LABELS:
        raise QubesLabelNotFoundError(untrusted_text)
    return untrusted_text


def as_qube(name: str) -> Callable[[Holder, str], Any]:
    """The qube of that name, or None for an empty text; `name` is that of the property."""

    def accept(holder: Holder, untrusted_text: str) -> Any:
        if not untrusted_text:
            return None
        check_name(untrusted_text)
        found = holder.qube(untrusted_text)
        if found is None:
            raise QubesPropertyValueError(f"Can't set {name} to non-existing qube {untrusted_text}")
        return found

    return accept


def check_name(untrusted_name: str) -> str:
    """The name, when a qube may have it."""
    if len(untrusted_name) > 31:
        raise QubesValueError("VM name must be shorter than 32 characters")
    if untrusted_name[:1] in tuple(string.digits + "_.-"):
        raise QubesValueError("VM name cannot start with hyphen, underscore, dot or numbers")
    if not _NAME.fullmatch(untrusted_name):
        raise QubesValueError("VM name contains illegal characters")
    if untrusted_name == "Domain-0":
        raise QubesValueError("VM name cannot be 'Domain-0'")
    if untrusted_name in ("none", "default"):
        raise QubesValueError("VM name cannot be 'none' nor 'default'")
    if untrusted_name.endswith("-dm"):
        raise QubesValueError("VM name cannot end with -dm")
    return untrusted_name
