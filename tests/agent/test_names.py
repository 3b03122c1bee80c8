# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Names are resolved beside the loop, and systemd is told."""

import contextlib
import errno
import ipaddress
import select
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from portfwd.agent.network.names import HOLD_SECONDS, Resolver, resolve
from portfwd.kernel.systemd import notify
from portfwd.wire.values import HostName, IPAddress

KNOWN, NOBODY = HostName("0xc0000201"), HostName("nobody.invalid")
"""The first is one that getaddrinfo answers without asking anybody."""


def wait_for(resolver: Resolver) -> bool:
    """Read until nothing is under way; whether anything changed."""
    changed = False
    while resolver.waiting:
        readable, _, _ = select.select([resolver], [], [], 30)
        assert readable
        changed |= resolver.read()
    return changed


def test_a_name_that_is_known() -> None:
    assert resolve(KNOWN) == (ipaddress.ip_address("192.0.2.1"),)


@pytest.mark.parametrize("name", ["localhost", "0x7f000001", "0xe0000001", "0xffffffff", "0xa9fe0001"])
def test_f3_addresses_that_no_client_can_have_are_left_out(name: str) -> None:
    """Loopback, multicast, broadcast, link-local: whoever runs the DNS server may say so."""
    assert resolve(HostName(name)) == ()


def test_a_name_that_is_nowhere() -> None:
    assert not resolve(NOBODY)


def test_names_that_getaddrinfo_cannot_even_encode() -> None:
    assert resolve(HostName("a." * 100 + "a")) == ()


@pytest.fixture
def resolver() -> Iterator[Resolver]:
    with contextlib.closing(Resolver()) as made:
        yield made


def test_the_loop_is_told_when_names_are_known(resolver: Resolver) -> None:
    resolver.want([KNOWN, NOBODY])
    assert wait_for(resolver)
    assert resolver.found[NOBODY] == ()
    assert resolver.found[KNOWN]
    resolver.want([KNOWN, NOBODY])
    assert not wait_for(resolver)
    resolver.want([])
    assert resolver.found == {}


def test_name_whose_server_is_dead_does_not_hold_up_the_others(
    resolver: Resolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, real = threading.Event(), socket.getaddrinfo

    def slow(name: str, *args: object, **options: object) -> object:
        if name == NOBODY:
            answer.wait(30)
        return real(name, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    resolver.want([NOBODY])
    resolver.want([KNOWN, NOBODY])
    assert select.select([resolver], [], [], 20)[0]
    assert resolver.read()
    assert resolver.found[KNOWN]
    assert resolver.waiting
    answer.set()
    wait_for(resolver)
    assert resolver.found[NOBODY] == ()


ONE, TWO = ipaddress.ip_address("192.0.2.1"), ipaddress.ip_address("192.0.2.2")
MOVING = HostName("moving.example.org")


class Server:
    """What getaddrinfo says, and a clock."""

    def __init__(self) -> None:
        self.answer: OSError | tuple[IPAddress, ...] = ()
        self.now = 1000.0
        self.resolver = Resolver(lambda: self.now)

    def getaddrinfo(self, *_: object, **__: object) -> list[tuple[object, ...]]:
        if isinstance(self.answer, OSError):
            raise self.answer
        return [(2, 1, 6, "", (str(address), 0)) for address in self.answer]

    def says(self, answer: OSError | tuple[IPAddress, ...]) -> tuple[IPAddress, ...]:
        """What the name means after this answer."""
        self.answer = answer
        self.resolver.want([MOVING])
        wait_for(self.resolver)
        return self.resolver.found[MOVING]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    made = Server()
    monkeypatch.setattr(socket, "getaddrinfo", made.getaddrinfo)
    with contextlib.closing(made.resolver):
        yield made


TROUBLE = [
    socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"),
    socket.gaierror(socket.EAI_FAIL, "Non-recoverable failure in name resolution"),
    OSError(errno.EMFILE, "Too many open files"),
    TimeoutError(),
]
NO_SUCH_NAME = [
    socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
    socket.gaierror(socket.EAI_NODATA, "No address associated with hostname"),
]


@pytest.mark.parametrize("trouble", TROUBLE, ids=str)
def test_the_last_answer_counts_on_for_a_while_when_nobody_can_say(server: Server, trouble: OSError) -> None:
    assert server.says((ONE, TWO)) == (ONE, TWO)
    assert not server.resolver.troubled
    for _ in range(3):
        server.now += HOLD_SECONDS / 4
        assert server.says(trouble) == (ONE, TWO)
        assert server.resolver.troubled
    server.now += HOLD_SECONDS / 4
    assert server.says(trouble) == ()
    assert server.says((TWO,)) == (TWO,)
    assert not server.resolver.troubled
    server.now += HOLD_SECONDS - 1
    assert server.says(trouble) == (TWO,)


@pytest.mark.parametrize("answer", [(), *NO_SUCH_NAME], ids=str)
def test_a_name_that_is_gone_is_shut_at_once(server: Server, answer: OSError | tuple[IPAddress, ...]) -> None:
    assert server.says((ONE,)) == (ONE,)
    assert server.says(answer) == ()
    assert not server.resolver.troubled
    assert server.says(TROUBLE[0]) == ()


def test_an_answer_counts_as_a_whole(server: Server) -> None:
    assert server.says((ONE, TWO)) == (ONE, TWO)
    assert server.says((TWO,)) == (TWO,)
    assert server.says(TROUBLE[0]) == (TWO,)


def test_trouble_from_the_start_opens_nothing(server: Server) -> None:
    assert server.says(TROUBLE[0]) == ()
    assert server.resolver.troubled
    server.resolver.want([])
    assert not server.resolver.troubled


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_hears_that_we_are_ready(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, abstract: bool) -> None:
    address = f"@portfwd-test-{tmp_path}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + address[1:] if abstract else address)
        manager.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        notify("READY=1")
        assert manager.recv(100) == b"READY=1"


def test_no_systemd_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    notify("READY=1")
