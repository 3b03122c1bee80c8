# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""A QubesDB database and the watches on it. Pure: takes paths and values, gives what is there and who is to be told."""

from bisect import bisect_left, insort
from collections.abc import Iterator
from typing import Generic, TypeVar

from portfwd.base import qubesdb

Owner = TypeVar("Owner")


class Store:
    """Keys in order, with their values."""

    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}
        self._order: list[str] = []

    def read(self, path: str) -> bytes | None:
        """The value of exactly this key."""
        return self._values.get(path)

    def write(self, path: str, value: bytes) -> None:
        """Set a key; raises RefusedError for a path or value that QubesDB does not take."""
        qubesdb.check_key(path)
        qubesdb.check_value(value)
        if path not in self._values:
            insort(self._order, path)
        self._values[path] = value

    def remove(self, path: str) -> bool:
        """Remove a key, or with a trailing slash all that is below; whether anything was there."""
        paths = [found for found, _ in self.matching(path)] if path.endswith("/") else [path]
        removed = [found for found in paths if self._values.pop(found, None) is not None]
        if removed:
            start = bisect_left(self._order, removed[0])
            del self._order[start : start + len(removed)]
        return bool(removed)

    def matching(self, prefix: str) -> Iterator[tuple[str, bytes]]:
        """Keys that begin with a text, in order, and their values."""
        for index in range(bisect_left(self._order, prefix), len(self._order)):
            path = self._order[index]
            if not path.startswith(prefix):
                break
            yield path, self._values[path]


class Watches(Generic[Owner]):
    """Who watches what. The same path may be watched several times, and each registration is told."""

    def __init__(self) -> None:
        self._watches: list[tuple[str, Owner]] = []

    def add(self, path: str, owner: Owner) -> None:
        """Watch a key, or with a trailing slash all that is below."""
        self._watches.insert(0, (path, owner))

    def remove(self, path: str, owner: Owner) -> bool:
        """Undo one add(); whether there was one."""
        if (path, owner) not in self._watches:
            return False
        self._watches.remove((path, owner))
        return True

    def forget(self, owner: Owner) -> None:
        """Undo all of an owner's."""
        self._watches = [(path, other) for path, other in self._watches if other is not owner]

    def owners(self) -> set[Owner]:
        """All who watch something."""
        return {owner for _, owner in self._watches}

    def concerned(self, path: str) -> list[Owner]:
        """Owners to be told that a path changed, latest registration first, one mention for each registration."""
        return [
            owner for watch, owner in self._watches if path == watch or (watch[-1:] == "/" and path.startswith(watch))
        ]
