# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The stock's tools that ours replace or extend once they are imported. A .pth file runs install() in every Python.

So it is tiny and imports next to nothing.
"""

from portfwd.client.hook import when_imported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import ModuleType

_FIREWALL_TOOL = "qubesadmin.tools.qvm_firewall"
_RESTORE = "qubesadmin.backup.core3"


def install() -> None:
    """Replace the stock's qvm-firewall by ours, and make the restore of backups bring forwards back."""
    when_imported(_FIREWALL_TOOL, _replace_tool)
    when_imported(_RESTORE, _extend_restore)


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
