# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Starts one service inside its qube: finds it, then becomes it, or connects it to its socket.

    python3 -I -S service.py SERVICE+ARGUMENT SOURCE [name|keyword TARGET]

Run by the router in the namespaces of the target, with the caller's descriptors and QREXEC_* in the environment.
Standard library only, and no imports from the project: it runs where only this file need be readable. Exit status 127
when there is no such service.
"""

import os
import selectors
import socket
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

FOLDERS = ("/run/qubes-rpc", "/usr/local/etc/qubes-rpc", "/etc/qubes-rpc")
EXIT_PROBLEM = 125
EXIT_NOT_FOUND = 127
_CHUNK = 65536


def places(full_name: str, folders: Sequence[str]) -> list[Path]:
    """Where the file of a service may be: SERVICE+ARGUMENT in any folder, else SERVICE."""
    return [Path(folder) / name for name in (full_name, full_name.partition("+")[0]) for folder in folders]


def find(full_name: str, folders: Sequence[str]) -> Path | None:
    """The file of a service."""
    return next((path for path in places(full_name, folders) if path.is_file() or path.is_socket()), None)


def relay(header: bytes, connection: socket.socket, stdin: int, stdout: int, caller: int | None = None) -> None:
    """Send the header, then the input; copy the answer to the output until the service closes its end.

    `caller`: a socket of which nothing is read; when its other side is gone, the copying ends.
    """
    connection.sendall(header)
    with selectors.DefaultSelector() as selector:
        selector.register(connection, selectors.EVENT_READ)
        if caller is not None:
            selector.register(caller, selectors.EVENT_READ)
        try:
            selector.register(stdin, selectors.EVENT_READ)
        except PermissionError:
            # A plain file cannot be polled and never blocks.
            while chunk := os.read(stdin, _CHUNK):
                connection.sendall(chunk)
            connection.shutdown(socket.SHUT_WR)
        while True:
            for key, _ in selector.select():
                if key.fd == caller:
                    return
                if key.fd == stdin:
                    chunk = os.read(stdin, _CHUNK)
                    connection.sendall(chunk)
                    if not chunk:
                        selector.unregister(stdin)
                        connection.shutdown(socket.SHUT_WR)
                    continue
                answer = connection.recv(_CHUNK)
                if not answer:
                    return
                while answer:
                    answer = answer[os.write(stdout, answer) :]


def main(argv: Sequence[str], folders: Sequence[str] = FOLDERS) -> int:
    """Run the service; returns only for a socket service or when it cannot be run."""
    full_name, source, *target = argv
    path = find(full_name, folders)
    if path is None:
        print(f"there is no service {full_name}", file=sys.stderr)
        return EXIT_NOT_FOUND
    if stat.S_ISSOCK(path.stat().st_mode):
        words = [full_name, source, *(word for word in target if word)]
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.connect(str(path.resolve()))
                relay(" ".join(words).encode() + b"\0", connection, 0, 1)
        except OSError as error:
            print(f"service {full_name} broke off: {error}", file=sys.stderr)
            return EXIT_PROBLEM
        return 0
    argument = full_name.partition("+")[2]
    arguments = [argument] if argument else []
    try:
        if os.access(path, os.X_OK):
            os.execv(path, [str(path), *arguments])  # noqa: S606 - to become the service is the purpose
        os.execv("/bin/sh", ["/bin/sh", "--", str(path), *arguments])  # noqa: S606
    except OSError as error:
        print(f"service {full_name} cannot be run: {error}", file=sys.stderr)
    return EXIT_PROBLEM


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
