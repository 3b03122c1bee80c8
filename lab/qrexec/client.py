# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""qrexec-client-vm: calls a service from inside a qube.

    qrexec-client-vm [OPTIONS] TARGET SERVICE[+ARGUMENT] [LOCAL_PROGRAM ARGUMENTS...]

The service gets this program's input, output and error output themselves, or those of LOCAL_PROGRAM. Exit status: the
service's; 126 when the call is refused, 127 when the target has no such service, 125 for other problems. Who calls is
told by the socket, which each qube has for itself. Options about filters and buffers are taken and ignored.
"""

import getopt
import os
import socket
import subprocess
import sys
from collections.abc import Sequence

from lab.qrexec.codes import EXIT_PROBLEM, EXIT_REFUSED, STARTED

SOCKET = "/run/qrexec.sock"
_USAGE = "usage: qrexec-client-vm [options] TARGET SERVICE[+ARGUMENT] [LOCAL_PROGRAM [ARGUMENTS]]"
_LONG = [
    "buffer-size=",
    "filter-escape-chars-stdout",
    "filter-escape-chars-stderr",
    "no-filter-escape-chars-stdout",
    "no-filter-escape-chars-stderr",
    "agent-socket=",
    "use-stdin-socket",
    "help",
]


def _status(connection: socket.socket) -> int:
    answer = connection.recv(16)
    return int(answer) if answer.isdigit() else EXIT_PROBLEM


def _not_started(answer: bytes) -> int:
    if answer.isdigit():
        return int(answer)
    print("Request refused", file=sys.stderr)
    return EXIT_REFUSED


def _call(path: str, request: bytes, stdin: int, stdout: int) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(path)
    socket.send_fds(connection, [request], [stdin, stdout, 2])
    return connection


def _with_local_program(path: str, request: bytes, program: Sequence[str]) -> int:
    our_in, service_in = socket.socketpair()
    our_out, service_out = socket.socketpair()
    with our_in, our_out:
        with service_in, service_out:
            connection = _call(path, request, service_in.fileno(), service_out.fileno())
        with connection:
            if (answer := connection.recv(16)) != STARTED:
                return _not_started(answer)
            local = subprocess.Popen(program, stdin=our_out.fileno(), stdout=our_in.fileno())
            our_in.close()
            our_out.close()
            status = _status(connection)
            local.wait()
            return status


def main(argv: Sequence[str] | None = None) -> int:
    """Make one call; argv[0] is the program's name. Returns the exit status."""
    try:
        options, rest = getopt.getopt(list(sys.argv if argv is None else argv)[1:], "tTa:h", _LONG)
    except getopt.GetoptError as error:
        print(f"{error}\n{_USAGE}", file=sys.stderr)
        return 2
    chosen = dict(options)
    if "-h" in chosen or "--help" in chosen or len(rest) < 2:
        print(_USAGE, file=sys.stderr)
        return 0 if "-h" in chosen or "--help" in chosen else 2
    path = chosen.get("--agent-socket", chosen.get("-a", SOCKET))
    target, service, *program = rest
    request = os.fsencode(target.replace("$", "@")) + b"\0" + os.fsencode(service)
    try:
        if program:
            return _with_local_program(path, request, program)
        with _call(path, request, 0, 0 if "--use-stdin-socket" in chosen else 1) as connection:
            answer = connection.recv(16)
            return _status(connection) if answer == STARTED else _not_started(answer)
    except OSError as error:
        print(f"qrexec-client-vm: {error}", file=sys.stderr)
        return EXIT_PROBLEM


if __name__ == "__main__":
    sys.exit(main())
