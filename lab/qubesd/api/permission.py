# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""What qubesd itself asks the qrexec policy: of which qubes it tells a caller that is not dom0.

qubesd does so in an extension (qubes.ext.admin), at the event admin-permission:METHOD: a question to the user counts as
no, and so does a policy that cannot be read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from lab.qrexec.policy import DeniedError, Domain, Request, evaluate, load

_GET, _LIST = "admin.vm.firewall.Get", "admin.vm.List"


class Permissions:
    """Those of `qubes`, all that there are; `folders` hold the policy, the first of two counts."""

    def __init__(self, qubes: Iterable[Any], folders: Iterable[Path]) -> None:
        self._qubes, self._folders = qubes, tuple(folders)

    def allows(self, src: Any, service: str, argument: str, dest: str) -> bool:
        """Whether `src` may make that call with that destination."""
        if src.klass == "AdminVM":
            return True
        domains = {vm.name: Domain(vm.klass, frozenset(vm.tags), vm.is_running()) for vm in self._qubes}
        try:
            evaluate(load(self._folders), Request(service, argument, src.name, dest), domains)
        except DeniedError:
            return False
        return True

    def listed(self, src: Any, vms: Iterable[Any]) -> list[Any]:
        """Those of these qubes that `src` may see."""
        return [vm for vm in vms if self.allows(src, _LIST, "", vm.name)]

    def forwards(self, src: Any) -> Callable[[str, str], bool]:
        """may(qube, argument) of portfwd.dom0.usecases.caller."""
        return lambda qube, argument: self.allows(src, _LIST, "", qube) and self.allows(src, _GET, argument, qube)
