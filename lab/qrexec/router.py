# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The router: takes the calls of all qubes, asks the policy, starts the service in the target. For the hypervisor.

    router = Router(spawn, domains, [Path("/run/qubes/policy.d"), Path("/etc/qubes/policy.d")], log=print)
    listener = listen("/the/qube's/run/qrexec.sock")      one for each qube, bound in that qube as /run/qrexec.sock
    connection, _ = listener.accept()
    Thread(target=router.serve, args=("work", connection)).start()     blocks until the service has ended
    status = router.call("dom0", "work", "qubes.Service+arg", stdin, stdout, stderr)     as qrexec-client in dom0

serve() owns the connection and closes it. call() leaves the three descriptors to its caller, who has to close them
(serve() does) so that the other side sees the end. Both may run in as many threads as there are calls.

spawn(qube, argv, env, stdin, stdout, stderr) has to run argv in the namespaces of the qube ("dom0" for dom0) with
exactly this environment and these descriptors, starting the qube first if it is halted, and return a Child, such as
subprocess.Popen. An OSError means that it could not. domains() tells the qubes of this moment, dom0 among them.

The descriptors of the calling program travel over the socket to the service itself: no byte is relayed here. When
the calling qrexec-client-vm goes away before the service ends, the service gets SIGTERM (with the real qrexec it sees
the end of its input instead).
"""

import array
import contextlib
import os
import re
import select
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from lab.qrexec import service as service_program
from lab.qrexec.codes import EXIT_PROBLEM, EXIT_REFUSED, REQUEST_MAX, STARTED
from lab.qrexec.policy import DOM0, Allowed, DeniedError, Domain, Request, evaluate, load
from portfwd.wire.errors import shown

_NOT_IN_SERVICE = re.compile(r"[^A-Za-z0-9_.+-]")
_NOT_IN_TARGET = re.compile(r"[^A-Za-z0-9_.@:-]")
STARTER = [sys.executable, "-I", "-S", service_program.__file__]
"""The program that starts a service; the service's full name, its source and the rest follow."""
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Child(Protocol):
    """A started process; subprocess.Popen is one."""

    @property
    def pid(self) -> int: ...
    def wait(self) -> int: ...


Spawn = Callable[[str, Sequence[str], Mapping[str, str], int, int, int], Child]


def listen(path: str) -> socket.socket:
    """The socket on which one qube's calls arrive."""
    Path(path).unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(path)
    Path(path).chmod(0o666)
    listener.listen(64)
    return listener


def sanitised(text: str, forbidden: re.Pattern[str]) -> str:
    """Each character that qrexec does not allow becomes an underscore."""
    return forbidden.sub("_", text)


class Router:
    """Carries out calls. `log` gets a line for each decision, `notify` what the user would see as a notification."""

    def __init__(
        self,
        spawn: Spawn,
        domains: Callable[[], Mapping[str, Domain]],
        policy_directories: Sequence[Path],
        *,
        log: Callable[[str], None],
        notify: Callable[[str], None] | None = None,
    ) -> None:
        self._spawn = spawn
        self._domains = domains
        self._policy_directories = policy_directories
        self._log = log
        self._notify = notify or log

    def serve(self, source: str, connection: socket.socket) -> None:
        """Handle the one call of a connection of the qube `source`, to its end; closes the connection."""
        with connection:
            descriptors: list[int] = []
            try:
                untrusted, descriptors = receive(connection)
                request = parse_request(source, untrusted)
                if request is None or len(descriptors) != 3:
                    self._log(f"qrexec: {source} sent what is no request")
                    return
                allowed = self._decide(request)
                child = self._start(source, allowed, *descriptors)
            except DeniedError:
                return
            except OSError as error:
                self._log(f"qrexec: a call from {source} did not start: {error}")
                _answer(connection, str(EXIT_PROBLEM).encode())
                return
            finally:
                _close(descriptors)
            _answer(connection, STARTED)
            _answer(connection, str(_finish(child, connection)).encode())

    def call(self, source: str, target: str, service: str, stdin: int, stdout: int, stderr: int) -> int:
        """Make a call and wait for its end; the exit status. Calls from dom0 are not subject to the policy."""
        try:
            child = self._start(source, self._decide(_request(source, target, service)), stdin, stdout, stderr)
        except DeniedError:
            return EXIT_REFUSED
        except OSError as error:
            self._log(f"qrexec: {service} in {target} did not start: {error}")
            return EXIT_PROBLEM
        return _finish(child, None)

    def _decide(self, request: Request) -> Allowed:
        source, target = request.source, request.target
        domains = self._domains()
        call = f"qrexec: {request.full_name}: {source} -> {target}"
        if source == DOM0:
            if target not in domains or target == DOM0:
                self._log(f"{call}: no such qube {shown(target)}")
                raise DeniedError("no such qube", notify=False)
            return Allowed(request, target, requested="", notify=False)
        try:
            allowed = evaluate(load(self._policy_directories), request, domains)
        except DeniedError as denied:
            self._log(f"{call}: denied: {denied}")
            if denied.notify:
                self._notify(f"Denied: {request.full_name} from {source} to {target}")
            raise
        self._log(f"{call}: allowed to {allowed.target}")
        if allowed.notify:
            self._notify(f"Allowed: {request.full_name} from {source} to {allowed.target}")
        return allowed

    def _start(self, source: str, allowed: Allowed, stdin: int, stdout: int, stderr: int) -> Child:
        full_name = allowed.request.full_name
        # Only dom0 is told what the caller asked for; a qube learns the caller and the service.
        requested = allowed.requested if allowed.target == DOM0 else ""
        kind = "" if not requested else "keyword" if requested.startswith("@") else "name"
        text = requested.removeprefix("@")
        env = {
            "PATH": _PATH,
            "QREXEC_REMOTE_DOMAIN": source,
            "QREXEC_SERVICE_FULL_NAME": full_name,
            "QREXEC_REQUESTED_TARGET_TYPE": kind,
        }
        if kind:
            env["QREXEC_REQUESTED_TARGET" if kind == "name" else "QREXEC_REQUESTED_TARGET_KEYWORD"] = text
        if "+" in full_name:
            env["QREXEC_SERVICE_ARGUMENT"] = allowed.request.argument
        argv = [*STARTER, full_name, source, kind, text]
        return self._spawn(allowed.target, argv, env, stdin, stdout, stderr)


def parse_request(source: str, untrusted: str) -> Request | None:
    """What the qube `source` asks for, or None when it is no request."""
    untrusted_target, nul, untrusted_service = untrusted.partition("\0")
    return _request(source, untrusted_target, untrusted_service) if nul else None


def _request(source: str, untrusted_target: str, untrusted_service: str) -> Request:
    name, _, argument = sanitised(untrusted_service, _NOT_IN_SERVICE).partition("+")
    return Request(name, argument, source, sanitised(untrusted_target, _NOT_IN_TARGET))


def receive(connection: socket.socket, how: int = 0) -> tuple[str, list[int]]:
    """A call as it was sent (`how`: flags of recv(2)), and descriptors, which are the caller's to close. OSError."""
    room = socket.CMSG_SPACE(16 * array.array("i").itemsize)
    untrusted, ancillary, flags, _ = connection.recvmsg(REQUEST_MAX, room, how)
    descriptors = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        _close(descriptors.tolist())
        raise OSError("the request is too long")
    return untrusted.decode("latin-1"), descriptors.tolist()


def _answer(connection: socket.socket, answer: bytes) -> None:
    # A caller that is gone needs no answer.
    with contextlib.suppress(OSError):
        connection.sendall(answer)


def _close(descriptors: list[int]) -> None:
    while descriptors:
        os.close(descriptors.pop())


def _finish(child: Child, connection: socket.socket | None) -> int:
    if connection is not None:
        _wait_for_either(child, connection)
    status = child.wait()
    return 128 - status if status < 0 else status


def _wait_for_either(child: Child, connection: socket.socket) -> None:
    try:
        ended = os.pidfd_open(child.pid)
    except ProcessLookupError:
        return
    try:
        poll = select.poll()
        poll.register(ended, select.POLLIN)
        poll.register(connection, select.POLLIN | select.POLLRDHUP)
        ready = {descriptor for descriptor, _ in poll.poll()}
        if ended not in ready:
            signal.pidfd_send_signal(ended, signal.SIGTERM)
    finally:
        os.close(ended)
