# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The answers of admin.vm.firewall.Get and .Set to our arguments: a table of names, and each call as a value.

The modules that know qubesd's own objects make the Call and turn the errors. qubesd's policy has allowed it before.
"""

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from portfwd.dom0.diagnosis.checking import CheckService
from portfwd.dom0.publishing.databases import Workers
from portfwd.dom0.storage.forwards import UnstoredError
from portfwd.dom0.usecases.caller import Caller
from portfwd.dom0.usecases.changes import Change
from portfwd.dom0.usecases.service import ForwardService
from portfwd.dom0.views.queries import StatusService
from portfwd.wire.errors import RefusedError

ARGUMENT = "forward"
"""The first part of all our arguments, alone or before a dot."""
_OLD_CHECK = (
    "a check sends packets, so it is admin.vm.firewall.Set+forward.check now; update the programs that ask for it"
)
_CHANGES_MAX = 5
"""Attempts to change a list that is changed by others at the same time."""

log = logging.getLogger(__name__)


class UnexpectedError(Exception):
    """A call that qubesd's own rules do not allow; its text is worded as qubesd does."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call: who called, about which qube, with which argument and payload.

    `vm` is qubesd's object of the destination, None for dom0, which stands for all qubes.
    """

    caller: Caller
    vm: Any
    argument: str
    untrusted_payload: bytes = b""

    @property
    def untrusted_text(self) -> str:
        """The payload. Raises RefusedError."""
        try:
            return self.untrusted_payload.decode("ascii")
        except UnicodeDecodeError:
            raise RefusedError("the payload is not ASCII text") from None

    @property
    def untrusted_last(self) -> str:
        """The part of the argument behind its last dot."""
        return self.argument.rpartition(".")[2]


class Method(NamedTuple):
    """How a name is answered; whether its calls may have a payload, and whether dom0 may be the destination."""

    answer: Callable[[Call], Awaitable[str]]
    payload: bool = False
    dom0: bool = False


class Calls:
    """One per qubesd. `settle` waits, for a bounded time, until every qube has been written."""

    def __init__(
        self,
        service: ForwardService,
        status: StatusService,
        check: CheckService,
        workers: Workers,
        settle: Callable[[], Awaitable[None]],
    ) -> None:
        self._service = service
        self._status = status
        self._workers = workers
        self._settle = settle
        self._changing = asyncio.Lock()
        self._get: Mapping[str, Method] = {
            "forward": Method(self._list),
            "forward.status": Method(lambda call: status.status(call.vm, call.caller), dom0=True),
            "forward.hops": Method(lambda call: status.hops(call.vm)),
            "forward.plan": Method(lambda call: status.plan(call.vm, call.untrusted_text, call.caller), payload=True),
            "forward.connections": Method(lambda call: status.connections(call.vm)),
            "forward.check": Method(_old_check, payload=True),
            "forward.check.*": Method(_old_check, payload=True),
        }
        self._set: Mapping[str, Method] = {
            "forward": Method(self._replace, payload=True),
            "forward.*": Method(self._replace_known, payload=True),
            "forward.anew": Method(self._begin_anew, payload=True),
            "forward.kill": Method(self._kill, payload=True),
            "forward.check": Method(lambda call: check.check(call.vm, call.untrusted_text, call.caller), payload=True),
        }

    async def get(self, call: Call) -> str:
        """Answer admin.vm.firewall.Get: what only looks. Raises UnexpectedError, RefusedError."""
        with self._workers.turns:
            return await _method(self._get, call).answer(call)

    async def set(self, call: Call) -> str:
        """Answer admin.vm.firewall.Set: what changes or sends something. Raises UnexpectedError, RefusedError.

        The answer is empty but for the diagnosis of a check, and the name of a file that is kept.
        """
        return await _method(self._set, call).answer(call)

    async def _list(self, call: Call) -> str:
        return self._service.get(call.vm)

    async def _kill(self, call: Call) -> str:
        await self._status.kill(call.vm, call.untrusted_text)
        return ""

    async def _replace(self, call: Call) -> str:
        return await self._change(
            call, functools.partial(self._service.asked, call.vm, call.untrusted_text, None, call.caller)
        )

    async def _replace_known(self, call: Call) -> str:
        known = call.untrusted_last
        return await self._change(
            call, functools.partial(self._service.asked, call.vm, call.untrusted_text, known, call.caller)
        )

    async def _begin_anew(self, call: Call) -> str:
        return await self._change(
            call, functools.partial(self._service.asked_anew, call.vm, call.untrusted_text, call.caller)
        )

    async def _change(self, call: Call, asked: Callable[[], Change]) -> str:
        """Store a list; the answer comes when all qubes have been written."""
        answer = ""
        try:
            async with self._changing:
                with self._workers.turns:
                    answer = await self._store(call, asked)
        except UnstoredError:
            # Ports are shut everywhere before the answer says so.
            await self._settle()
            raise
        except RuntimeError as error:
            # The list is stored by now. qubesd's own handler of firewall-changed failed: some QubesDB is gone.
            log.warning("port forwarding: a QubesDB could not be told: %s", error)
        await self._settle()
        return answer

    async def _store(self, call: Call, asked: Callable[[], Change]) -> str:
        for _ in range(_CHANGES_MAX):
            change = asked()
            # Comparing a list with thousands of others takes long: not on qubesd's loop.
            with call.caller.naming():
                forwards = await self._workers.compute(change.settled)
            answer = self._service.store(call.vm, change, forwards)
            if answer is not None:
                return answer
        raise RefusedError("forwards are being changed all the time; nothing was done")


def _method(table: Mapping[str, Method], call: Call) -> Method:
    """The method of a call. Where the table says `*`, the part behind the last dot may be any word."""
    method = table.get(call.argument) or table.get(f"{call.argument.rpartition('.')[0]}.*")
    if method is None:
        raise UnexpectedError("unexpected argument")
    if call.untrusted_payload and not method.payload:
        raise UnexpectedError("unexpected payload")
    if call.vm is None and not method.dom0:
        raise UnexpectedError("expected destination to not be AdminVM")
    return method


async def _old_check(_call: Call) -> str:
    raise RefusedError(_OLD_CHECK)
