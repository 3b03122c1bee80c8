# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""How long a change of net qube takes, by packets from the laptop, and whether others notice it.

The qube work has 20 forwards and is switched to and fro between two net qubes. The laptop knocks at all of them all the
time, from the same UDP ports; a switch has arrived when each has answered a datagram that was sent after it. Beside
that, numbered datagrams and the numbered lines of a TCP connection run from the laptop through each of both net
qubes to other qubes.
"""

import dataclasses
import json
import os
import select
import socket
import time
from collections.abc import Callable

from tests.oracle.house import House

COUNT = 20
FIRST = 2000
BYSTANDERS = {"personal": 3000, "media": 3001}
"""The qubes behind each of the two net qubes, and their entrance ports."""
RATE = 200.0
"""Numbered datagrams a second, to each."""
_ENTRANCE = "192.168.1.10"
_KNOCK = 0.01
"""Seconds between two knocks at the same forward."""
_DEADLINE = 10.0
_STRAGGLERS = 1.0


@dataclasses.dataclass
class Switches:
    """Seconds from the return of the call that switched, and from its begin, until all forwards answered; losses."""

    after: list[float]
    whole: list[float]
    sent: dict[str, int]
    lost: dict[str, int]
    lines: dict[str, int]
    """Sent over TCP."""
    lines_lost: dict[str, int]


def measure(house: House, count: int) -> Switches:
    """Switch so many times."""
    rules = (f"proto=udp srcports={FIRST + i} dstports={house.targets[i % len(house.targets)]}" for i in range(COUNT))
    house.set_forwards("work", "".join(f"action=forward forwardtype=external {rule}\n" for rule in rules))
    for qube, port in BYSTANDERS.items():
        house.set_forwards(qube, f"action=forward forwardtype=external srcports={port} dstports=1100\n")
    house.lab.converge()
    stop_read, stop_write = os.pipe()
    told_read, told_write = os.pipe()
    stream = house.lab.start_call("laptop", _stream, stop_read, told_write, list(BYSTANDERS.values()))
    os.close(told_write)
    result = Switches([], [], {}, {}, {}, {})
    try:
        for number in range(count):
            _switch(house, ("sys-spare", "sys-firewall")[number % 2], result)
    finally:
        # Written, not closed: processes that were forked meanwhile hold it, too.
        os.write(stop_write, b"!")
        os.close(stop_write)
        with os.fdopen(told_read) as told:
            numbers = json.load(told)
        stream.wait()
        os.close(stop_read)
    for qube, port in BYSTANDERS.items():
        result.sent[qube], result.lost[qube] = numbers[str(port)]
        result.lines[qube], result.lines_lost[qube] = numbers[f"tcp {port}"]
    return result


def _switch(house: House, netvm: str, result: Switches) -> None:
    # One process in the laptop for each switch: it begins to knock before the switch, and is told when that is over.
    over_read, over_write = os.pipe()
    told_read, told_write = os.pipe()
    call = house.lab.start_call("laptop", _knock, over_read, told_write)
    os.close(told_write)
    began = time.monotonic()
    house.lab.set("work", "netvm", netvm)
    over = time.monotonic()
    os.write(over_write, b"!")
    with os.fdopen(told_read) as told:
        answered: float | None = json.load(told)
    call.wait()
    os.close(over_read)
    os.close(over_write)
    if answered is None:
        raise AssertionError(f"not all forwards answered {_DEADLINE} s after the switch to {netvm}")
    result.after.append(answered - over)
    result.whole.append(answered - began)


def _knock(over: int, tell: int) -> None:
    """In the laptop: tell when (monotonic) all forwards had answered a knock that came after `over` was readable."""
    clients = {}
    for port in range(FIRST, FIRST + COUNT):
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        # The same at every switch, so that the connections of before are in the way.
        client.bind(("", 20000 + port))
        client.connect((_ENTRANCE, port))
        clients[client] = False
    switched = False
    deadline = time.monotonic() + _DEADLINE + 10
    while time.monotonic() < deadline and not all(clients.values()):
        switched = switched or bool(select.select([over], [], [], 0)[0])
        word = b"after" if switched else b"before"
        for client in (client for client, done in clients.items() if not done):
            _try(lambda client=client, word=word: client.send(word))  # type: ignore[misc]
        again = time.monotonic() + _KNOCK
        while (left := again - time.monotonic()) > 0:
            for client in select.select(list(clients), [], [], left)[0]:
                answer = _try(lambda client=client: client.recv(2000)) or b""  # type: ignore[misc]
                clients[client] = clients[client] or answer.strip().endswith(b"after")
            if all(clients.values()):
                break
    with os.fdopen(tell, "w") as told:
        json.dump(time.monotonic() if all(clients.values()) else None, told)


def _stream(stop: int, tell: int, ports: list[int]) -> None:
    """In the laptop: send numbered words until `stop` is readable; tell how many were sent and are missing."""
    lines = {port: socket.create_connection((_ENTRANCE, port), _DEADLINE) for port in ports}
    answered: dict[int, bytes] = dict.fromkeys(ports, b"")
    clients = {port: socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) for port in ports}
    for port, client in clients.items():
        client.connect((_ENTRANCE, port))
    missing: dict[int, set[bytes]] = {port: set() for port in ports}
    number, due, end = 0, time.monotonic(), 0.0
    while not end or (time.monotonic() < end and any(missing.values())):
        if not end and time.monotonic() >= due:
            due += 1 / RATE
            number += 1
            for port, client in clients.items():
                word = b"%d" % number
                missing[port].add(word)
                _try(lambda client=client, word=word: client.send(word))  # type: ignore[misc]
                _try(lambda line=lines[port], word=word: line.sendall(word + b"\n"))  # type: ignore[misc]
        waiting = [stop] if not end else []
        sources: list[socket.socket | int] = [*clients.values(), *lines.values(), *waiting]
        ready = select.select(sources, [], [], max(0.0, min(due - time.monotonic(), 0.1)))[0]
        if stop in ready and not end:
            end = time.monotonic() + _STRAGGLERS
        for port, client in clients.items():
            if client in ready and (answer := _try(lambda client=client: client.recv(2000))):  # type: ignore[misc]
                missing[port].discard(answer.split()[-1])
        for port, line in lines.items():
            if line in ready:
                answered[port] += _try(lambda line=line: line.recv(65536)) or b""  # type: ignore[misc]
    result: dict[str, tuple[int, int]] = {str(port): (number, len(missing[port])) for port in ports}
    for port, line in lines.items():
        line.settimeout(_STRAGGLERS)
        while answered[port].count(b"\n") < number and (more := _try(lambda line=line: line.recv(65536))):  # type: ignore[misc]
            answered[port] += more
        # What comes over TCP comes in order, so the first word that is not the next one ends what was answered.
        words = [answer.split()[-1] for answer in answered[port].splitlines()]
        right = next((i for i, word in enumerate(words) if word != b"%d" % (i + 1)), len(words))
        result[f"tcp {port}"] = number, number - right
    with os.fdopen(tell, "w") as told:
        json.dump(result, told)


def _try(function: Callable[[], object]) -> bytes | None:
    try:
        result = function()
    except OSError:
        return None
    return result if isinstance(result, bytes) else None
