# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The methods of the Admin API that the laboratory has, as qubesd without any extension answers them."""

import asyncio
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lab.qubesd.api.server import Call, Method
from lab.qubesd.base.errors import (
    ProtocolError,
    QubesException,
    QubesFeatureNotFoundError,
    QubesNoSuchPropertyError,
    QubesTagNotFoundError,
    QubesValueError,
    QubesVMAlreadyExistsError,
    QubesVMInUseError,
    QubesVMNotFoundError,
)
from lab.qubesd.base.features import check_tag
from lab.qubesd.base.holder import LABELS, Holder, Property, check_name
from lab.qubesd.life import lifecycle, preload
from lab.qubesd.qubes.classes import CLASSES
from lab.qubesd.qubes.qube import LocalVM
from portfwd.dom0.storage.store import StoreError
from portfwd.model.ordinary import parse_ordinary

_FEATURE = re.compile(r"[a-zA-Z0-9_.-]+")
_FEATURE_VALUE = re.compile(r"[ -~]*")
_INTERNAL_EVENTS = ("admin-permission:", "device-get:", "device-list:", "device-list-attached:")


async def _vm_list(call: Call) -> str:
    vms = call.permissions.listed(call.src, call.app.domains if call.dest.name == "dom0" else [call.dest])
    return "".join(f"{vm} class={vm.klass} state={vm.get_power_state()} uuid={vm.uuid}\n" for vm in vms)


async def _vm_current_state(call: Call) -> str:
    # Memory and processor time mean nothing here.
    return f"mem=0 mem_static_max=0 cputime=0 power_state={call.dest.get_power_state()}"


async def _vm_class_list(_call: Call) -> str:
    return "".join(f"{name}\n" for name in sorted(["AdminVM", *CLASSES]))


async def _label_list(_call: Call) -> str:
    return "".join(f"{name}\n" for name in LABELS)


# Properties, of a qube and of the application


def _holder(call: Call) -> Holder:
    return call.app if call.method.startswith("admin.property.") else call.dest


def _property(call: Call) -> tuple[Holder, Property]:
    holder = _holder(call)
    if call.arg not in holder.properties():
        raise QubesNoSuchPropertyError(holder, call.arg)
    return holder, holder.properties()[call.arg]


async def _property_list(call: Call) -> str:
    return "".join(f"{name}\n" for name in _holder(call).properties())


async def _property_get(call: Call) -> str:
    holder, prop = _property(call)
    return prop.serialize(holder)


async def _property_get_all(call: Call) -> str:
    holder = _holder(call)
    values = {name: prop.serialize(holder) for name, prop in holder.properties().items()}
    return "".join(f"{name} {_escaped(value)}\n" for name, value in values.items())


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n")


async def _property_get_default(call: Call) -> str | None:
    holder, prop = _property(call)
    if prop.default is None:
        return None
    value = prop.default_of(holder)
    return f"type={prop.kind} {'' if value is None else value}"


async def _property_set(call: Call) -> None:
    holder, prop = _property(call)
    value = prop.sanitize(holder, call.untrusted_payload)
    await holder.set_property(prop.name, value)
    call.app.save()


async def _property_reset(call: Call) -> None:
    holder, prop = _property(call)
    if prop.accept is None:
        raise AttributeError(f"property {prop.name!r} cannot be reset")
    await holder.reset_property(prop.name)
    call.app.save()


# Features and tags


async def _feature_list(call: Call) -> str:
    return "".join(f"{name}\n" for name in call.dest.features)


async def _feature_get(call: Call) -> str:
    checks = {
        "Get": call.dest.features.get,
        "CheckWithTemplate": call.dest.features.check_with_template,
        "CheckWithNetvm": call.dest.features.check_with_netvm,
        "CheckWithAdminVM": call.dest.features.check_with_adminvm,
        "CheckWithTemplateAndAdminVM": call.dest.features.check_with_template_and_adminvm,
    }
    value = checks[call.method.rpartition(".")[2]](call.arg, None)
    if value is None:
        raise QubesFeatureNotFoundError(call.dest, call.arg)
    return str(value)


async def _feature_set(call: Call) -> None:
    try:
        untrusted_value = call.untrusted_payload.decode("ascii")
    except UnicodeDecodeError:
        raise ProtocolError("Feature value contains non-ASCII characters") from None
    if not _FEATURE.fullmatch(call.arg):
        raise ProtocolError("feature name contains illegal characters")
    if not _FEATURE_VALUE.fullmatch(untrusted_value):
        raise ProtocolError(f"{call.arg} value contains illegal characters")
    call.dest.features[call.arg] = untrusted_value
    call.app.save()


async def _feature_remove(call: Call) -> None:
    if call.arg not in call.dest.features:
        raise QubesFeatureNotFoundError(call.dest, call.arg)
    del call.dest.features[call.arg]
    call.app.save()


async def _tag_list(call: Call) -> str:
    return "".join(f"{tag}\n" for tag in call.dest.tags)


async def _tag_get(call: Call) -> str:
    return "1" if check_tag(call.arg) in call.dest.tags else "0"


async def _tag_set(call: Call) -> None:
    call.dest.tags.add(check_tag(call.arg))
    call.app.save()


async def _tag_remove(call: Call) -> None:
    if check_tag(call.arg) not in call.dest.tags:
        raise QubesTagNotFoundError(call.dest, call.arg)
    call.dest.tags.discard(call.arg)
    call.app.save()


# Firewall


@contextmanager
def _file_errors() -> Iterator[None]:
    try:
        yield
    except StoreError as error:
        raise QubesException(str(error)) from None


async def _firewall_get(call: Call) -> str:
    with _file_errors():
        return "".join(f"{rule.api_line()}\n" for rule in call.dest.firewall.live_rules())


async def _firewall_set(call: Call) -> None:
    try:
        untrusted_lines = call.untrusted_payload.decode("ascii").splitlines()
    except UnicodeDecodeError:
        raise ProtocolError("Rules contains non-ASCII characters") from None
    # A rule that is not accepted reaches no client: it is a plain ValueError in qubesd.
    rules = [parse_ordinary(untrusted_line) for untrusted_line in untrusted_lines]
    with _file_errors():
        call.dest.firewall.set_rules(rules)


async def _firewall_reload(call: Call) -> None:
    call.dest.fire_event("firewall-changed")


# What stock tools ask on the way


async def _notes_get(call: Call) -> str:
    path = _notes(call)
    return path.read_text() if path.exists() else ""


async def _notes_set(call: Call) -> None:
    try:
        _notes(call).write_text(call.untrusted_payload.decode("utf-8"))
    except UnicodeDecodeError:
        raise QubesValueError("Notes are not UTF-8 text") from None


def _notes(call: Call) -> Path:
    return Path(call.dest.dir_path) / "notes.txt"


async def _none(_call: Call) -> str:
    return ""


# Life of a qube


def _startable(call: Call) -> Any:
    if call.dest.klass == "AdminVM":
        raise QubesVMInUseError(call.dest, "dom0 cannot be started, stopped or paused")
    return call.dest


async def _vm_start(call: Call) -> None:
    await lifecycle.start(_startable(call))


async def _vm_shutdown(call: Call) -> None:
    words = call.arg.split("+") if call.arg else []
    if not {"force", "wait"}.issuperset(words):
        raise ProtocolError("Argument must match: force, wait")
    await lifecycle.shutdown(_startable(call), force="force" in words, wait="wait" in words)


async def _vm_kill(call: Call) -> None:
    await lifecycle.kill(_startable(call))


async def _vm_pause(call: Call) -> None:
    await lifecycle.pause(_startable(call))


async def _vm_unpause(call: Call) -> None:
    await lifecycle.unpause(_startable(call))


async def _vm_create(call: Call) -> None:
    klass = call.method.rpartition(".")[2]
    try:
        untrusted_words = call.untrusted_payload.decode("ascii").split(" ")
    except UnicodeDecodeError:
        raise ProtocolError("Parameters contains non-ASCII characters") from None
    words: dict[str, str] = {}
    for untrusted_word in untrusted_words:
        key, equals, value = untrusted_word.partition("=")
        if not equals or key not in ("name", "label"):
            raise ProtocolError("Options does not match: name, label")
        if key in words:
            raise ProtocolError("Options must be unique")
        words[key] = value
    for key in ("name", "label"):
        if key not in words:
            raise ProtocolError(f"Creation requested without key: {key}")
    if call.arg and "template" not in CLASSES[klass].properties():
        raise ProtocolError(f"{klass} cannot be based on template")
    name = check_name(words["name"])
    label = LocalVM.label.accept(call.app, words["label"])
    if name in call.app.domains:
        raise QubesVMAlreadyExistsError(f"Qube already exists: {name}")
    template = call.app.domains.get(call.arg) if call.arg else None
    if call.arg and template is None:
        raise QubesVMNotFoundError(call.arg)
    vm = call.app.add(klass, name, label, template)
    vm.tags.add(f"created-by-{call.src}")
    call.app.save()


async def _vm_create_disposable(call: Call) -> str:
    if call.arg or call.untrusted_payload not in (b"", b"uuid"):
        raise ProtocolError("Invalid payload, expected empty string or 'uuid'")
    if not getattr(call.dest, "template_for_dispvms", False):
        raise QubesException("Refusing to create disposable out of app qube which has template_for_dispvms=False")
    vm = await preload.take(call.dest) or call.app.add("DispVM", "", call.dest.label, call.dest, auto_cleanup=True)
    for tag in ("created-by", "disp-created-by"):
        vm.tags.add(f"{tag}-{call.src}")
    call.app.save()
    return f"uuid:{vm.uuid}" if call.untrusted_payload else str(vm.name)


async def _vm_remove(call: Call) -> None:
    if call.dest.name == "dom0":
        raise QubesVMInUseError(call.dest, "'dom0' cannot be removed")
    async with call.dest.startup_lock:
        if call.dest not in call.app.domains:
            raise QubesVMNotFoundError(str(call.dest))
        call.app.remove(call.dest)


# Events


async def _events(call: Call) -> None:
    """Send every event of the destination, of all qubes and of the application for dom0, until the client leaves.

    As far as the policy lets the caller ask for events of their subject.
    """

    def told(subject: str, event: str) -> bool:
        return call.permissions.allows(call.src, "admin.Events", event.replace(":", "_"), subject)

    def on_qube(subject: Any, event: str, **words: Any) -> None:
        if not event.startswith(_INTERNAL_EVENTS) and told(subject.name, event):
            call.send_event(subject, event, **words)

    def on_app(subject: Any, event: str, **words: Any) -> None:
        if told(words["vm"].name if "vm" in words else "@adminvm", event):
            call.send_event(subject, event, **words)
        if event == "domain-add":
            words["vm"].add_handler("*", on_qube)
        elif event == "domain-delete":
            words["vm"].remove_handler("*", on_qube)

    everything = call.dest.name == "dom0"
    subjects = list(call.app.domains) if everything else [call.dest]
    if everything:
        call.app.add_handler("*", on_app)
    for vm in subjects:
        vm.add_handler("*", on_qube)
    call.send_event(call.app, "connection-established")
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        call.app.remove_handler("*", on_app)
        for vm in {*call.app.domains, *subjects}:
            vm.remove_handler("*", on_qube)


def stock_methods() -> dict[str, Method]:
    """The table of methods."""
    table = {
        "admin.vm.List": Method(_vm_list),
        "admin.vm.CurrentState": Method(_vm_current_state),
        "admin.vmclass.List": Method(_vm_class_list, dom0=True),
        "admin.label.List": Method(_label_list, dom0=True),
        "admin.vm.feature.List": Method(_feature_list),
        "admin.vm.feature.Set": Method(_feature_set, arg=True, payload=None),
        "admin.vm.feature.Remove": Method(_feature_remove, arg=True),
        "admin.vm.tag.List": Method(_tag_list),
        "admin.vm.tag.Get": Method(_tag_get, arg=True),
        "admin.vm.tag.Set": Method(_tag_set, arg=True),
        "admin.vm.tag.Remove": Method(_tag_remove, arg=True),
        "admin.vm.firewall.Get": Method(_firewall_get, dom0=False),
        "admin.vm.firewall.Set": Method(_firewall_set, payload=True, dom0=False),
        "admin.vm.firewall.Reload": Method(_firewall_reload, dom0=False),
        "admin.vm.notes.Get": Method(_notes_get, dom0=False),
        "admin.vm.notes.Set": Method(_notes_set, payload=None, dom0=False),
        "admin.vm.volume.List": Method(_none),
        "admin.deviceclass.List": Method(_none, dom0=True),
        "admin.vm.Start": Method(_vm_start),
        "admin.vm.Shutdown": Method(_vm_shutdown, arg=None),
        "admin.vm.Kill": Method(_vm_kill),
        "admin.vm.Pause": Method(_vm_pause),
        "admin.vm.Unpause": Method(_vm_unpause),
        "admin.vm.CreateDisposable": Method(_vm_create_disposable, arg=None, payload=None),
        "admin.vm.Remove": Method(_vm_remove),
        "admin.Events": Method(_events, endless=True),
    }
    for check in ("Get", "CheckWithTemplate", "CheckWithNetvm", "CheckWithAdminVM", "CheckWithTemplateAndAdminVM"):
        table[f"admin.vm.feature.{check}"] = Method(_feature_get, arg=True)
    for prefix, dom0 in (("admin.vm.property", None), ("admin.property", True)):
        table[f"{prefix}.List"] = Method(_property_list, dom0=dom0)
        table[f"{prefix}.Get"] = Method(_property_get, arg=True, dom0=dom0)
        table[f"{prefix}.GetAll"] = Method(_property_get_all, dom0=dom0)
        table[f"{prefix}.GetDefault"] = Method(_property_get_default, arg=True, dom0=dom0)
        table[f"{prefix}.Set"] = Method(_property_set, arg=True, payload=None, dom0=dom0)
        table[f"{prefix}.Reset"] = Method(_property_reset, arg=True, dom0=dom0)
    for klass in CLASSES:
        table[f"admin.vm.Create.{klass}"] = Method(_vm_create, arg=None, payload=None, dom0=True)
    return table
