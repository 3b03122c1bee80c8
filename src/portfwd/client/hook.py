# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Hooks the import of other packages' modules. Every Python of dom0 imports this, for the .pth files.

So it is tiny and imports nothing of ours: packages that are upgraded one by one find it in its place. A failure is a
line in the log; the module then works without us.
"""

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType


class Finder:
    """Finds modules as Python would, and calls a function with some of them once they are loaded."""

    def __init__(self) -> None:
        self.waiting: dict[str, Callable[[ModuleType], None]] = {}

    def find_spec(
        self, fullname: str, path: "Sequence[str] | None", target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        function = self.waiting.pop(fullname, None)
        if function is None:
            return None
        from importlib.machinery import PathFinder

        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def exec_module(module: "ModuleType") -> None:
                load(module)
                _show(module, function)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def when_imported(name: str, function: "Callable[[ModuleType], None]") -> None:
    """Call function(module) after the import of that module, or now if it is imported already."""
    if name in sys.modules:
        _show(sys.modules[name], function)
        return
    finder = next((each for each in sys.meta_path if isinstance(each, Finder)), None)
    if finder is None:
        finder = Finder()
        sys.meta_path.insert(0, finder)
    finder.waiting[name] = function


def _show(module: "ModuleType", function: "Callable[[ModuleType], None]") -> None:
    try:
        function(module)
    except Exception:
        import logging

        logging.getLogger(__name__).exception("port forwarding: %s stays as it is", module.__name__)
