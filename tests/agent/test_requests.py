# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The socket on which the agent is asked: it answers whoever behaves, and no caller can hold it up."""

import selectors
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from portfwd.agent.answers.requests import CALL_SECONDS, CALLS_MAX, Requests
from portfwd.wire import limits

BIG = "x" * (4 << 20)


class Served:
    """Requests in a loop that the test turns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.selector = selectors.DefaultSelector()
        self.requests = Requests(path, {"with.Input"})
        self.asked: list[tuple[str, bytes]] = []
        self._clients: list[socket.socket] = []
        self.requests.serve(self.selector, self.answer)

    def answer(self, service: str, payload: bytes) -> str:
        self.asked.append((service, payload))
        return BIG if service == "big" else f"{service} got {len(payload)}\n"

    def connect(self, data: bytes = b"") -> socket.socket:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._clients.append(client)
        client.connect(str(self.path))
        client.setblocking(False)
        self.send(client, data)
        return client

    def close(self) -> None:
        """End it, and every caller."""
        self.requests.close()
        for client in self._clients:
            client.close()
        assert not self.path.exists()
        assert list(self.selector.get_map()) == []
        self.selector.close()

    def send(self, client: socket.socket, data: bytes) -> None:
        while data:
            try:
                data = data[client.send(data) :]
            except BlockingIOError:
                self.turn()

    def turn(self) -> None:
        for key, _ in self.selector.select(0.01):
            key.data()

    def until(self, reached: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 10
        while not reached():
            assert time.monotonic() < deadline
            self.turn()

    def read(self, client: socket.socket) -> bytes:
        """Everything up to the end. Raises ConnectionResetError."""
        found: list[bytes] = []

        def ended() -> bool:
            try:
                found.append(client.recv(1 << 20))
            except BlockingIOError:
                return False
            return found[-1] == b""

        self.until(ended)
        return b"".join(found)

    def is_dropped(self, client: socket.socket) -> bool:
        try:
            return self.read(client) == b""
        except ConnectionResetError:
            return True


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    made = Served(tmp_path / "sock")
    yield made
    made.close()


@pytest.mark.parametrize("argument", ["", "+", "+plan"])
def test_a_call_is_answered_and_ends(served: Served, argument: str) -> None:
    client = served.connect(f"qubes.Some{argument} dom0\0".encode())
    client.shutdown(socket.SHUT_WR)
    assert served.read(client) == f"qubes.Some{argument.rstrip('+')} got 0\n".encode()
    served.until(lambda: served.requests.due is None)


def test_one_that_may_still_say_something_is_answered_at_once(served: Served) -> None:
    client = served.connect(b"qubes.Some+ dom0\0")
    assert served.read(client) == b"qubes.Some got 0\n"
    served.send(client, b"too late\n" * 100)
    assert served.requests.due is not None
    client.close()
    served.until(lambda: served.requests.due is None)


def test_input_is_read_to_its_end_in_whatever_pieces(served: Served) -> None:
    client = served.connect()
    for piece in (b"with.In", b"put do", b"m0\0one", b" two", b" three"):
        served.send(client, piece)
        served.turn()
    assert served.asked == []
    client.shutdown(socket.SHUT_WR)
    assert served.read(client) == b"with.Input got 13\n"
    assert served.asked == [("with.Input", b"one two three")]


@pytest.mark.parametrize("data", [b"no end", b"x" * 1000, b""])
def test_what_is_no_call_is_dropped(served: Served, data: bytes) -> None:
    client = served.connect(data)
    client.shutdown(socket.SHUT_WR)
    assert served.is_dropped(client)
    assert served.asked == []


def test_too_much_input_is_dropped_before_its_end(served: Served) -> None:
    client = served.connect(b"with.Input dom0\0")
    with pytest.raises(ConnectionError):
        served.send(client, b"x" * (limits.REPORT_MAX + (1 << 20)))
    assert served.asked == []


def test_one_that_does_not_read_costs_nobody_else_and_is_dropped_in_time(served: Served) -> None:
    idle, deaf = served.connect(), served.connect(b"big dom0\0")
    served.until(lambda: len(served.asked) == 1)
    assert served.read(served.connect(b"other dom0\0")) == b"other got 0\n"
    due = served.requests.due
    assert due is not None
    assert due <= time.monotonic() + CALL_SECONDS
    served.requests.tend(time.monotonic() + CALL_SECONDS + 1)
    assert served.requests.due is None
    assert served.is_dropped(idle)
    assert len(served.read(deaf)) < len(BIG)


def test_a_long_answer_arrives_whole(served: Served) -> None:
    assert served.read(served.connect(b"big dom0\0")) == BIG.encode()


def test_many_idle_callers_keep_nobody_out(served: Served) -> None:
    idle = [served.connect() for _ in range(CALLS_MAX)]
    served.until(lambda: len(served.selector.get_map()) == CALLS_MAX + 1)
    assert served.read(served.connect(b"other dom0\0")) == b"other got 0\n"
    assert served.is_dropped(idle[0])


def test_only_root_may_ask(served: Served) -> None:
    assert stat.S_IMODE(served.path.stat().st_mode) == 0o600


def test_what_an_agent_before_left_there_is_in_nobodys_way(served: Served, tmp_path: Path) -> None:
    left = tmp_path / "left"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as before:
        before.bind(str(left))
    again = Served(left)
    assert again.read(again.connect(b"some dom0\0")) == b"some got 0\n"
    again.close()
    assert served.requests.due is None


def test_the_agent_does_without_where_there_is_no_place(tmp_path: Path) -> None:
    missing = Served(tmp_path / "missing" / "sock")
    assert missing.requests.due is None
    missing.close()
