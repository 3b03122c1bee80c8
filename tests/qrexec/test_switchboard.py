# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""dom0's calls of services that are sockets; the qube's root directory is a folder."""

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.hypervisor.calls import fork
from lab.qrexec.router import receive
from lab.qrexec.switchboard import Switchboard

pytestmark = pytest.mark.slow

DEADLINE = 40


class Qube:
    """Its services lie in its own /run and are named, as in a real qube, by absolute links in /etc/qubes-rpc."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for folder in ("run", "etc/qubes-rpc"):
            (root / folder).mkdir(parents=True)
        self.switchboard = Switchboard(fork)

    def provide(self, service: str) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(str(self.root / "run" / service))
        listener.listen(1)
        listener.settimeout(DEADLINE)
        (self.root / "etc/qubes-rpc" / service).symlink_to(f"/run/{service}")
        return listener

    def root_of(self, name: str) -> Path | None:
        return self.root if name == "work" else None

    @contextlib.contextmanager
    def call(self, request: bytes, stdin: int) -> Iterator[tuple[socket.socket, socket.socket, int]]:
        """The caller's end of a call that has been sent, the hypervisor's, and the output."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        read_end, write_end = os.pipe()
        ours.settimeout(DEADLINE)
        try:
            socket.send_fds(ours, [request], [stdin, write_end, write_end])
        finally:
            os.close(write_end)
        with ours, theirs, os.fdopen(read_end) as output:
            yield ours, theirs, output.fileno()


@pytest.fixture
def qube(tmp_path: Path) -> Iterator[Qube]:
    qube = Qube(tmp_path / "root")
    yield qube
    qube.switchboard.close()


def read_all(descriptor: int) -> bytes:
    received = b""
    while chunk := os.read(descriptor, 65536):
        received += chunk
    return received


def test_a_service_that_thinks_before_it_answers_is_heard_to_its_end(qube: Qube) -> None:
    with qube.provide("s.Sock") as listener, Path("/etc/hostname").open() as stdin:
        sent = Path("/etc/hostname").read_bytes()
        with qube.call(b"work\0s.Sock+x", stdin.fileno()) as (ours, theirs, output):
            assert qube.switchboard.take(theirs, qube.root_of)
            server, _ = listener.accept()
            with server:
                received = b""
                while chunk := server.recv(4096):
                    received += chunk
                time.sleep(0.2)
                server.sendall(received + b"|" + b"x" * 30_000)
            assert read_all(output) == b"s.Sock+x dom0\0" + sent + b"|" + b"x" * 30_000
            assert (ours.recv(16), ours.recv(16), ours.recv(16)) == (b"started", b"0", b"")


def test_a_service_loses_its_connection_when_the_caller_is_gone(qube: Qube, silence: int) -> None:
    with qube.provide("s.Sock") as listener, qube.call(b"work\0s.Sock", silence) as (ours, theirs, _):
        assert qube.switchboard.take(theirs, qube.root_of)
        server, _ = listener.accept()
        server.settimeout(DEADLINE)
        with server:
            assert server.recv(4096).startswith(b"s.Sock")
            ours.close()
            assert server.recv(4096) == b""


@pytest.fixture
def silence() -> Iterator[int]:
    """The end to read of a pipe into which nobody writes."""
    read_end, write_end = os.pipe()
    yield read_end
    for end in (read_end, write_end):
        os.close(end)


def test_a_program_an_unknown_service_a_halted_qube_and_nonsense_are_left_to_the_router(qube: Qube) -> None:
    (qube.root / "etc/qubes-rpc/s.Program").write_text("#!/bin/sh\n")
    with qube.provide("s.Deaf") as deaf:
        deaf.close()
        for request in (b"work\0s.Program", b"work\0s.None", b"halted\0s.Deaf", b"work\0s.Deaf", b"work"):
            before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
            with qube.call(request, 0) as (_, theirs, _):
                assert not qube.switchboard.take(theirs, qube.root_of)
                untouched, descriptors = receive(theirs)
                assert untouched.encode() == request
                for descriptor in descriptors:
                    os.close(descriptor)
            assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_links_of_a_qube_never_lead_out_of_it(qube: Qube, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as outside:
        outside.bind(str(tmp_path / "outside"))
        outside.listen(1)
        for place, target in enumerate((str(tmp_path / "outside"), "../../../outside")):
            (qube.root / f"etc/qubes-rpc/s.Out{place}").symlink_to(target)
            with qube.call(f"work\0s.Out{place}".encode(), 0) as (_, theirs, _):
                assert not qube.switchboard.take(theirs, qube.root_of)
