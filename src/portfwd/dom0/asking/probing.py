# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Sends a marked probe through a chain and has every hop tell what it saw of it (wire/answers/probe.py).

All hops count before the entrance sends. Each is bounded in time and bytes; one that fails costs its own part of
the trace only.
"""

import asyncio
import contextlib
import os
import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from portfwd.dom0.asking.qrexec import T, attempt, start_service
from portfwd.wire import limits
from portfwd.wire.answers.probe import (
    END,
    SEND,
    TELL,
    Count,
    Request,
    Role,
    Sent,
    Sight,
    Way,
    parse_head,
    parse_keyed,
    parse_single,
)
from portfwd.wire.entry import Entry
from portfwd.wire.errors import RefusedError
from portfwd.wire.values import Family, IPAddress, Proto, QubeName

STEP_SECONDS = 3.0
"""Seconds that a hop may take for each request."""
PROBE_SECONDS = 6.0
"""Seconds for all requests to all hops, since other probes wait. A probe takes a second or two."""
_END_SECONDS = 0.5
"""Seconds that the service may take to end after its input has ended."""
_LINE_MAX = 1024
_PORTS = range(40000, 60000)
WayKey = tuple[Family, Proto]


@dataclass(frozen=True, slots=True)
class HopTrace:
    """The report of one hop: before the probe and, if it could count, after it."""

    agent: bool
    sights: Mapping[WayKey, Sight]
    counts: Mapping[WayKey, Count] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Trace:
    """The reports of the hops that answered. `sent` is None when the entrance was not asked."""

    hops: Mapping[QubeName, HopTrace] = field(default_factory=dict)
    sent: Sent | None = None


class Prober:
    """One per qubesd: one probe goes through the chains at a time."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    async def trace(
        self,
        path: Sequence[tuple[QubeName, Entry]],
        vms: Mapping[QubeName, Any],
        clients: Mapping[Family, IPAddress],
    ) -> Trace:
        """Probe every way of a path, which runs from the entrance to the target. Never raises for a qube.

        `vms` are the qubes that can be asked. Where `clients` has an address, the probe comes from there.
        """
        requests = _requests(path, clients)
        if not requests:
            return Trace()
        async with self._lock:
            calls: dict[QubeName, _Call] = {}
            try:
                return await _trace(requests, vms, calls)
            finally:
                await asyncio.gather(*(call.close() for call in calls.values()), return_exceptions=True)


def _requests(path: Sequence[tuple[QubeName, Entry]], clients: Mapping[Family, IPAddress]) -> dict[QubeName, list[Way]]:
    """The ways of each hop, in the order of the path. Of a range the first port is probed."""
    found: dict[QubeName, list[Way]] = {}
    ports: dict[WayKey, int] = {}
    sports: dict[WayKey, int] = {}
    for name, entry in path:
        key = (entry.family, entry.proto)
        port = ports.setdefault(key, entry.listen.first)
        sport = sports.setdefault(key, secrets.choice(_PORTS))
        found.setdefault(name, []).append(Way(entry, port, sport, clients.get(entry.family)))
        ports[key] = entry.maps_to(port) or port
    return found


async def _trace(
    requests: dict[QubeName, list[Way]], vms: Mapping[QubeName, Any], calls: "dict[QubeName, _Call]"
) -> Trace:
    entrance, *others = requests
    loop = asyncio.get_running_loop()
    end = loop.time() + PROBE_SECONDS
    hops: dict[QubeName, HopTrace] = {}
    clients: dict[WayKey, IPAddress] = {_key(way): way.client for way in requests[entrance] if way.client is not None}

    async def ask(doing: Awaitable[T], name: QubeName) -> T | None:
        return await attempt(doing, min(STEP_SECONDS, end - loop.time()), name, "a probe")

    async def begin(name: QubeName) -> _Call | None:
        if name not in vms or loop.time() >= end:
            return None
        return await ask(_Call.open(vms[name]), name)

    async def arm(name: QubeName, role: Role) -> None:
        ways = [Way(w.entry, w.port, w.sport, clients.get(_key(w))) for w in requests[name]]
        if (call := await begin(name)) is not None:
            calls[name] = call
            told = await ask(call.arm(Request(role, tuple(ways))), name)
            if told is not None:
                hops[name] = told

    async def tell(name: QubeName) -> None:
        told = await ask(calls[name].tell(len(requests[name])), name)
        if told is not None:
            hops[name] = HopTrace(hops[name].agent, hops[name].sights, told)

    await arm(entrance, Role.ENTRANCE)
    sent = None
    if entrance in hops:
        # The entrance itself reports this address; the other hops use it for counting only.
        chosen = {key: sight.client for key, sight in hops[entrance].sights.items() if sight.client is not None}
        clients |= {key: client for key, client in chosen.items() if client.version == key[0]}
    await asyncio.gather(*(arm(name, Role.HOP) for name in others))
    if entrance in hops and calls[entrance].armed:
        sent = await ask(calls[entrance].send(), entrance)
    await asyncio.gather(*(tell(name) for name in hops if calls[name].armed))
    return Trace(hops, sent)


def _key(way: Way) -> WayKey:
    return (way.entry.family, way.entry.proto)


class _Call:
    """One call of the service in one qube."""

    def __init__(
        self, process: Any, reader: asyncio.StreamReader, transport: asyncio.BaseTransport, stdin: int
    ) -> None:
        self._process, self._reader, self._transport, self._stdin = process, reader, transport, stdin
        self.armed = False

    @classmethod
    async def open(cls, vm: Any) -> Self:
        """Start the service. Raises what qubesd raises when that fails."""
        in_read, in_write = os.pipe()
        try:
            process, reader, transport = await start_service(vm, limits.PROBE_SERVICE, in_read, _LINE_MAX)
        except BaseException:
            os.close(in_write)
            raise
        finally:
            os.close(in_read)
        return cls(process, reader, transport, in_write)

    async def arm(self, request: Request) -> HopTrace:
        """Have the hop inspect itself and begin to count. Raises RefusedError for a malformed answer."""
        # A few hundred bytes, which an empty pipe takes at once.
        os.write(self._stdin, str(request).encode())
        agent = parse_head(await self._line(), len(request.ways))
        sights = await self._keyed(len(request.ways), Sight.parse)
        self.armed = parse_single(await self._line(), "armed") == "yes"
        return HopTrace(agent, sights)

    async def send(self) -> Sent:
        """Have the entrance send the probes. Raises RefusedError."""
        os.write(self._stdin, f"{SEND}\n".encode())
        word = parse_single(await self._line(), "sent")
        if word not in list(Sent):
            raise RefusedError("a word of the answer is not known")
        return Sent(word)

    async def tell(self, ways: int) -> dict[WayKey, Count]:
        """The hop's counts. Raises RefusedError."""
        os.write(self._stdin, f"{TELL}\n".encode())
        counts = await self._keyed(ways, Count.parse)
        if await self._line() != END:
            raise RefusedError("an answer goes on where it should end")
        return counts

    async def _keyed(self, number: int, parse: Callable[[str], T]) -> dict[WayKey, T]:
        found: dict[WayKey, T] = {}
        for _ in range(number):
            key, untrusted_words = parse_keyed(await self._line())
            _, family, proto = key.split(".")
            found[Family(int(family)), Proto(proto)] = parse(untrusted_words)
        return found

    async def _line(self) -> str:
        try:
            untrusted = await self._reader.readuntil()
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            raise RefusedError("an answer ends too early, or has too long a line") from None
        return untrusted[:-1].decode("ascii", "replace")

    async def close(self) -> None:
        """Close the input of the service, which then removes its counters; kill it if it does not end.

        A caller that cancels this kills the service at once.
        """
        self._transport.close()
        os.close(self._stdin)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_END_SECONDS):
                    await self._process.wait()
        finally:
            if self._process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    self._process.kill()
                await self._process.wait()


def names_of(path: Iterable[tuple[QubeName, Entry]]) -> tuple[QubeName, ...]:
    """The hops of a path, from the entrance to the target."""
    return tuple(dict.fromkeys(name for name, _ in path))
