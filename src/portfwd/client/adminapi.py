# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The client's side of the Admin API: one call over a socket or qrexec, its answer, and the typed calls.

Source: the Admin API of Qubes OS. A request is METHOD+ARG SOURCE name DEST NUL PAYLOAD, then the end of the stream;
an answer is 0 NUL CONTENT, or 2 NUL CLASS NUL TRACEBACK NUL MESSAGE NUL, or nothing at all.
"""

import os
import select
import socket
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

from portfwd.api.connections import Clients, format_kill, parse_connections
from portfwd.api.diagnosis import CheckRequest, Diagnosis, parse_check
from portfwd.api.errors import UNEXPECTED, ErrorWord
from portfwd.api.forwards import Forwards, Token, format_forwards, parse_kept
from portfwd.api.frames import ErrorFrame
from portfwd.api.frames import parse_answer as parse_frame
from portfwd.api.hops import Confirmation, parse_hops
from portfwd.api.plan import PlanAnswer, parse_plan
from portfwd.api.status import PathStatus, Status, parse_status
from portfwd.client.streams import ProcessStream, SocketStream, Stream
from portfwd.model.forward import ForwardRule
from portfwd.model.ordinary import OrdinaryRule, parse_ordinary
from portfwd.wire import limits
from portfwd.wire.answers.connections import Connection
from portfwd.wire.errors import RefusedError
from portfwd.wire.values import IPAddress, QubeName, RuleId

QUBESD_SOCKET = Path("/var/run/qubesd.sock")
QREXEC_CLIENT_VM = Path("/usr/bin/qrexec-client-vm")
_RELEASE = Path("/etc/qubes-release")
_DOM0 = "dom0"
_GET, _SET = "admin.vm.firewall.Get", "admin.vm.firewall.Set"
_FORWARD = "forward"
_ANSWER_MAX = 16 * 1024 * 1024
"""Bytes of an answer, at most: qubesd has no limit, and no answer to our calls comes near this one."""
_EDIT_ATTEMPTS = 100
"""Attempts at an edit. Each failure is another editor's success, so this many would have to be faster than we are."""

ListChange = Callable[[tuple[ForwardRule, ...]], tuple[ForwardRule, ...]]
"""Turns the present forwards of a qube into the wanted ones, or refuses. Called again for a newer list."""


class CallError(Exception):
    """A call failed. What it asked for may have been done, unless the error is a RefusedError as well."""


class NotDoneError(CallError, RefusedError):
    """A call that failed and has done nothing: it was not sent, or only looks."""


class ApiError(CallError, RefusedError):
    """qubesd refused. The text is qubesd's; `exception` is the name of the error's class there."""

    def __init__(self, exception: str, message: str) -> None:
        self.exception = exception
        super().__init__(message or exception)


class NoExtensionError(NotDoneError):
    """dom0 has no port forwarding: its qubesd does not know the call."""

    def __init__(self) -> None:
        super().__init__("dom0 has no port forwarding: the extension of qubesd is not installed or does not run")


class EmptyAnswerError(CallError):
    """qubesd closed the connection without an answer; the reason is in its journal only."""

    def __init__(self) -> None:
        super().__init__("Got empty response from qubesd. See journalctl in dom0 for details.")


class UnstoredError(CallError):
    """The change has shut its ports, but dom0 could not store it; the text says what follows from that."""


class Transport(Protocol):
    """Carries one call to qubesd."""

    def call(self, dest: str, method: str, arg: str = "", payload: bytes = b"") -> bytes:
        """The content of the answer. Raises CallError."""


class SocketTransport:
    """Calls from dom0 itself. `timeout` is in seconds, for the whole call."""

    def __init__(self, path: Path = QUBESD_SOCKET, timeout: float = 120.0) -> None:
        self._path = path
        self._timeout = timeout

    def call(self, dest: str, method: str, arg: str = "", payload: bytes = b"") -> bytes:
        """The content of the answer. Raises CallError."""
        request = f"{method}+{arg} {_DOM0} name {dest}\0".encode() + payload
        _check_size(request)
        deadline = time.monotonic() + self._timeout
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(self._timeout)
            try:
                connection.connect(os.fspath(self._path))
            except OSError as error:
                raise NotDoneError(f"Failed to connect to qubesd service: {error}") from None
            try:
                connection.sendall(request)
                connection.shutdown(socket.SHUT_WR)
                answer = _read_all(connection.fileno(), deadline)
            except TimeoutError:
                raise CallError(f"qubesd gave no answer within {self._timeout:.0f} seconds") from None
            except ConnectionError:
                raise EmptyAnswerError from None
        return parse_answer(answer)

    def stream(self, dest: str, method: str) -> "Stream":
        """The endless answer of a call (admin.Events). Raises CallError."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(os.fspath(self._path))
            connection.sendall(f"{method}+ {_DOM0} name {dest}\0".encode())
            connection.shutdown(socket.SHUT_WR)
        except OSError as error:
            connection.close()
            raise NotDoneError(f"Failed to connect to qubesd service: {error}") from None
        return SocketStream(connection)


class QrexecTransport:
    """Calls from a qube, if dom0's policy allows. `timeout` (seconds) includes the user's answer to a prompt."""

    def __init__(self, program: Path = QREXEC_CLIENT_VM, timeout: float = 600.0) -> None:
        self._program = program
        self._timeout = timeout

    def call(self, dest: str, method: str, arg: str = "", payload: bytes = b"") -> bytes:
        """The content of the answer. Raises CallError."""
        # Imported here: dom0 never needs them, and there every start of the program would pay for them.
        import subprocess
        import tempfile

        service = f"{method}+{arg}" if arg else method
        _check_size(f"{service} {'x' * limits.QUBE_NAME_MAX} name {dest}\0".encode() + payload)
        deadline = time.monotonic() + self._timeout
        # Files, so that a full pipe in one direction cannot block the other.
        with tempfile.TemporaryFile() as stdin, tempfile.TemporaryFile() as stderr:
            stdin.write(payload)
            stdin.seek(0)
            command = [os.fspath(self._program), dest, service]
            try:
                process = subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, stderr=stderr)
            except OSError as error:
                raise NotDoneError(f"Service call error: {error}") from None
            with process:
                assert process.stdout is not None  # noqa: S101 - asked for above
                try:
                    answer = _read_all(process.stdout.fileno(), deadline)
                    code = process.wait(max(0.0, deadline - time.monotonic()))
                except (TimeoutError, subprocess.TimeoutExpired):
                    raise CallError(f"qrexec gave no answer within {self._timeout:.0f} seconds") from None
                finally:
                    process.kill()
            stderr.seek(0)
            said = stderr.read(4096).decode("utf-8", "replace").strip()
        if code != 0:
            raise CallError(f"Service call error: {said or f'qrexec-client-vm ended with {code}'}")
        return parse_answer(answer)

    def stream(self, dest: str, method: str) -> Stream:
        """The endless answer of a call (admin.Events). Raises CallError."""
        import subprocess

        command = [os.fspath(self._program), dest, method]
        null = subprocess.DEVNULL
        try:
            return ProcessStream(subprocess.Popen(command, stdin=null, stdout=subprocess.PIPE, stderr=null))
        except OSError as error:
            raise NotDoneError(f"Service call error: {error}") from None


def connect() -> "SocketTransport | QrexecTransport":
    """The transport to qubesd from here: its socket in dom0, else qrexec."""
    return SocketTransport() if _RELEASE.exists() or QUBESD_SOCKET.exists() else QrexecTransport()


def parse_answer(answer: bytes) -> bytes:
    """The content of an answer. Raises EmptyAnswerError, ApiError, CallError."""
    if not answer:
        raise EmptyAnswerError
    try:
        content = parse_frame(answer)
    except RefusedError as error:
        raise CallError(str(error)) from None
    if isinstance(content, ErrorFrame):
        if content.kind == ErrorWord.UNSTORED:
            raise UnstoredError(content.text)
        raise ApiError(exception=content.kind, message=content.text)
    return content


class AdminClient:
    """The calls that have types. A look raises RefusedError, also for an answer that is not understood.

    A change raises RefusedError, with nothing changed, and CallErrors that are none when it may have been made.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def qubes(self) -> tuple[QubeName, ...]:
        """The qubes that this client may see."""
        return tuple(self.listed())

    def listed(self) -> dict[QubeName, dict[str, str]]:
        """Class and state of each qube that this client may see (admin.vm.List)."""
        answer = _text(self._look(_DOM0, "admin.vm.List"))
        told = (line.split(" ") for line in answer.splitlines())
        return {QubeName(name): dict(word.partition("=")[::2] for word in words) for name, *words in told}

    def properties(self, qube: QubeName) -> dict[str, str]:
        """All properties of a qube that have a value. Raises ApiError."""
        # Values may be texts of users, in any alphabet.
        answer = self._look(qube, "admin.vm.property.GetAll").decode("utf-8", "replace")
        told = (line.split(" ", 3) for line in answer.splitlines())
        return {words[0]: words[3] for words in told if len(words) == 4}

    def rules(self, qube: QubeName) -> tuple[OrdinaryRule, ...]:
        """The ordinary rules."""
        answer = self._look(qube, _GET)
        return tuple(parse_ordinary(line) for line in _text(answer).splitlines())

    def set_rules(self, qube: QubeName, rules: Iterable[OrdinaryRule]) -> None:
        """Replace the ordinary rules; the forwards stay. The API knows no token here: the last writer wins."""
        payload = "".join(f"{rule.line(everything=True)}\n" for rule in rules)
        self._change(qube, _SET, payload=payload.encode())

    def forwards(self, qube: QubeName) -> Forwards:
        """The forwards and their token. Raises NoExtensionError where dom0 has no port forwarding."""
        return Forwards.parse(_text(self._known(qube, _FORWARD)))

    def set_forwards(self, qube: QubeName, rules: Iterable[ForwardRule], known: Token) -> None:
        """Replace the forwards. Raises ApiError, with nothing changed, when they are no longer those of the token."""
        self._change(qube, _SET, f"{_FORWARD}.{known}", format_forwards(rules).encode())

    def edit_forwards(self, qube: QubeName, change: ListChange, attempts: int = _EDIT_ATTEMPTS) -> None:
        """Read, change, write; again when someone else wrote in between, at most `attempts` times."""
        present = self.forwards(qube)
        while True:
            attempts -= 1
            try:
                return self.set_forwards(qube, change(present.rules), present.token)
            except ApiError:
                newer = self.forwards(qube)
                # A second attempt helps only if the list has changed meanwhile.
                if attempts <= 0 or newer.token == present.token:
                    raise
                present = newer

    def begin_anew(self, qube: QubeName) -> str:
        """Have no forwards, where those in the file cannot be read; where dom0 keeps that file, or '' if it is gone.

        Raises ApiError, with nothing changed, also where they can be read.
        """
        answer = self._change(qube, _SET, f"{_FORWARD}.anew")
        try:
            kept = parse_kept(_text(answer))
        except RefusedError as error:
            raise CallError(str(error)) from None
        return "" if kept is None else str(kept)

    def problem(self, qube: QubeName, rule: ForwardRule) -> str | None:
        """Why a stored forward opens nothing at the moment, in a sentence; None when its whole path is planned."""
        path = self.plan(qube).paths.get(rule.id(qube), PathStatus())
        return None if path.obstacle is None else path.obstacle.text

    def status(self, qube: QubeName | None) -> Status:
        """How the forwards fare: of one qube, or of all where dom0 allows this. Raises NoExtensionError."""
        return parse_status(_text(self._known(qube or _DOM0, f"{_FORWARD}.status")))

    def hops(self, qube: QubeName) -> tuple[Confirmation, ...]:
        """Which hops of the qube's way have confirmed what dom0 wants of them."""
        return parse_hops(_text(self._view(qube, "hops")))

    def plan(self, qube: QubeName, candidate: Iterable[ForwardRule] | None = None) -> PlanAnswer:
        """What each hop does for the present forwards, or would do for a list that is not stored."""
        payload = b"" if candidate is None else format_forwards(candidate).encode()
        return parse_plan(_text(self._view(qube, "plan", payload)))

    def check(self, qube: QubeName, rule: RuleId, client: IPAddress | None = None) -> Diagnosis:
        """The diagnosis of one forward; `client` is who could not connect. It sends packets."""
        payload = str(CheckRequest(rule, client)).encode()
        return parse_check(_text(self._look(qube, _SET, f"{_FORWARD}.check", payload)))

    def connections(self, qube: QubeName) -> Clients:
        """The open connections that came to the qube through its forwards."""
        return parse_connections(_text(self._view(qube, "connections")))

    def kill(self, qube: QubeName, connection: Connection) -> None:
        """End this connection."""
        self._change(qube, _SET, f"{_FORWARD}.kill", format_kill(connection).encode())

    def _known(self, dest: str, arg: str) -> bytes:
        try:
            return self._transport.call(dest, _GET, arg)
        except EmptyAnswerError:
            raise NoExtensionError from None
        except ApiError as error:
            if error.exception == UNEXPECTED:
                raise NoExtensionError from None
            raise
        except CallError as error:
            raise nothing_done(error) from None

    def _view(self, dest: str, name: str, payload: bytes = b"") -> bytes:
        return self._look(dest, _GET, f"{_FORWARD}.{name}", payload)

    def _look(self, dest: str, method: str, arg: str = "", payload: bytes = b"") -> bytes:
        """A call that changes nothing. Raises NotDoneError, ApiError."""
        try:
            return self._transport.call(dest, method, arg, payload)
        except CallError as error:
            raise nothing_done(error) from None

    def _change(self, dest: str, method: str, arg: str = "", payload: bytes = b"") -> bytes:
        """A call that changes something. Raises CallError."""
        try:
            return self._transport.call(dest, method, arg, payload)
        except (RefusedError, UnstoredError):
            raise
        except CallError as error:
            raise CallError(f"no answer to the change: {error}") from None

    def reload(self, qube: QubeName) -> None:
        """Apply the rules again although nothing has changed; host names are resolved again."""
        self._change(qube, "admin.vm.firewall.Reload")


def nothing_done(error: CallError) -> CallError:
    """The error of a call that only looks."""
    return error if isinstance(error, RefusedError) else NotDoneError(str(error))


def _check_size(request: bytes) -> None:
    if len(request) > limits.API_REQUEST_MAX:
        raise NotDoneError(f"the request has {len(request)} bytes, qubesd takes {limits.API_REQUEST_MAX}")


def _read_all(descriptor: int, deadline: float) -> bytes:
    """Read to the end of the stream. Raises TimeoutError, and CallError for an answer that is too long."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    answer = bytearray()
    while len(answer) <= _ANSWER_MAX:
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            raise TimeoutError
        chunk = os.read(descriptor, 65536)
        if not chunk:
            return bytes(answer)
        answer += chunk
    raise CallError(f"the answer has more than {_ANSWER_MAX} bytes")


def _text(answer: bytes) -> str:
    try:
        return answer.decode("ascii")
    except UnicodeDecodeError:
        raise RefusedError("the answer of qubesd is not ASCII") from None
