# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The laboratory's qubesd, killed with SIGKILL before its n-th durable step of ours (DIES_AT in the environment).

Steps are: syncing and replacing a firewall.xml, and each write to or removal from our subtree of a QubesDB.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lab.qubesd.daemon import main
from portfwd.base.qubesdb_client import QubesDB
from portfwd.dom0.storage import store
from portfwd.wire import limits

_left = int(os.environ.get("DIES_AT", "0"))


def _step() -> None:
    global _left
    _left -= 1
    if _left == 0:
        os.kill(os.getpid(), signal.SIGKILL)


def _fused(function: Callable[..., Any], counts: Callable[..., bool]) -> Callable[..., Any]:
    def step(*arguments: Any) -> Any:
        if counts(*arguments):
            _step()
        return function(*arguments)

    return step


def _is_ours(_database: QubesDB, path: str, *_: object) -> bool:
    return path.startswith(limits.BASE)


class _Os:
    """The module os, as the store sees it."""

    fsync = staticmethod(_fused(os.fsync, lambda *_: True))

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


QubesDB.write = _fused(QubesDB.write, _is_ours)  # type: ignore[method-assign]
QubesDB.rm = _fused(QubesDB.rm, _is_ours)  # type: ignore[method-assign]
Path.replace = _fused(Path.replace, lambda path, _target: path.name == "firewall.xml.new")  # type: ignore[method-assign]
store.os = _Os()  # type: ignore[assignment,attr-defined]

if __name__ == "__main__":
    sys.exit(main())
