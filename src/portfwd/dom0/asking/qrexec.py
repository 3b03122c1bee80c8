# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Calls a qrexec service in a qube, for the loop of qubesd, which goes on meanwhile.

`vm.run_service` is qubesd's own (qubes.vm.qubesvm.QubesVM): a coroutine that gives an asyncio.subprocess.Process. Its
relative run_service_for_stdio would take in as much as a qube likes to send.
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
    """Start a service as root: its process, a reader of what it prints, and what closes that. Raises as qubesd does.

    `limit` is in bytes, as of asyncio.StreamReader. The pipe is our own: closing it frees us of a qube that goes on
    writing.
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
    """What comes of asking one qube, or None, with a line in the log. Never raises for a qube."""
    try:
        async with asyncio.timeout(seconds):
            return await doing
    except TimeoutError:
        log.info("port forwarding: %s gave no answer in time to %s", name, what)
    except RefusedError as error:
        log.warning("port forwarding: answer of %s to %s: %s", name, what, error)
    except Exception as error:
        # qubesd's own errors, such as those of a qube that has just stopped.
        log.info("port forwarding: %s cannot be asked for %s: %s", name, what, error)
    return None
