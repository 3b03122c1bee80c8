# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""A busy forward is never called anything but open: real requests pass while its status is asked again and again."""

import json
import os
import select
import time

from lab import probes
from portfwd.client.forward_state import RuleStatus, State, heard
from portfwd.wire.answers.report import Listening
from tests.api.reading import read_status
from tests.chain.world import LAPTOP, LAPTOP6, SYS_NET, SYS_NET6, World, says

ENTRANCE, PORT = 7431, 8443
WEB = f"forwardtype=external proto=tcp srcports={ENTRANCE} dstports={PORT}"
REQUESTS = 210
PER_SECOND = 1000 / 60
LOOKS_MIN = 5
LOOK_PAUSE = 0.05
"""Seconds between two looks at the status, at least."""


def make_requests(pipe: int) -> None:
    """In a client: one request after the other, at the pace of PER_SECOND; then tell what was answered to each."""
    answers = []
    with os.fdopen(pipe, "w") as told:
        begin = time.monotonic()
        for number in range(REQUESTS):
            # The pace is what is tested. One that was slow is made up for, so all together take no longer.
            time.sleep(max(0.0, begin + number / PER_SECOND - time.monotonic()))
            answers.append(probes.ask_tcp((SYS_NET, SYS_NET6)[number % 2], ENTRANCE, f"request {number}"))
        json.dump(answers, told)


def look(world: World) -> RuleStatus:
    (status,) = read_status(world.lab.api("work", "admin.vm.firewall.Get", "forward.status"))
    return status


def test_a_forward_in_use_is_open_at_every_look(world: World) -> None:
    world.add("work", WEB)
    first = look(world)
    assert (first.state, first.total("hits")) == (State.OPEN, 0)
    looks = [first]
    read_end, write_end = os.pipe()
    client = world.lab.start_call("laptop", make_requests, write_end)
    os.close(write_end)
    try:
        with os.fdopen(read_end) as told:
            # It ends: the client's requests are counted, and each is bounded in time.
            while not select.select([told], [], [], LOOK_PAUSE)[0]:
                looks.append(look(world))
            answers = json.load(told)
    finally:
        assert client.wait() == 0
    looks.append(look(world))
    assert len(answers) == REQUESTS
    clients = (LAPTOP, LAPTOP6)
    for number, answer in enumerate(answers):
        assert answer.startswith(f"{says('work', PORT, clients[number % 2])} port "), (number, answer)
        assert answer.endswith(f": request {number}"), (number, answer)
    assert len(looks) >= LOOKS_MIN
    assert {status.state for status in looks} == {State.OPEN}
    assert {heard(status.hops) for status in looks} == {Listening.YES}
    assert {status.fault for status in looks} == {None}
    for name in ("hits", "packets", "bytes"):
        counts = [status.total(name) for status in looks]
        # None would be a qube that did not answer in time, though it had nothing else to do.
        told_counts = [count for count in counts if count is not None]
        assert told_counts == counts
        assert told_counts == sorted(told_counts)
    hits = [status.total("hits") for status in looks]
    assert hits[-1] == REQUESTS
    assert len(set(hits)) >= LOOKS_MIN, "the looks were spread over the requests"
