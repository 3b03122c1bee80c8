# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Events of the application and of qubes: who is told, in which order.

The order is that of Qubes: extensions registered for any local qube, then the network part of qubesd itself, then
extensions registered for QubesVM, then the listeners of one subject (admin.Events). A pre-event goes the other way.
"""

import asyncio
import enum
import fnmatch
import inspect
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any

Handler = Callable[..., Any]
"""handler(subject, event, **kwargs): a function, or a coroutine function where the event allows it."""


class Level(enum.IntEnum):
    """Where a handler stands in the order."""

    LOCAL = 0
    STOCK = 1
    QUBE = 2
    LISTENER = 3


@dataclass(slots=True)
class Handlers:
    """Handlers with their event patterns (`*` and `?` as in the shell)."""

    _entries: list[tuple[Level, str, Handler]] = field(default_factory=list)

    def add(self, level: Level, pattern: str, handler: Handler) -> None:
        self._entries.append((level, pattern, handler))

    def remove(self, level: Level, pattern: str, handler: Handler) -> None:
        """Undo add; what is not there is no error."""
        entry = (level, pattern, handler)
        self._entries = [kept for kept in self._entries if kept != entry]

    def matching(self, event: str, level: Level) -> list[Handler]:
        return [h for at, pattern, h in self._entries if at is level and fnmatch.fnmatchcase(event, pattern)]


class Emitter:
    """A subject of events. `shared` are the handlers of all subjects of its kind."""

    def __init__(self, shared: Handlers) -> None:
        self.events_enabled = False
        self._shared = shared
        self._own = Handlers()

    def add_handler(self, pattern: str, handler: Handler) -> None:
        """Listen to this subject only."""
        self._own.add(Level.LISTENER, pattern, handler)

    def remove_handler(self, pattern: str, handler: Handler) -> None:
        self._own.remove(Level.LISTENER, pattern, handler)

    def fire_event(self, event: str, pre_event: bool = False, **kwargs: Any) -> None:
        """Call every handler; an error in one ends the round and reaches the caller."""
        for handler in self._round(event, pre_event):
            if inspect.iscoroutinefunction(handler):
                raise RuntimeError(f"unexpected async handler {handler!r} for sync event {event}")
            handler(self, event, **kwargs)

    async def fire_event_in_order(self, event: str, pre_event: bool = False, **kwargs: Any) -> None:
        """Like fire_event, for events at which qubesd itself waits for the hypervisor.

        Only its own handlers may be coroutine functions. Each is awaited before the next handler is called, which is
        how the blocking calls of the real qubesd look to extensions.
        """
        for handler in self._round(event, pre_event):
            result = handler(self, event, **kwargs)
            if inspect.iscoroutine(result):
                await result

    async def fire_event_async(self, event: str, pre_event: bool = False, **kwargs: Any) -> None:
        """Call every function, then every coroutine function, and wait for the latter together."""
        waiting: list[Coroutine[Any, Any, Any]] = []
        try:
            for handler in self._round(event, pre_event):
                result = handler(self, event, **kwargs)
                if inspect.iscoroutine(result):
                    waiting.append(result)
        except BaseException:
            for coroutine in waiting:
                coroutine.close()
            raise
        if waiting:
            done, _ = await asyncio.wait([asyncio.ensure_future(coroutine) for coroutine in waiting])
            for task in done:
                task.result()

    def _round(self, event: str, pre_event: bool) -> Iterator[Handler]:
        if not self.events_enabled:
            return
        for level in sorted(Level, reverse=pre_event):
            for handlers in (self._shared, self._own):
                yield from handlers.matching(event, level)
