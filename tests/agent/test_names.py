# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Names are resolved beside the loop, and systemd is told."""

import ipaddress
import select
import socket
import threading
from pathlib import Path

import pytest

from portfwd.agent.names import Resolver, resolve
from portfwd.agent.systemd import notify
from portfwd.wire.values import HostName

LOCALHOST, NOBODY = HostName("localhost"), HostName("nobody.invalid")


def wait_for(resolver: Resolver) -> bool:
    """Read until nothing is under way; whether anything changed."""
    changed = False
    while resolver.waiting:
        readable, _, _ = select.select([resolver], [], [], 30)
        assert readable
        changed |= resolver.read()
    return changed


def test_a_name_of_this_machine() -> None:
    assert ipaddress.ip_address("127.0.0.1") in resolve(LOCALHOST) or ipaddress.ip_address("::1") in resolve(LOCALHOST)


def test_a_name_that_is_nowhere() -> None:
    assert resolve(NOBODY) == ()


def test_names_that_getaddrinfo_cannot_even_encode() -> None:
    assert resolve(HostName("a." * 100 + "a")) == ()


def test_the_loop_is_told_when_names_are_known() -> None:
    resolver = Resolver()
    resolver.want([LOCALHOST, NOBODY])
    assert wait_for(resolver)
    assert resolver.found[NOBODY] == ()
    assert resolver.found[LOCALHOST]
    resolver.want([LOCALHOST, NOBODY])
    assert not wait_for(resolver)
    resolver.want([])
    assert resolver.found == {}


def test_name_whose_server_is_dead_does_not_hold_up_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    answer, real = threading.Event(), socket.getaddrinfo

    def slow(name: str, *args: object, **options: object) -> object:
        if name == NOBODY:
            answer.wait(30)
        return real(name, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    resolver = Resolver()
    resolver.want([NOBODY])
    resolver.want([LOCALHOST, NOBODY])
    assert select.select([resolver], [], [], 20)[0]
    assert resolver.read()
    assert resolver.found[LOCALHOST]
    assert resolver.waiting
    answer.set()
    wait_for(resolver)
    assert resolver.found[NOBODY] == ()


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
