# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The client of the laboratory's hypervisor: newline-delimited JSON over a unix socket.

A call is one connection, one line, one line of answer, so that a slow domain never holds up another. Domains that die
are reported on a connection of their own.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lab.qubesd.base.errors import QubesException

TIMEOUT = 60.0
"""Seconds that one call may take."""
_LINE_MAX = 1 << 20


class XenError(QubesException):
    """The hypervisor refused, or could not be reached."""


@dataclass(frozen=True, slots=True)
class Domain:
    """A domain that exists."""

    domid: int
    paused: bool


class Hypervisor(Protocol):
    """What qubesd asks of a hypervisor. Each call raises XenError."""

    async def create(self, name: str, kind: str, nics: bool) -> int:
        """Make a paused domain; its domid."""

    async def boot(self, name: str) -> None:
        """Let a new domain run; back when its system is up."""

    async def destroy(self, name: str) -> None:
        """End a domain."""

    async def pause(self, name: str) -> None:
        """Stop a domain's time."""

    async def unpause(self, name: str) -> None:
        """Let it go on."""

    async def attach(self, name: str, **interface: str | None) -> None:
        """Connect a domain to its backend."""

    async def detach(self, name: str) -> None:
        """Undo attach."""

    async def list(self) -> dict[str, Domain]:
        """The domains that exist, by name."""

    async def subscribe(self) -> AsyncIterator[str]:
        """From now on the names of domains, as they die. Ends when the hypervisor goes away."""


class Xen:
    """The hypervisor behind a socket."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    async def create(self, name: str, kind: str, nics: bool) -> int:
        return int((await self._call("create", name=name, type=kind, nics=nics))["domid"])

    async def boot(self, name: str) -> None:
        await self._call("boot", name=name)

    async def destroy(self, name: str) -> None:
        await self._call("destroy", name=name)

    async def pause(self, name: str) -> None:
        await self._call("pause", name=name)

    async def unpause(self, name: str) -> None:
        await self._call("unpause", name=name)

    async def attach(self, name: str, **interface: str | None) -> None:
        await self._call("attach", name=name, **interface)

    async def detach(self, name: str) -> None:
        await self._call("detach", name=name)

    async def list(self) -> dict[str, Domain]:
        domains = (await self._call("list"))["domains"]
        return {found["name"]: Domain(int(found["domid"]), found["state"] != "running") for found in domains}

    async def subscribe(self) -> AsyncIterator[str]:
        reader, writer = await self._connect()
        writer.write(b'{"op":"subscribe"}\n')
        if not await reader.readline():
            raise XenError("hypervisor reports no events")
        return _reports(reader, writer)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            return await asyncio.open_unix_connection(str(self._socket), limit=_LINE_MAX)
        except OSError as error:
            raise XenError(f"hypervisor cannot be reached: {error.strerror}") from None

    async def _call(self, op: str, **words: Any) -> dict[str, Any]:
        reader, writer = await self._connect()
        try:
            async with asyncio.timeout(TIMEOUT):
                writer.write(json.dumps({"op": op, **words}).encode() + b"\n")
                answer: dict[str, Any] = json.loads(await reader.readline() or b"{}")
        except (TimeoutError, OSError, ValueError):
            raise XenError(f"hypervisor gave no answer to {op}") from None
        finally:
            writer.close()
        if not answer.get("ok"):
            raise XenError(str(answer.get("error", f"hypervisor gave no answer to {op}")))
        return answer


async def _reports(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> AsyncIterator[str]:
    try:
        while line := await reader.readline():
            message = json.loads(line)
            if message.get("event") == "died":
                yield message["name"]
    finally:
        writer.close()
