# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Calls a qrexec service in a qube without holding up qubesd's loop.

`vm.run_service` is qubesd's own (qubes.vm.qubesvm.QubesVM): a coroutine that gives an asyncio.subprocess.Process. Its
run_service_for_stdio, also qubesd's, would read as much as a qube likes to send.
"""

import asyncio
import contextlib
import logging
import os
import subprocess
from collections.abc import Awaitable
from typing import Any, TypeVar

from portfwd.wire.errors import RefusedError

log = logging.getLogger(__name__)

T = TypeVar("T")


async def start_service(
    vm: Any, service: str, stdin: int, limit: int
) -> tuple[Any, asyncio.StreamReader, asyncio.BaseTransport]:
    """Start a service as root; returns its process, a reader of its output, and the transport that closes it.

    `limit` is in bytes, as of asyncio.StreamReader. Raises as qubesd does. Closing the pipe ends a qube's endless
    output.
    """
    reader = asyncio.StreamReader(limit=limit)
    read_end, write_end = os.pipe()
    pipe = os.fdopen(read_end, "rb", 0)
    try:
        with contextlib.ExitStack() as ours:
            ours.callback(pipe.close)
            loop = asyncio.get_running_loop()
            transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
            ours.callback(transport.close)
            process = await vm.run_service(
                service, user="root", stdin=stdin, stdout=write_end, stderr=subprocess.DEVNULL
            )
            ours.pop_all()
    finally:
        os.close(write_end)
    return process, reader, transport


async def attempt(doing: Awaitable[T], seconds: float, name: str, what: str) -> T | None:
    """Await an answer of one qube; None, with a line in the log, when it fails. Never raises for a qube."""
    try:
        async with asyncio.timeout(seconds):
            return await doing
    except TimeoutError:
        log.info("port forwarding: %s gave no answer in time to %s", name, what)
    except RefusedError as error:
        log.warning("port forwarding: answer of %s to %s: %s", name, what, error)
    except Exception as error:
        # Errors of qubesd, such as of a qube that has just stopped.
        log.info("port forwarding: %s cannot be asked for %s: %s", name, what, error)
    return None
