# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The parts of qubesd's package that an extension meets, as three releases have them: make(release) gives its modules.

What differs: how API methods are declared and called, where ProtocolError lives and what a wrong argument raises.
"""

import asyncio
import collections
import datetime
import fnmatch
import functools
import inspect
import logging
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

from lxml import etree

from lab.qrexec import policy
from portfwd.model.ordinary import parse_ordinary
from tests.fakes.app import FakeVM

RELEASES = ("4.2", "4.3", "4.4")
NAMED = (("work", "10.137.0.6"), ("personal", "10.137.0.7"))


def make(release: str) -> dict[str, ModuleType]:
    """The modules by their names. Each call gives fresh ones."""
    names = ("", ".exc", ".ext", ".ext.admin", ".api", ".api.admin", ".api.internal", ".firewall", ".vm", ".vm.qubesvm")
    modules = {f"qubes{name}": ModuleType(f"qubes{name}") for name in names}
    modules |= {f"qrexec{name}": ModuleType(f"qrexec{name}") for name in ("", ".policy", ".policy.parser")}
    for name, module in modules.items():
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(modules[parent], child, module)
    fill: list[Callable[[Any, str], None]] = [_exceptions, _extensions, _api, _firewall, _qubes, _policy, _admin]
    for each in fill:
        each(SimpleNamespace(**{name.replace(".", "_"): module for name, module in modules.items()}), release)
    return modules


def _exceptions(q: Any, release: str) -> None:
    q.qubes_exc.QubesException = type("QubesException", (Exception,), {})
    q.qubes_exc.QubesValueError = type("QubesValueError", (q.qubes_exc.QubesException, ValueError), {})
    error = type("ProtocolError", (AssertionError,), {})
    q.qubes_api.PermissionDenied = type("PermissionDenied", (Exception,), {})
    if release == "4.2":
        q.qubes_api.ProtocolError = error
    else:
        q.qubes_exc.ProtocolError = error


def _extensions(q: Any, _: str) -> None:
    class Extension:
        """Handlers are those of the class itself, not of its bases."""

        def __new__(cls) -> Any:
            if "_instance" not in cls.__dict__:
                cls._instance = super().__new__(cls)  # type: ignore[attr-defined]
                for name in list(cls.__dict__):
                    method = getattr(cls._instance, name)  # type: ignore[attr-defined]
                    for event in getattr(method, "ha_events", ()):
                        (method.ha_vm or q.qubes.Qubes).__handlers__[event].append(method)
            return cls._instance  # type: ignore[attr-defined]

    def handler(*events: str, vm: Any = None, system: bool = False) -> Callable[[Any], Any]:
        def decorator(function: Any) -> Any:
            function.ha_events, function.ha_vm = events, None if system else vm or q.qubes_vm_qubesvm.QubesVM
            return function

        return decorator

    q.qubes_ext.Extension, q.qubes_ext.handler = Extension, handler


def _api(q: Any, release: str) -> None:
    def old(name: str, *, no_payload: bool = False, **_: Any) -> Any:
        def decorator(function: Any) -> Any:
            declared = function
            if no_payload:

                @functools.wraps(function)
                def declared(self: Any, untrusted_payload: bytes) -> Any:
                    if untrusted_payload != b"":
                        raise _protocol_error(q)("unexpected payload")
                    return function(self)

            declared.rpcnames = ((name, None),)
            return declared

        return decorator

    def new(
        name: str, *, dest_adminvm: bool | None, wants_arg: bool | None, wants_payload: bool | None, **_: Any
    ) -> Any:
        def decorator(function: Any) -> Any:
            function.api_wants_arg, function.api_wants_payload = wants_arg, wants_payload
            function.api_dest_adminvm, function.rpcnames = dest_adminvm, ((name, None),)
            return function

        return decorator

    def apply_filters(iterable: Any, filters: Any) -> Any:
        for selector in filters:
            iterable = filter(selector, iterable)
        return iterable

    q.qubes_api.method = new if release == "4.4" else old
    q.qubes_api.apply_filters = apply_filters


def _protocol_error(q: Any) -> Any:
    return getattr(q.qubes_exc, "ProtocolError", None) or q.qubes_api.ProtocolError


def _firewall(q: Any, _: str) -> None:
    class Rule:
        """One ordinary rule; what it checks and prints is the stock's (portfwd.model.ordinary is held against it)."""

        def __init__(self, xml: etree._Element | None = None, line: str = "") -> None:
            if xml is not None:
                words = [f"{p.get('name')}={p.text}" for p in xml.iterfind("properties/property")]
                line = " ".join(sorted(words, key=lambda word: word.startswith("comment=")))
            try:
                self._rule = parse_ordinary(line)
            except Exception as error:
                # Which no client of qubesd ever sees.
                raise ValueError(str(error)) from None

        @property
        def api_rule(self) -> str | None:
            return None if self.expire is not None and self.expire.expired else self._rule.api_line()

        @property
        def expire(self) -> Any:
            if self._rule.expire is None:
                return None
            seconds = self._rule.expire.seconds
            return SimpleNamespace(expired=seconds < time.time(), datetime=datetime.datetime.fromtimestamp(seconds))

        def xml_properties(self) -> etree._Element:
            properties = etree.Element("properties")
            words, _, comment = self._rule.api_line().partition(" comment=")
            for key, _, value in (word.partition("=") for word in words.split()):
                etree.SubElement(properties, "property", name=key).text = value
            if comment:
                etree.SubElement(properties, "property", name="comment").text = comment
            return properties

    class Firewall:
        def __init__(self, vm: Any, load: bool = True) -> None:
            self.vm, self.rules = vm, []
            if load:
                self.load()

        def load(self) -> None:
            path = Path(self.vm.dir_path) / self.vm.firewall_conf
            if path.exists():
                self.rules = []
                self.load_v2(etree.parse(path).getroot())
            else:
                self.rules = [Rule(line="action=accept")]

        def clone(self, other: Any) -> None:
            self.rules = list(other.rules)

        def _expire_rules(self) -> None:
            self.load()
            self.save()

        def load_v2(self, root: etree._Element) -> None:
            for element in root.find("rules"):  # type: ignore[union-attr]
                self.rules.append(Rule(element))

        def save(self) -> None:
            raise AssertionError("the stock's own save would lose the forwards")

    q.qubes_firewall.Rule, q.qubes_firewall.Firewall = Rule, Firewall


def _policy(q: Any, release: str) -> None:
    """qubes.ext.admin, and the parser of the policy that it asks; its lines are those of AdminExtension.lines."""

    class AllowResolution:
        pass

    class AccessDenied(Exception):  # noqa: N818 - the name of the real one
        pass

    class Policy:
        def evaluate(self, request: Any) -> Any:
            words = policy.Request(request.service, request.argument.removeprefix("+"), request.source, request.target)
            try:
                lines = [policy.Rule.parse(line, "policy") for line in AdminExtension.lines]
                policy.evaluate(lines, words, request.system_info)
            except policy.DeniedError as error:
                raise AccessDenied(str(error)) from None
            return request.allow_resolution_type()

    def request(service: str, argument: str, source: str, target: str, **words: Any) -> Any:
        assert words.keys() == {"system_info", "ask_resolution_type", "allow_resolution_type"}
        return SimpleNamespace(service=service, argument=argument, source=source, target=target, **words)

    class AdminExtension(q.qubes_ext.Extension):  # type: ignore[misc,name-defined]
        lines: ClassVar[list[str]] = []

        def __init__(self) -> None:
            super().__init__()
            self.policy_cache = SimpleNamespace(get_policy=Policy)

        @q.qubes_ext.handler("admin-permission:admin.vm.List")  # type: ignore[untyped-decorator, unused-ignore]
        def admin_vm_list(self, vm: Any, event: str, arg: str, **_: Any) -> Any:
            info = system_info(vm.app)

            def listed(dest: Any) -> bool:
                words = {"system_info": info, "ask_resolution_type": None, "allow_resolution_type": AllowResolution}
                try:
                    Policy().evaluate(request("admin.vm.List", f"+{arg}", vm.name, dest.name, **words))
                except AccessDenied:
                    return False
                return True

            assert event == "admin-permission:admin.vm.List"
            return (listed,)

    def system_info(app: Any) -> Any:
        return {vm.name: policy.Domain(vm.klass, frozenset(getattr(vm, "tags", ()))) for vm in app.domains}

    q.qrexec_policy_parser.Request, q.qrexec_policy_parser.AccessDenied = request, AccessDenied
    q.qrexec_policy_parser.AllowResolution = AllowResolution
    AdminExtension()
    q.qubes_ext_admin.AdminExtension = AdminExtension
    q.qubes_ext_admin.JustEvaluateAllowResolution = AllowResolution
    q.qubes_ext_admin.JustEvaluateAskResolution = type("AskResolution", (), {})
    if release == "4.2":
        q.qubes_api_internal.get_system_info = system_info
    else:
        q.qubes_api_internal.SystemInfoCache = SimpleNamespace(get_system_info=system_info)


def _qubes(q: Any, _: str) -> None:
    class Emitter:
        def fire_event(self, event: str, pre_event: bool = False, **words: Any) -> list[Any]:
            assert not pre_event or event.startswith("admin-permission:")
            effects: list[Any] = []
            for pattern, handlers in list(type(self).__handlers__.items()):  # type: ignore[attr-defined]
                for handler in handlers if fnmatch.fnmatchcase(event, pattern) else ():
                    answer = handler(self, event, **words)
                    assert not inspect.isawaitable(answer), "a synchronous event has no coroutines"
                    effects.extend(answer or ())
            return effects

    class QubesVM(Emitter, FakeVM):
        __handlers__: ClassVar[dict[str, list[Any]]] = collections.defaultdict(list)

        def __init__(self, app: Any, folder: Path, name: str, netvm: Any, ip: str) -> None:
            FakeVM.__init__(self, folder, name, netvm, ip)
            self.app, self.dir_path, self.firewall_conf = app, str(folder), "firewall.xml"
            self.log = logging.getLogger(name)
            self.watched: set[str] = set()
            self.firewall = q.qubes_firewall.Firewall(self)

        def watch_qdb_path(self, path: str) -> None:
            self.watched.add(path)

    class Domains(dict[str, Any]):
        def __iter__(self) -> Any:
            return iter(self.values())

    class Qubes(Emitter):
        __handlers__: ClassVar[dict[str, list[Any]]] = collections.defaultdict(list)

        def __init__(self, folder: Path, offline: bool = False) -> None:
            self.vmm = SimpleNamespace(offline_mode=offline)
            self.store = str(folder / "qubes.xml")
            net = QubesVM(self, folder / "sys-net", "sys-net", None, "10.137.0.4")
            firewall = QubesVM(self, folder / "sys-firewall", "sys-firewall", net, "10.137.0.5")
            qubes = [net, firewall]
            qubes += [QubesVM(self, folder / n, n, firewall, ip) for n, ip in NAMED]
            self.domains = Domains({vm.name: vm for vm in qubes})
            self.domains["dom0"] = SimpleNamespace(name="dom0", klass="AdminVM", fire_event=lambda *_, **__: [])
            for vm in qubes:
                vm.fire_event("domain-load")

    q.qubes_vm_qubesvm.QubesVM, q.qubes.Qubes = QubesVM, Qubes


def _admin(q: Any, release: str) -> None:
    newest = release == "4.4"
    words = {"wants_arg": False, "dest_adminvm": False} if newest else {}

    class QubesAdminAPI:
        def __init__(self, app: Any, src: bytes, method: bytes, dest: bytes, arg: bytes) -> None:
            self.app, self.src, self.dest = app, app.domains[src.decode()], app.domains[dest.decode()]
            self.arg, self.method = arg.decode(), method.decode()
            (self._handler,) = self.list_methods(self.method)

        @classmethod
        def list_methods(cls, name: str) -> list[Any]:
            found = (getattr(cls, attribute) for attribute in dir(cls))
            return [f for f in found if (name, None) in getattr(f, "rpcnames", ())]

        def execute(self, *, untrusted_payload: bytes) -> "asyncio.Future[Any]":
            error, call = _protocol_error(q), self._handler
            given = {"untrusted_payload": untrusted_payload}
            if newest:
                if call.api_wants_payload is True and not untrusted_payload:
                    raise error("expected payload")
                if call.api_wants_payload is False:
                    if untrusted_payload:
                        raise error("unexpected payload")
                    given = {}
                if call.api_wants_arg is False:
                    if self.arg:
                        raise error("unexpected argument")
                    del self.arg
                if call.api_dest_adminvm is False and self.dest.klass == "AdminVM":
                    raise error("expected destination to not be AdminVM")
            return asyncio.ensure_future(call(self, **given))

        def enforce(self, good: bool) -> None:
            if not good:
                raise q.qubes_api.PermissionDenied

        def fire_event_for_permission(self, **given: Any) -> Any:
            event = f"admin-permission:{self.method}"
            return self.src.fire_event(event, pre_event=True, dest=self.dest, arg=self.arg, **given)

        @q.qubes_api.method(  # type: ignore[untyped-decorator, unused-ignore]
            "admin.vm.firewall.Get", **words, **({"wants_payload": False} if newest else {"no_payload": True})
        )
        async def vm_firewall_get(self) -> str:
            self.enforce(newest or not self.arg)
            return "".join(f"{rule.api_rule}\n" for rule in self.dest.firewall.rules if rule.api_rule is not None)

        @q.qubes_api.method(  # type: ignore[untyped-decorator, unused-ignore]
            "admin.vm.firewall.Set", **words, **({"wants_payload": True} if newest else {})
        )
        async def vm_firewall_set(self, untrusted_payload: bytes) -> None:
            self.enforce(newest or not self.arg)
            rules = [q.qubes_firewall.Rule(line=line) for line in untrusted_payload.decode("ascii").splitlines()]
            self.dest.firewall.rules = rules
            self.dest.firewall.save()

        @q.qubes_api.method(  # type: ignore[untyped-decorator, unused-ignore]
            "admin.vm.firewall.Reload", **words, **({"wants_payload": False} if newest else {"no_payload": True})
        )
        async def vm_firewall_reload(self) -> None:
            self.enforce(newest or not self.arg)
            self.dest.fire_event("firewall-changed")

    if newest:
        QubesAdminAPI.list_methods = classmethod(  # type: ignore[method-assign, assignment]
            functools.cache(QubesAdminAPI.list_methods.__func__)
        )
    q.qubes_api_admin.QubesAdminAPI = QubesAdminAPI
