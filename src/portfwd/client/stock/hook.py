# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Hooks the import of other packages' modules. A .pth file imports this in every Python of dom0.

So it is tiny and imports next to nothing. A failure is a line in the log; the module then works without us.
"""

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

_FIREWALL_TOOL = "qubesadmin.tools.qvm_firewall"
_RESTORE = "qubesadmin.backup.core3"


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


def install() -> None:
    """Replace the stock's qvm-firewall by ours, and make the restore of backups bring forwards back."""
    when_imported(_FIREWALL_TOOL, _replace_tool)
    when_imported(_RESTORE, _extend_restore)


def _show(module: "ModuleType", function: "Callable[[ModuleType], None]") -> None:
    try:
        function(module)
    except Exception:
        import logging

        logging.getLogger(__name__).exception("port forwarding: %s stays as it is", module.__name__)


def _replace_tool(module: "ModuleType") -> None:
    from portfwd.client.commands.qvm_firewall import main

    def tool(args: "Sequence[str] | None" = None, app: object = None) -> int:
        # Callers with an application of their own, such as the stock's tests, mean the stock's tool.
        return main(args) if app is None else stock(args, app)

    stock: Callable[..., int] = module.main
    module.main = tool  # type: ignore[attr-defined]


def _extend_restore(module: "ModuleType") -> None:
    from portfwd.client.stock.restoring import extend

    extend(module)
