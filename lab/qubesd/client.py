# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""A client of the Admin API for the laboratory's own commands: one call, and a clone made of calls."""

import re
import socket
from pathlib import Path

TIMEOUT = 120.0
"""Seconds that an answer may take: starting a qube starts its net qubes first."""
_NOT_COPIED = ("name", "qid", "uuid", "klass", "label", "template", "dispid")


class ApiError(Exception):
    """The error that qubesd answered: `name` is its class, '' when there was no answer at all."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(text)
        self.name = name


def call(path: Path, dest: str, method: str, payload: bytes = b"") -> str:
    """Call METHOD[+ARGUMENT] on a qube and return the answer. Raises ApiError, OSError when nobody listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(TIMEOUT)
        connection.connect(str(path))
        connection.sendall(f"{method} dom0 name {dest}\0".encode() + payload)
        connection.shutdown(socket.SHUT_WR)
        with connection.makefile("rb") as stream:
            answer = stream.read()
    kind, _, content = answer.partition(b"\0")
    if kind == b"0":
        return content.decode()
    if kind == b"2":
        name, _trace, text, *_ = content.decode("utf-8", "replace").split("\0")
        raise ApiError(name, text)
    raise ApiError("", "qubesd gave no answer, see its log")


def clone(path: Path, source: str, name: str) -> None:
    """Copy a qube as the stock qvm-clone does: create it, then set what is not at its default. Raises ApiError."""
    listed = call(path, source, "admin.vm.property.GetAll")
    values = dict(re.findall(r"^(\S+) default=False type=\w+ (.*)$", listed, re.MULTILINE))
    klass = call(path, source, "admin.vm.property.Get+klass").rpartition(" ")[2]
    template = values.get("template", "")
    call(path, "dom0", f"admin.vm.Create.{klass}+{template}", f"name={name} label={values['label']}".encode())
    for prop, value in values.items():
        if prop not in _NOT_COPIED:
            text = value.replace("\\n", "\n").replace("\\\\", "\\")
            call(path, name, f"admin.vm.property.Set+{prop}", text.encode())
    for tag in call(path, source, "admin.vm.tag.List").splitlines():
        if not tag.startswith("created-by-"):
            call(path, name, f"admin.vm.tag.Set+{tag}")
    for feature in call(path, source, "admin.vm.feature.List").splitlines():
        value = call(path, source, f"admin.vm.feature.Get+{feature}")
        call(path, name, f"admin.vm.feature.Set+{feature}", value.encode())
    call(path, name, "admin.vm.firewall.Set", call(path, source, "admin.vm.firewall.Get").encode())
