# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Puts our panel into the stock Qube Settings window, which has no place for plug-ins.

A .pth file runs this in every Python program of dom0, so it does nothing but wait for one import, and imports next
to nothing. A failure is a line in the log: the stock window opens in any case.
"""

from portfwd.client.hook import when_imported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import Any

_MODULE, _WINDOW = "qubesmanager.settings", "VMSettingsWindow"


def install() -> None:
    """Wait for the settings module."""
    when_imported(_MODULE, wrap)


def wrap(module: "ModuleType") -> None:
    """Give each window of the module the panel, after its own set-up."""
    import logging

    log = logging.getLogger(__name__)
    window = getattr(module, _WINDOW, None)
    if window is None:
        log.warning("port forwarding: %s has no %s", _MODULE, _WINDOW)
        return
    if not any(base.__module__.startswith("PyQt6.") for base in window.__mro__):
        # R4.2: two versions of Qt in one process would crash it.
        log.info("port forwarding: the settings window is not one of PyQt6; use qubes-port-forwarding")
        return
    window.__init__ = _wrapped(window.__init__)


def _wrapped(init: "Callable[..., None]") -> "Callable[..., None]":
    import functools

    @functools.wraps(init)
    def init_with_panel(self: "Any", *args: "Any", **kwargs: "Any") -> None:
        init(self, *args, **kwargs)
        try:
            from portfwd.gui.qube.stock_settings import embed

            embed(self)
        except Exception:
            import logging

            logging.getLogger(__name__).exception("port forwarding: the panel cannot be shown")

    return init_with_panel
