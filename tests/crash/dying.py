# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Fuses: parts of the product that die before their n-th step, as by kill -9. What dies is thrown away by the test."""

import os
import signal
import sys
from collections.abc import Callable, Container, Iterable
from types import FrameType
from typing import Any

from portfwd.base.qubesdb_client import Database
from portfwd.kernel.conntrack import ALL, Flow, FlowTable, Which
from portfwd.kernel.nft import Nft


class KilledError(BaseException):
    """Nothing in the product may catch it."""


class Fuse:
    """Burns through at the n-th step; never while n is 0."""

    def __init__(self, steps: int = 0) -> None:
        self._left = steps

    def arm(self, steps: int) -> None:
        """Let the n-th step from now on be the last, which is not done any more."""
        self._left = steps

    def burn(self) -> None:
        """One step more."""
        if self._left:
            self._left -= 1
            if not self._left:
                raise KilledError


class DyingDatabase:
    """A connection to QubesDB whose writes burn a fuse."""

    def __init__(self, database: Database, fuse: Fuse) -> None:
        self._database, self._fuse = database, fuse

    def write(self, path: str, value: str | bytes) -> None:
        self._fuse.burn()
        self._database.write(path, value)

    def rm(self, path: str) -> None:
        self._fuse.burn()
        self._database.rm(path)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)


class DyingNft:
    """An nft whose runs burn a fuse."""

    def __init__(self, nft: Nft, fuse: Fuse) -> None:
        self._nft, self._fuse = nft, fuse

    def run(self, text: str) -> str:
        """As the nft inside."""
        self._fuse.burn()
        return self._nft.run(text)


class DyingFlows:
    """A connection table of which each look and each deletion burns a fuse."""

    def __init__(self, flows: FlowTable, fuse: Fuse) -> None:
        self._flows, self._fuse = flows, fuse

    def marked(self, bit: int, which: Which = ALL) -> Iterable[Flow]:
        """As the table inside."""
        self._fuse.burn()
        return self._flows.marked(bit, which)

    def unmarked(self, bit: int, which: Which = ALL) -> Iterable[Flow]:
        """As inside."""
        return self._flows.unmarked(bit, which)

    def forget(self, flow: Flow) -> None:
        """As the table inside."""
        self._fuse.burn()
        self._flows.forget(flow)


def die_at_line(number: int, files: Container[str]) -> None:
    """Have this process killed with SIGKILL before the n-th line that it executes in these files."""
    left = number

    def trace(frame: FrameType, event: str, _argument: object) -> Callable[..., Any] | None:
        nonlocal left
        if frame.f_code.co_filename not in files:
            return None
        if event == "line":
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
