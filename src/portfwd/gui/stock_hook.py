# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Puts our panel into the stock Qube Settings window, which has no place for plug-ins.

A .pth file imports this module in every Python program of dom0, so it does nothing but wait for one import. Whatever
fails here is a line in the log: the stock window opens in any case.
"""

import functools
import importlib.abc
import importlib.machinery
import importlib.util
import logging
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

_MODULE, _WINDOW = "qubesmanager.settings", "VMSettingsWindow"
log = logging.getLogger(__name__)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the one module as Python would, and has us look at it once it is loaded."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != _MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            loader, load = spec.loader, spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                load(module)
                wrap(module)

            loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def install() -> None:
    """Wait for the settings module; again after it was loaded does nothing."""
    if _MODULE not in sys.modules and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def wrap(module: ModuleType) -> None:
    """Have each window of the module get the panel, after all that it does itself."""
    window = getattr(module, _WINDOW, None)
    if window is None:
        log.warning("port forwarding: %s has no %s", _MODULE, _WINDOW)
        return
    window.__init__ = _wrapped(window.__init__)


def _wrapped(init: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(init)
    def init_with_panel(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        try:
            from portfwd.gui.widgets.stock import embed

            embed(self)
        except Exception:
            log.exception("port forwarding: the panel cannot be shown")

    return init_with_panel


install()
