# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import NamedTuple

import pytest

from portfwd.api.forwards import format_forwards, parse_forwards, token
from portfwd.client.adminapi import AdminClient, SocketTransport
from portfwd.client.commands import qvm_port_forward
from portfwd.client.commands.qvm_firewall import main
from portfwd.model.ordinary import parse_ordinary
from portfwd.wire.errors import RefusedError
from portfwd.wire.values import QubeName
from tests.client.dom0 import Dom0


class Flavour(Enum):
    EXTENSION = "with our extension"
    STOCK_43 = "R4.3 as it comes: closes the connection"
    STOCK_44 = "R4.4 as it comes: says ProtocolError"


class ApiRefusalError(Exception):
    pass


@dataclass
class Qubesd:
    """A qubesd that knows firewalls only, on a real socket, in the framing of the Admin API."""

    path: Path
    flavour: Flavour = Flavour.EXTENSION
    rules: dict[str, list[str]] = field(default_factory=lambda: {"work": ["action=accept"], "personal": []})
    forwards: dict[str, str] = field(default_factory=lambda: {"work": "", "personal": ""})
    plan: str = ""
    hops: str = "hop=sys-net internal=no confirmed=yes\nhop=work internal=yes confirmed=yes\n"
    log: list[tuple[str, str, str]] = field(default_factory=list)
    before_edit: Callable[[], None] = lambda: None

    @property
    def client(self) -> AdminClient:
        return AdminClient(SocketTransport(self.path, timeout=10))

    def answer(self, request: bytes) -> bytes:
        if len(request) > 65536:
            return b""
        header, _, payload = request.partition(b"\0")
        service, source, kind, dest = header.decode("ascii").split(" ")
        method, _, arg = service.partition("+")
        assert (source, kind) == ("dom0", "name")
        self.log.append((service, dest, payload.decode("ascii")))
        try:
            return b"0\0" + self.run(method, arg, dest, payload.decode("ascii")).encode()
        except ConnectionAbortedError:
            return b""
        except ApiRefusalError as error:
            return f"2\0{error.args[0]}\0\0{error.args[1]}\0".encode()

    def run(self, method: str, arg: str, dest: str, payload: str) -> str:
        if method == "admin.vm.List":
            names = ["dom0", *self.rules]
            return "".join(f"{name} class=AppVM state=Halted uuid=0\n" for name in names)
        if dest not in self.rules:
            raise ApiRefusalError("QubesVMNotFoundError", f"No such domain: '{dest}'")
        if arg and self.flavour is not Flavour.EXTENSION:
            if self.flavour is Flavour.STOCK_43:
                raise ConnectionAbortedError
            raise ApiRefusalError("ProtocolError", "unexpected argument")
        match method.removeprefix("admin.vm.firewall."), arg.partition(".")[0]:
            case "Get", "":
                return "".join(line + "\n" for line in self.rules[dest])
            case "Get", "forward":
                return {"forward.plan": self.plan, "forward.hops": self.hops}.get(arg, self.forwards[dest])
            case "Set", "":
                try:
                    self.rules[dest] = [parse_ordinary(line).api_line() for line in payload.splitlines()]
                except RefusedError:
                    raise ConnectionAbortedError from None
            case "Set", "forward":
                self.before_edit()
                self.set_forwards(dest, payload, arg.partition(".")[2])
            case "Reload", "":
                pass
            case _:
                raise AssertionError(f"unexpected call {method}+{arg}")
        return ""

    def set_forwards(self, dest: str, payload: str, known: str) -> None:
        if known and known != token(self.forwards[dest]):
            raise ApiRefusalError("QubesValueError", "forwards were changed by someone else meanwhile")
        try:
            rules = parse_forwards(payload)
        except RefusedError as error:
            raise ApiRefusalError("QubesValueError", str(error)) from None
        taken = {rule.srcports.first: name for name, text in self.forwards.items() for rule in parse_forwards(text)}
        for rule in rules:
            owner = taken.get(rule.srcports.first, dest)
            if owner != dest:
                raise ApiRefusalError("QubesValueError", f"srcports '{rule.srcports.short}' is taken by '{owner}'")
        self.forwards[dest] = format_forwards(rules)

    def payloads(self, service: str) -> list[str]:
        return [payload for called, _, payload in self.log if called.startswith(service)]


@pytest.fixture
def qubesd(tmp_path: Path) -> Iterator[Qubesd]:
    qubesd = Qubesd(tmp_path / "qubesd.sock")

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(qubesd.answer(self.rfile.read()))

    with socketserver.ThreadingUnixStreamServer(str(qubesd.path), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield qubesd
        server.shutdown()
        thread.join()


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Outcome]


@pytest.fixture
def run(qubesd: Qubesd, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*words: str) -> Outcome:
        try:
            code = main(words, SocketTransport(qubesd.path, timeout=10))
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return run


@pytest.fixture
def work() -> QubeName:
    return QubeName("work")


@pytest.fixture
def utc() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1_800_000_000.0)


@pytest.fixture
def dom0() -> Dom0:
    return Dom0(uplinks="192.168.1.10/24")


@pytest.fixture
def tool(dom0: Dom0, capsys: pytest.CaptureFixture[str]) -> Run:
    """qvm-port-forward. Whatever it prints, the terminal gets printable lines."""

    def tool(*words: str) -> Outcome:
        try:
            code = qvm_port_forward.main(words, dom0)
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capsys.readouterr()
        assert all(c.isprintable() or c == "\n" for c in captured.out + captured.err)
        return Outcome(code, captured.out, captured.err)

    return tool
