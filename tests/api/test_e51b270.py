# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Neighbours of another age: texts of e51b270, what its client makes of ours, what its agent makes of new kinds."""

import json
from pathlib import Path

import pytest

from portfwd.agent.desired import read_desired
from portfwd.api.connections import parse_connections
from portfwd.api.diagnosis import Cause, parse_check
from portfwd.api.forwards import Forwards, format_forwards
from portfwd.api.frames import ErrorFrame, parse_answer
from portfwd.api.hops import parse_hops
from portfwd.api.plan import parse_plan
from portfwd.api.status import Doors
from portfwd.client.forward_state import State
from portfwd.wire import limits
from tests.api import samples
from tests.api.reading import read_status
from tests.fakes.qubesdb import FakeQubesDB

HERE = Path(__file__).parent / "e51b270"
CLIENT = json.loads((HERE / "client.json").read_text())
AGENT = json.loads((HERE / "agent.json").read_text())


def printed(name: str) -> str:
    return (HERE / "printed" / f"{name}.txt").read_bytes().decode("ascii")


@pytest.mark.parametrize(
    ("name", "states"),
    [
        ("status-written", [(State.PENDING, Doors.UNKNOWN)]),
        ("status-open", [(State.LOCAL_ONLY, Doors.OPEN)]),
        (
            "status-all",
            [(State.LOCAL_ONLY, Doors.OPEN), (State.SERVER_UNKNOWN, Doors.OPEN), (State.PAUSED, Doors.SHUT)],
        ),
        (
            "status-restart-needed",
            [(State.PROBLEM, Doors.SHUT), (State.PROBLEM, Doors.SHUT), (State.PAUSED, Doors.SHUT)],
        ),
        ("status-halted", [(State.PROBLEM, Doors.SHUT), (State.PROBLEM, Doors.SHUT), (State.PAUSED, Doors.SHUT)]),
    ],
)
def test_how_forwards_fare_is_read_from_an_old_dom0(name: str, states: list[tuple[State, Doors]]) -> None:
    assert [(status.state, status.doors) for status in read_status(printed(name))] == states


def test_all_else_is_read_from_an_old_dom0() -> None:
    text = printed("forwards")
    assert format_forwards(Forwards.parse(text).rules) == text
    assert [one.confirmed for one in parse_hops(printed("hops"))] == [True] * 3
    plan = parse_plan(printed("plan"))
    assert [len(path.hops) for path in plan.paths.values()] == [3]
    assert {hop: preview and preview.more for hop, preview in plan.elements.items()} == {
        "sys-net": None,
        "sys-firewall": None,
        "work": 2,
    }
    clients = parse_connections(printed("connections"))
    assert ([client.peer for client in clients.told], clients.more) == (["192.168.1.20:50123"], 5)


@pytest.mark.parametrize(
    ("name", "opens", "cause"),
    [("check-gone", False, Cause.GONE), ("check-halted", False, Cause.HALTED), ("check-open", None, None)],
)
def test_a_diagnosis_is_read_from_an_old_dom0(name: str, opens: bool | None, cause: Cause | None) -> None:
    diagnosis = parse_check(printed(name))
    assert (diagnosis.opens, diagnosis.fault and diagnosis.fault.cause) == (opens, cause)


@pytest.mark.parametrize("name", ["error-taken", "error-changed"])
def test_errors_of_an_old_dom0_have_no_word(name: str) -> None:
    error = parse_answer(printed(name).encode())
    assert isinstance(error, ErrorFrame)
    assert error.kind == "QubesValueError"


def test_what_an_old_client_makes_of_todays_answers() -> None:
    """It reads all but the status, and shows the text of an error whose word it does not know (docs/formats.md)."""
    assert {name: text for name, (text, _) in CLIENT.items()} == samples.texts(), "python -m tests.api.take_e51b270"
    assert {name: said for name, (_, said) in CLIENT.items()} == {
        "forwards": "read",
        "status": "refused: 'doors=open' is not a word of a status line",
        "status-of-silent-qubes": "refused: 'doors=unknown' is not a word of a status line",
        "plan": "read",
        "hops": "read",
        "connections": "read",
        "check": "read",
        "error": "ForwardsTakenError: srcports '443' is taken at 'sys-net' by work",
        "events": "read",
    }


def test_an_old_agent_refuses_new_kinds_and_words_one_by_one() -> None:
    known = {entry.key for _, entry in samples.ENTRIES[:1]} | {samples.OTHER}
    assert AGENT["given"] == samples.entries(), "python -m tests.api.take_e51b270"
    assert AGENT["applied"] == {
        "complete": True,
        "entries": sorted(known),
        "refused": sorted(samples.entries().keys() - known),
    }


def test_todays_agent_refuses_new_kinds_and_words_one_by_one() -> None:
    database = FakeQubesDB().connect()
    for key, value in samples.entries().items():
        database.write(limits.ENTRIES + key, value)
    database.write(limits.BASE, AGENT["commit"])
    desired = read_desired(database)
    assert AGENT["applied"] == {
        "complete": desired.complete,
        "entries": sorted(entry.key for entry in desired.entries),
        "refused": sorted(desired.refused),
    }
