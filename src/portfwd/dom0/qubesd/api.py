# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""admin.vm.firewall.Get and .Set with an argument, inside the stock's API class; without one they are as they were.

The releases differ in how a method is declared and called, and in where ProtocolError lives (R4.2: qubes.api).
"""

import contextlib
import inspect
import logging
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import qubes.api
import qubes.api.admin
import qubes.exc

from portfwd.api.errors import WordedError
from portfwd.dom0.calls import ARGUMENT, Call, Calls, UnexpectedError
from portfwd.dom0.qubesd.callers import caller_of
from portfwd.dom0.storage.forwards import UnstoredError
from portfwd.wire.errors import RefusedError

log = logging.getLogger("qubes.ext.port-forward")

_EXTENDED = "port_forward_extended"
Handler = Callable[..., Coroutine[Any, Any, str | None]]
CallsOf = Callable[[Any], Calls | None]


def extend(calls_of: CallsOf) -> None:
    """Extend the class, once. `calls_of(app)` gives what answers, or None while that is off."""
    admin = qubes.api.admin.QubesAdminAPI
    if hasattr(admin, _EXTENDED):
        return
    stock_get, stock_set = admin.vm_firewall_get, admin.vm_firewall_set

    async def vm_firewall_get(self: Any, untrusted_payload: bytes = b"") -> str | None:
        if not _is_ours(self.arg):
            _as_stock(stock_get, self, untrusted_payload)
            return await _stock(stock_get, self, untrusted_payload)
        call = _call(self, self.fire_event_for_permission(), untrusted_payload)
        with _told():
            return await _calls(calls_of, self).get(call)

    async def vm_firewall_set(self: Any, untrusted_payload: bytes = b"") -> str | None:
        if not _is_ours(self.arg):
            _as_stock(stock_set, self, untrusted_payload)
            return await _stock(stock_set, self, untrusted_payload)
        call = _call(self, self.fire_event_for_permission(forwards=untrusted_payload), untrusted_payload)
        with _told():
            return await _calls(calls_of, self).set(call)

    admin.vm_firewall_get = _declare("admin.vm.firewall.Get", read=True)(vm_firewall_get)
    admin.vm_firewall_set = _declare("admin.vm.firewall.Set", write=True)(vm_firewall_set)
    for listing in ("list_methods", "list_all_methods"):
        cached = getattr(admin, listing, None)
        if hasattr(cached, "cache_clear"):
            cached.cache_clear()  # type: ignore[union-attr]
    setattr(admin, _EXTENDED, True)


def _declare(name: str, **kind: bool) -> Callable[[Handler], Handler]:
    """The release's own decorator, made to check nothing before our function runs."""
    known = inspect.signature(qubes.api.method).parameters
    words: dict[str, Any] = {"scope": "local", **kind}
    words |= {word: None for word in ("dest_adminvm", "wants_arg", "wants_payload") if word in known}
    declared: Callable[[Handler], Handler] = qubes.api.method(name, **words)
    return declared


def _is_ours(arg: str) -> bool:
    return arg.partition(".")[0] == ARGUMENT


def _as_stock(stock: Any, call: Any, untrusted_payload: bytes) -> None:
    """Do the checks that this release leaves to its decorator (R4.4), with its own errors."""
    wants = getattr(stock, "api_wants_payload", None)
    if wants is True and not untrusted_payload:
        raise _protocol_error("expected payload")
    if wants is False and untrusted_payload:
        raise _protocol_error("unexpected payload")
    if getattr(stock, "api_wants_arg", None) is False and call.arg:
        raise _protocol_error("unexpected argument")
    if getattr(stock, "api_dest_adminvm", None) is False and call.dest.klass == "AdminVM":
        raise _protocol_error("expected destination to not be AdminVM")


async def _stock(stock: Any, call: Any, untrusted_payload: bytes) -> str | None:
    # Before R4.4 every method takes the payload.
    takes = getattr(stock, "api_wants_payload", True) is not False
    answer: str | None = await (stock(call, untrusted_payload=untrusted_payload) if takes else stock(call))
    return answer


def _call(call: Any, selectors: Any, untrusted_payload: bytes) -> Call:
    """The stock's object of a call as a value of ours."""
    vm = None if call.dest.klass == "AdminVM" else call.dest
    return Call(caller_of(call, selectors), vm, call.arg, untrusted_payload)


def _calls(calls_of: CallsOf, call: Any) -> Calls:
    calls = calls_of(call.app)
    if calls is None:
        raise qubes.exc.QubesValueError("port forwarding is off; see the journal of qubesd in dom0")
    return calls


def _protocol_error(text: str) -> Exception:
    made: Exception = getattr(qubes.exc, "ProtocolError", None) or qubes.api.ProtocolError
    return made(text)  # type: ignore[operator,no-any-return]


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Turn our errors into errors that every client can show."""
    try:
        yield
    except UnexpectedError as error:
        raise _protocol_error(str(error)) from None
    except (WordedError, UnstoredError) as error:
        # Clients that do not know the class show its text.
        raise type(error.word.value, (qubes.exc.QubesValueError,), {})(str(error)) from None
    except RefusedError as error:
        raise qubes.exc.QubesValueError(str(error)) from None
    except Exception as error:
        # qubesd would close the connection without an answer, as it does without our extension.
        log.exception("port forwarding: a call failed")
        text = f"port forwarding failed ({type(error).__name__}); see the journal of qubesd in dom0"
        raise qubes.exc.QubesException(text) from None
