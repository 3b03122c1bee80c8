# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The Admin API on a unix socket: framing, limits, answers and errors as qubesd 4.4 has them.

A request is `METHOD[+ARGUMENT] SOURCE name|keyword DESTINATION\\0PAYLOAD` and is acted on when the client has closed
its side. What is not framed so, or is longer than 65536 bytes, gets no answer at all.
"""

import asyncio
import grp
import logging
import os
import re
import shutil
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.qubesd.api.frames import format_content, format_error, format_event
from lab.qubesd.api.permission import Permissions
from lab.qubesd.base.errors import (
    PermissionDenied,
    ProtocolError,
    QubesException,
    QubesVMInvalidUUIDError,
    QubesVMNotFoundError,
)
from lab.qubesd.base.events import Emitter
from lab.qubesd.base.holder import check_name
from lab.qubesd.qubes.app import App
from portfwd.api.frames import ErrorFrame, Event
from portfwd.wire.limits import API_REQUEST_MAX

log = logging.getLogger("api")

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(slots=True)
class Call:
    """One request: who asks whom, for what. `untrusted_payload` are the bytes behind the header."""

    app: App
    permissions: Permissions
    src: Any
    dest: Any
    method: str
    arg: str
    untrusted_payload: bytes
    send_event: Callable[..., None]


Handler = Callable[[Call], Awaitable[str | None]]


@dataclass(frozen=True, slots=True)
class Method:
    """What answers a method, and what it takes: True = must be there, False = must not, None = either.

    `dom0` says the same of the destination being dom0. A method that is `endless` ends with its connection.
    """

    handler: Handler
    arg: bool | None = False
    payload: bool | None = False
    dom0: bool | None = None
    endless: bool = False

    def check(self, call: Call) -> None:
        """Raise ProtocolError for what the method does not take."""
        if self.payload is not None and bool(call.untrusted_payload) is not self.payload:
            raise ProtocolError("expected payload" if self.payload else "unexpected payload")
        if self.arg is not None and bool(call.arg) is not self.arg:
            raise ProtocolError("expected an argument" if self.arg else "unexpected argument")
        if self.dom0 is not None and (call.dest.klass == "AdminVM") is not self.dom0:
            raise ProtocolError(f"expected destination to {'' if self.dom0 else 'not '}be AdminVM")


class Server:
    """The methods by name, and the connections. An extension may replace methods before listen()."""

    def __init__(self, app: App, permissions: Permissions, methods: dict[str, Method]) -> None:
        self.app, self.permissions = app, permissions
        self.methods = dict(methods)

    async def listen(self, path: Path) -> asyncio.Server:
        """Open the socket, for the group `qubes` where there is one."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        old = os.umask(0o007)
        try:
            server = await asyncio.get_running_loop().create_unix_server(lambda: _Connection(self), str(path))
        finally:
            os.umask(old)
        with suppress(KeyError, PermissionError):
            shutil.chown(path, group=grp.getgrnam("qubes").gr_gid)
        return server

    def decode_vm(self, untrusted_name: bytes) -> Any:
        """A qube by name or by uuid:UUID."""
        name = untrusted_name.decode("ascii")
        if name.startswith("uuid:"):
            if not _UUID.fullmatch(name[5:]):
                raise QubesVMInvalidUUIDError(name[5:])
            vm = self.app.domains.by_uuid(uuid.UUID(name[5:]))
        else:
            vm = self.app.domains.get(check_name(name))
        if vm is None:
            raise QubesVMNotFoundError(name)
        return vm


@dataclass(frozen=True, slots=True)
class _Request:
    method: bytes
    arg: bytes
    src: bytes
    dest: bytes
    payload: bytes

    @classmethod
    def split(cls, untrusted: bytes) -> "_Request":
        """Raises ValueError for a framing error."""
        header, payload = untrusted.split(b"\0", 1)
        method, src, kind, dest = header.split(b" ", 3)
        if (kind, dest) == (b"keyword", b"adminvm"):
            kind, dest = b"name", b"dom0"
        if kind != b"name":
            raise ValueError("only a destination by name is supported")
        name, _, arg = method.partition(b"+")
        return cls(name, arg, src, dest, payload)


class _Connection(asyncio.Protocol):
    def __init__(self, server: Server) -> None:
        self._server = server
        self._untrusted = bytearray()
        self._task: asyncio.Task[None] | None = None
        self._endless = False
        self._events_sent = False
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if len(self._untrusted) + len(data) > API_REQUEST_MAX:
            log.warning("request too long")
            self._abort()
        else:
            self._untrusted += data

    def eof_received(self) -> bool:
        if self._transport is None or self._task is not None:
            return False
        try:
            request = _Request.split(bytes(self._untrusted))
        except ValueError:
            log.warning("framing error")
            self._abort()
            return False
        self._task = asyncio.ensure_future(self._respond(request))
        return True

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the loop's signature
        self._transport = None
        if self._endless and self._task is not None:
            self._task.cancel()

    async def _respond(self, request: _Request) -> None:
        where = f"{request.method!r}+{request.arg!r} ({request.src!r} to {request.dest!r})"
        try:
            answer = await self._execute(request)
        except (QubesException, ProtocolError, PermissionDenied) as error:
            log.info("%s: %s", where, error)
            self._finish(format_error(ErrorFrame(type(error).__name__, str(error))))
        except Exception:
            log.exception("%s: unhandled exception", where)
            self._abort()
        else:
            self._finish(b"" if self._events_sent else format_content(answer or ""))

    async def _execute(self, request: _Request) -> str | None:
        server = self._server
        src, dest = server.decode_vm(request.src), server.decode_vm(request.dest)
        arg, name = request.arg.decode("ascii"), request.method.decode("ascii")
        if name not in server.methods:
            raise ProtocolError(f"no such method: {name!r}")
        method = server.methods[name]
        self._endless = method.endless
        call = Call(server.app, server.permissions, src, dest, name, arg, request.payload, self._send_event)
        method.check(call)
        return await method.handler(call)

    def _send_event(self, subject: Emitter, event: str, **words: Any) -> None:
        if self._transport is None:
            return
        self._events_sent = True
        who = "" if subject is self._server.app else str(subject)
        self._transport.write(format_event(Event(who, event), {key: str(value) for key, value in words.items()}))

    def _finish(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)
            self._transport.close()

    def _abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()
            self._transport = None
