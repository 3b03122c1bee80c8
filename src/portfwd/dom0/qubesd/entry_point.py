# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The entry point that qubesd loads (group qubes.ext). An exception would keep qubesd from starting, so none escapes.

qubesd calls load() for every application object; without our extension it runs as ever, and says why once.
"""

import logging
from typing import Any

import qubes.ext

log = logging.getLogger("qubes.ext.port-forward")
_told = False


class Off(qubes.ext.Extension):  # type: ignore[misc]
    """Replaces the extension where it cannot run: handles no event."""


def load() -> Any:
    """The extension, or one that does nothing."""
    global _told
    try:
        from portfwd.dom0.qubesd.extension import PortForwardExtension

        return PortForwardExtension()
    except Exception:
        if not _told:
            log.exception("port forwarding is off: its extension cannot start")
            _told = True
        return Off()
