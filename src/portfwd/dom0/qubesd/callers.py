# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""What a caller may be told of other qubes, by qubesd's own means: events admin-permission:METHOD, and its policy.

A caller other than dom0 is told of a qube that admin.vm.List would list, and only what could have been asked there.
`call` is the stock's object of one API call (qubes.api.AbstractQubesAPI). Any doubt means no.
"""

import functools
import logging
from collections.abc import Callable, Iterable
from typing import Any

import qubes.api
import qubes.api.internal

from portfwd.dom0.usecases.caller import DOM0, RESTORES_TAG, Caller
from portfwd.wire.values import QubeName

log = logging.getLogger("qubes.ext.port-forward")

_GET, _LIST = "admin.vm.firewall.Get", "admin.vm.List"
_Allows = Callable[[str, str], bool]


def caller_of(call: Any, selectors: Iterable[Any] | None = None) -> Caller:
    """The caller of this call. `selectors`: the filters that the event of the call itself gave, for its qubes."""
    if call.src.klass == "AdminVM":
        return DOM0
    own = tuple(selectors or ())

    @functools.cache
    def asked() -> tuple[tuple[Any, ...], _Allows]:
        # Asked once for each call, and only when there is something to tell.
        return (*own, *_selectors(call)), _policy(call)

    def may(qube: QubeName, argument: str) -> bool:
        try:
            filters, allows = asked()
            listed = list(qubes.api.apply_filters([call.app.domains[qube]], filters))
            return bool(listed) and allows(qube, argument)
        except Exception:
            log.exception("port forwarding: whether %s may be told of %s is not known", call.src, qube)
            return False

    return Caller(str(call.src.name), may, restores=RESTORES_TAG in call.src.tags)


def _selectors(call: Any) -> Iterable[Any]:
    """The filters of admin.vm.List for the whole list (qubes.api.admin, qubes.ext.admin)."""
    words = {"pre_event": True, "dest": call.app.domains["dom0"], "arg": ""}
    return call.src.fire_event(f"admin-permission:{_LIST}", **words) or ()


def _policy(call: Any) -> _Allows:
    """Whether the policy lets the caller call admin.vm.firewall.Get with an argument, without asking the user."""
    # Imported when first needed: qubesd loads it as an extension of its own, perhaps after ours.
    import qubes.ext.admin
    from qrexec.policy import parser

    # R4.2 has no cache. The extension is one object, which keeps the policy as it is on disk.
    infos = getattr(qubes.api.internal, "SystemInfoCache", qubes.api.internal)
    system_info, policy = infos.get_system_info(call.app), qubes.ext.admin.AdminExtension().policy_cache.get_policy()

    def allows(qube: str, argument: str) -> bool:
        request = parser.Request(
            _GET,
            f"+{argument}",
            call.src.name,
            qube,
            system_info=system_info,
            ask_resolution_type=qubes.ext.admin.JustEvaluateAskResolution,
            allow_resolution_type=qubes.ext.admin.JustEvaluateAllowResolution,
        )
        try:
            return isinstance(policy.evaluate(request), parser.AllowResolution)
        except parser.AccessDenied:
            return False

    return allows
