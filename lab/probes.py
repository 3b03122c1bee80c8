# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""What a client in the laboratory does, as plain functions to be run inside a machine's namespaces. Bounded in time."""

import contextlib
import json
import os
import resource
import selectors
import socket
import struct
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

TIMEOUT = 1.5
"""Seconds to wait for an answer inside one machine: real paths answer within a millisecond."""
MUST_COME = 6.0
"""Seconds to wait for an answer that must come: of a loaded machine nothing is asked in less."""


def ask_tcp(host: str, port: int, words: str = "hello", source_port: int = 0, *, patience: float = TIMEOUT) -> str:
    """Connect, send a line, return the answer line; or 'refused', 'timeout', 'reset', 'unreachable'."""
    try:
        with socket.create_connection((host, port), patience, ("", source_port) if source_port else None) as client:
            client.sendall(words.encode() + b"\n")
            return client.makefile().readline().strip() or "closed"
    except OSError as error:
        return why(error)


def fetch(host: str, port: int) -> str:
    """The page of an HTTP server; or why there is none."""
    try:
        with socket.create_connection((host, port), TIMEOUT) as client:
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            with client.makefile() as answer:
                return answer.read().partition("\n\n")[2].strip()
    except OSError as error:
        return why(error)


def ask_udp(host: str, port: int, words: str = "hello", tries: int = 2, *, patience: float = TIMEOUT) -> str:
    """Send a datagram, return the answer; or 'timeout', 'refused', 'unreachable'."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as client:
        client.settimeout(patience / tries)
        result = "timeout"
        for _ in range(tries):
            try:
                client.connect((host, port))
                client.send(words.encode())
                return client.recv(2000).decode(errors="replace").strip()
            except OSError as error:
                result = why(error)
        return result


class Question(NamedTuple):
    """One thing that a client tries. `patience` is in seconds."""

    host: str
    port: int
    proto: str = "tcp"
    patience: float = TIMEOUT


def ask_all(questions: Sequence[Question]) -> list[str]:
    """Ask everything at the same time; the answers in the order of the questions."""

    def ask(question: Question) -> str:
        function = ask_udp if question.proto == "udp" else ask_tcp
        return function(question.host, question.port, patience=question.patience)

    with ThreadPoolExecutor(max_workers=len(questions)) as threads:
        return list(threads.map(ask, questions))


def tell_all(pipe: int, questions: Sequence[Question]) -> None:
    """Ask everything, and write the answers as JSON into a pipe, which is closed."""
    with os.fdopen(pipe, "w") as told:
        json.dump(ask_all(questions), told)


def why(error: OSError) -> str:
    """One word for a failed exchange."""
    if isinstance(error, TimeoutError):
        return "timeout"
    if isinstance(error, ConnectionRefusedError):
        return "refused"
    if isinstance(error, ConnectionError):
        return "reset"
    return "unreachable"


def scan_tcp(host: str, first: int = 1, last: int = 65535, wave: int = 4000, patience: float = 0.6) -> list[int]:
    """The open TCP ports of a host, by real connections in waves; a port that does not answer in time is shut."""
    found: list[int] = []
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    for start in range(first, last + 1, wave):
        found += _scan_wave(host, range(start, min(start + wave, last + 1)), patience)
    return found


def _scan_wave(host: str, ports: range, patience: float) -> list[int]:
    found = []
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
        for port in ports:
            client = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            client.setblocking(False)
            # Reset on close, so that the scan leaves no connection half closed.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            with contextlib.suppress(BlockingIOError):
                client.connect((host, port))
            selector.register(client, selectors.EVENT_WRITE, port)
        deadline = time.monotonic() + patience
        while selector.get_map() and (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                selector.unregister(key.fileobj)
                if isinstance(key.fileobj, socket.socket) and not key.fileobj.getsockopt(
                    socket.SOL_SOCKET, socket.SO_ERROR
                ):
                    found.append(int(key.data))
    return found
