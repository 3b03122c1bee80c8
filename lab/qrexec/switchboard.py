# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Carries dom0's calls of services that are sockets, without starting a process for each.

    switchboard = Switchboard(fork)                    one per laboratory
    connection, _ = listener.accept()                  readable: the call has been sent
    if not switchboard.take(connection, root):         root("work"): the qube's root directory, None when there is none
        ...                                            the call has not been touched: the router's business

The real qrexec-agent connects such a service in the same way; what is slow about the router (lab.qrexec.router) is
a Python process for each call. Calls of qubes are the router's, since a policy decides about them.

A process of its own does the copying, with a thread for each call, because the hypervisor has to stay single-threaded
to join namespaces.
"""

import contextlib
import os
import socket
import stat
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from lab.base import namespaces as ns
from lab.qrexec import service
from lab.qrexec.codes import EXIT_PROBLEM, STARTED
from lab.qrexec.policy import DOM0
from lab.qrexec.router import parse_request, receive

_HEADER_MAX = 4096


class Switchboard:
    """Hands each call to its process, which ends with this object's owner at the latest.

    `fork` is os.fork, but keeps open in the child only the descriptors that it is given; the child's id, or 0.
    """

    def __init__(self, fork: Callable[[Iterable[int]], int]) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if fork([theirs.fileno()]) == 0:
            status = 1
            try:
                _serve(theirs)
                status = 0
            finally:
                ns.leave(status)
        theirs.close()
        self._process = ours

    def close(self) -> None:
        """End the process, and the calls that it carries."""
        self._process.close()

    def take(self, connection: socket.socket, root: Callable[[str], Path | None]) -> bool:
        """Carry out a call that dom0 has sent on this connection, if it is one of a socket. Closes it only then."""
        try:
            untrusted, descriptors = receive(connection, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except OSError:
            return False
        service_socket = None
        try:
            request = parse_request(DOM0, untrusted)
            if request is None or len(descriptors) != 3 or (place := root(request.target)) is None:
                return False
            service_socket = _connect(place, request.full_name)
            header = f"{request.full_name} {DOM0}\0".encode()
            if service_socket is None or len(header) > _HEADER_MAX:
                return False
            passed = [connection.fileno(), service_socket.fileno(), *descriptors[:2]]
            socket.send_fds(self._process, [header], passed)
        except OSError:
            return False
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
            if service_socket is not None:
                service_socket.close()
        connection.close()
        return True


def _connect(root: Path, full_name: str) -> socket.socket | None:
    """A connection to the service; None when it is a program, or not there, or cannot be connected at once."""
    inside = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for path in service.places(full_name, service.FOLDERS):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                found = ns.open_beneath(inside, path)
                try:
                    kind = os.fstat(found).st_mode
                    if stat.S_ISREG(kind):
                        return None
                    if stat.S_ISSOCK(kind):
                        return _connected(f"/proc/self/fd/{found}")
                finally:
                    os.close(found)
    finally:
        os.close(inside)
    return None


def _connected(path: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        # Whoever does not accept must not keep the hypervisor.
        connection.setblocking(False)
        connection.connect(path)
        connection.setblocking(True)
    except OSError:
        connection.close()
        raise
    return connection


def _serve(calls: socket.socket) -> None:
    ns.set_process_name("qrexec")
    while True:
        header, descriptors, _, _ = socket.recv_fds(calls, _HEADER_MAX, 4)
        if not header:
            return
        threading.Thread(target=_carry, args=(header, *descriptors), daemon=True).start()


def _carry(header: bytes, connection_fd: int, service_fd: int, stdin: int, stdout: int) -> None:
    status = EXIT_PROBLEM
    with socket.socket(fileno=connection_fd) as connection:
        # The caller may be gone, or the service; both end this call and no other.
        with contextlib.suppress(OSError):
            try:
                with socket.socket(fileno=service_fd) as service_socket:
                    # Until now the request was only looked at; from here on, something to read means the caller's end.
                    connection.recv(1)
                    connection.sendall(STARTED)
                    service.relay(header, service_socket, stdin, stdout, caller=connection_fd)
                status = 0
            finally:
                os.close(stdin)
                os.close(stdout)
        with contextlib.suppress(OSError):
            connection.sendall(str(status).encode())
