# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The socket on which qrexec hands dom0's calls to the agent, served in the agent's own loop.

qrexec connects, sends `SERVICE+ARGUMENT SOURCE NUL`, then the caller's input; what it reads is the answer (Qubes
documentation, "qrexec: socket-based services"). Nothing here waits for a caller: one that neither sends nor reads is
dropped after a while, and so is the oldest when there are too many.
"""

import contextlib
import logging
import os
import selectors
import socket
import time
from collections.abc import Callable, Collection
from pathlib import Path

from portfwd.wire import limits

log = logging.getLogger(__name__)

CALLS_MAX = 16
CALL_SECONDS = 5.0
"""Seconds that one call may take, its answer included."""
_HEADER_MAX = 512
_CHUNK = 1 << 16

Answerer = Callable[[str, bytes], str]


class _Call:
    """One caller."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.due = time.monotonic() + CALL_SECONDS
        self.received = b""
        self.rest: bytes | None = None
        """The part of the answer that is not sent yet; None before there is one."""


class Requests:
    """The listening socket and its callers. `with_input` names the services that read the caller's input."""

    def __init__(self, path: Path, with_input: Collection[str]) -> None:
        self._path, self._with_input = path, with_input
        self._calls: list[_Call] = []
        self._selector: selectors.BaseSelector | None = None
        self._listener: socket.socket | None = None
        self._answer: Answerer = lambda _service, _payload: ""

    def serve(self, selector: selectors.BaseSelector, answer: Answerer) -> None:
        """Register with a loop that calls the data of whatever is ready. Without the socket the agent works, too."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            self._path.unlink(missing_ok=True)
            before = os.umask(0o177)
            try:
                listener.bind(str(self._path))
            finally:
                os.umask(before)
            listener.listen(CALLS_MAX)
        except OSError as error:
            log.error("dom0 cannot ask this qube anything: %s", error)
            listener.close()
            return
        self._selector, self._answer, self._listener = selector, answer, listener
        selector.register(listener, selectors.EVENT_READ, self._accept)

    def close(self) -> None:
        """Stop serving and close all sockets."""
        for call in list(self._calls):
            self._drop(call)
        if self._selector is not None and self._listener is not None:
            self._selector.unregister(self._listener)
            self._listener.close()
            self._path.unlink(missing_ok=True)
            self._listener = None

    @property
    def due(self) -> float | None:
        """When tend() is due, on the monotonic clock; None for never."""
        return min((call.due for call in self._calls), default=None)

    def tend(self, now: float) -> None:
        """Drop the callers whose time is over."""
        for call in [call for call in self._calls if call.due <= now]:
            self._drop(call)

    def _accept(self) -> None:
        if self._selector is None or self._listener is None:
            return
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        connection.setblocking(False)
        if len(self._calls) >= CALLS_MAX:
            self._drop(self._calls[0])
        call = _Call(connection)
        self._calls.append(call)
        self._selector.register(connection, selectors.EVENT_READ, lambda: self._go_on(call))

    def _go_on(self, call: _Call) -> None:
        # The call may have been dropped for another one in the same turn of the loop.
        if call not in self._calls:
            return
        try:
            if call.rest:
                self._send(call)
            else:
                self._receive(call)
        except BlockingIOError:
            return
        except OSError:
            self._drop(call)

    def _receive(self, call: _Call) -> None:
        data = call.connection.recv(_CHUNK)
        if call.rest is not None:
            # Answered: further input is discarded, since closing before its end would cut the answer off.
            if not data:
                self._drop(call)
            return
        call.received += data
        header, nul, payload = call.received.partition(b"\0")
        if len(header) > _HEADER_MAX or len(payload) > limits.REPORT_MAX or not (nul or data):
            self._drop(call)
            return
        if not nul:
            return
        # With an empty argument qrexec leaves the plus sign.
        service = header.decode("ascii", "replace").partition(" ")[0].removesuffix("+")
        if data and service in self._with_input:
            return
        call.received = b""
        call.rest = self._answer(service, payload).encode()
        self._send(call)

    def _send(self, call: _Call) -> None:
        if self._selector is None or call.rest is None:
            return
        with contextlib.suppress(BlockingIOError):
            call.rest = call.rest[call.connection.send(call.rest) :] if call.rest else b""
        if not call.rest:
            call.connection.shutdown(socket.SHUT_WR)
        ready = selectors.EVENT_WRITE if call.rest else selectors.EVENT_READ
        self._selector.modify(call.connection, ready, lambda: self._go_on(call))

    def _drop(self, call: _Call) -> None:
        self._calls.remove(call)
        if self._selector is not None:
            self._selector.unregister(call.connection)
        call.connection.close()
