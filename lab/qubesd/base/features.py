# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Features and tags of a qube: a mapping and a set that fire the events of Qubes when they change."""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, MutableSet
from typing import Any, Protocol

from lab.qubesd.base.errors import QubesInvalidTagError

_TAG = frozenset(string.ascii_letters + string.digits + "-_")


class Featured(Protocol):
    """What has features and tags: a qube, or dom0. Its template and its net qube have theirs."""

    features: Features
    template: Any

    def fire_event(self, event: str, pre_event: bool = False, **kwargs: Any) -> None:
        """Tell all who listen."""

    def qube(self, name: str) -> Any:
        """The qube of that name, or None."""


class Features(MutableMapping[str, str]):
    """Feature names to values. True is stored as '1', False and None as ''."""

    def __init__(self, subject: Featured, initial: Mapping[str, str]) -> None:
        self._subject = subject
        self._values = dict(initial)

    def __getitem__(self, key: str) -> str:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._values))

    def __len__(self) -> int:
        return len(self._values)

    def __setitem__(self, key: str, value: str | bool | None) -> None:
        text = ("1" if value else "") if value is None or isinstance(value, bool) else str(value)
        old = {"oldvalue": self._values[key]} if key in self._values else {}
        change: dict[str, Any] = {"feature": key, "value": text} | old
        self._subject.fire_event(f"domain-feature-pre-set:{key}", pre_event=True, **change)
        self._values[key] = text
        self._subject.fire_event(f"domain-feature-set:{key}", **change)

    def __delitem__(self, key: str) -> None:
        if key not in self._values:
            raise KeyError(key)
        self._subject.fire_event(f"domain-feature-pre-delete:{key}", feature=key)
        del self._values[key]
        self._subject.fire_event(f"domain-feature-delete:{key}", feature=key)

    def check_with_template(self, feature: str, default: str | bool | None = None) -> Any:
        """The value here, else that of the template, else the default."""
        return self._first(feature, default, lambda qube: qube.template)

    def check_with_netvm(self, feature: str, default: str | bool | None = None) -> Any:
        """The value here, else the first one up the chain of net qubes, else the default."""
        return self._first(feature, default, lambda qube: getattr(qube, "netvm", None))

    def check_with_adminvm(self, feature: str, default: str | bool | None = None) -> Any:
        """The value here, else that of dom0, else the default."""
        return self._first(feature, self._of_dom0(feature, default), lambda _qube: None)

    def check_with_template_and_adminvm(self, feature: str, default: str | bool | None = None) -> Any:
        """The value here, else that of the template, else that of dom0, else the default."""
        return self._first(feature, self._of_dom0(feature, default), lambda qube: qube.template)

    def _of_dom0(self, feature: str, default: str | bool | None) -> Any:
        return self._subject.qube("dom0").features.get(feature, default)

    def _first(self, feature: str, default: str | bool | None, following: Callable[[Any], Any]) -> Any:
        qube: Any = self._subject
        while qube is not None:
            if feature in qube.features:
                return qube.features[feature]
            qube = following(qube)
        return default


class Tags(MutableSet[str]):
    """The tags of a qube."""

    def __init__(self, subject: Featured, initial: Iterable[str]) -> None:
        self._subject = subject
        self._tags = set(initial)

    def __contains__(self, tag: object) -> bool:
        return tag in self._tags

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._tags))

    def __len__(self) -> int:
        return len(self._tags)

    def add(self, value: str) -> None:
        if value not in self._tags:
            self._tags.add(value)
            self._subject.fire_event(f"domain-tag-add:{value}", tag=value)

    def discard(self, value: str) -> None:
        if value in self._tags:
            self._tags.remove(value)
            self._subject.fire_event(f"domain-tag-delete:{value}", tag=value)


def check_tag(untrusted_tag: str) -> str:
    """The tag, when it is one; QubesInvalidTagError otherwise."""
    if not untrusted_tag:
        raise QubesInvalidTagError("tag cannot be empty")
    if not _TAG.issuperset(untrusted_tag):
        raise QubesInvalidTagError("disallowed characters")
    return untrusted_tag
