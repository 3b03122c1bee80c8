# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""A dom0 that says more than this client knows: a word in every line, and lines of an unknown kind between them."""

from dataclasses import replace

import pytest

from lab.qubesd.api.frames import format_event
from portfwd.api.forwards import Forwards
from portfwd.api.frames import Event
from portfwd.api.lines import TAKE_THE_REST
from portfwd.api.status import Doors, parse_status
from portfwd.client.commands import qvm_port_forward
from portfwd.client.events import events
from portfwd.client.forward_state import State
from portfwd.gui.state.draft import Place, check, draft_of
from portfwd.gui.state.overview import Column, Overview, cell, summary
from portfwd.model.forward import ForwardRule
from portfwd.model.words import Comment
from tests.api import samples
from tests.api.reading import read_status
from tests.client.dom0 import CONNECTION, Dom0
from tests.client.test_events import Pieces

WEB = "action=forward forwardtype=external proto=tcp srcports=443-443 dstports=8443-8443 comment=the web"
DNS = "action=forward forwardtype=internal srcports=53-53 dstports=53-53"
NOW = 1_800_000_000.0
WORD = "weather=fine"
LINE = "moon=full text=and = round"


def with_word(line: str) -> str:
    """One word more in the line, and in the rule that its rest is; which is all that text and elements are not."""
    words = line.split(" ")
    places = [n for n, word in enumerate(words) if word.partition("=")[0] in TAKE_THE_REST]
    place = places[0] if places and places[0] else 1
    words.insert(place, WORD)
    text = " ".join(words)
    return text.replace("action=forward ", f"action=forward {WORD} ") if "qube=" in text[:5] else text


def newer(text: str) -> str:
    lines = [with_word(line) for line in text.splitlines()]
    # A list of rules has rules only: what is no rule would have to be given back.
    more = [] if text.startswith("action=") else [LINE]
    return "".join(f"{line}\n" for line in [*more, *(both for line in lines for both in (line, *more))])


class NewerDom0(Dom0):
    """`given`: the payloads of Set, as they come."""

    given: str = ""

    def call(self, dest: str, method: str, arg: str = "", payload: bytes = b"") -> bytes:
        if arg.startswith("forward"):
            self.given += payload.decode() if method.endswith(".Set") else ""
            bare = payload.replace(f" {WORD}".encode(), b"")
            if arg.startswith("forward.") and len(arg) == len("forward.") + 32:
                assert arg == f"forward.{Forwards.parse(newer(self.forwards[dest])).token}"
                arg = f"forward.{Forwards.parse(self.forwards[dest]).token}"
            return newer(super().call(dest, method, arg, bare).decode()).encode()
        return super().call(dest, method, arg, payload)


COMMANDS = [
    "list",
    "list --json",
    "list work",
    "show work 443:8443",
    "show work 443:8443 --json",
    "check work 443:8443",
    "plan work",
    "plan work remove 53",
    "add work 80/tcp",
    "pause work 443:8443",
    "edit work 443:8443 --comment other",
    "remove work 53",
    "kill work 192.168.1.20:50123",
]


@pytest.mark.usefixtures("utc", "clock")
@pytest.mark.parametrize("words", COMMANDS)
def test_todays_commands_work_with_a_newer_dom0(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Mistake: one new word in one line, and the whole listing is an error in every older client."""
    said = []
    for kind in (Dom0, NewerDom0):
        dom0 = kind(uplinks="192.168.1.10/24", check=samples.CHECK, elements="hop=work element=ip x { 1 }\n")
        rule = ForwardRule.id(read_status(dom0_with(dom0))[0].rule, samples.WORK)
        dom0.connections = f"rule={rule} {CONNECTION}\nmore=5\n"
        code = qvm_port_forward.main(words.split(), dom0)
        captured = capsys.readouterr()
        said.append((code, captured.out.replace(f" {WORD}", ""), captured.err))
    assert said[0] == said[1]
    assert said[0][0] == (4 if words.startswith("check") else 0)


@pytest.mark.usefixtures("utc", "clock")
@pytest.mark.parametrize(
    "words", ["add work 80/tcp", "pause work 443:8443", "edit work 53 --comment x", "remove work 53"]
)
def test_words_that_are_not_known_are_given_back_with_their_rule(words: str) -> None:
    """Mistake: an older client saves a list, and what a newer one has asked for is gone."""
    dom0 = NewerDom0()
    dom0_with(dom0)
    qvm_port_forward.main(words.split(), dom0)
    rules = [rule for rule in dom0.given.splitlines() if rule.startswith("action=") and "srcports=80-80" not in rule]
    assert len(rules) == (1 if "remove" in words else 2)
    assert all(WORD in rule for rule in rules)


def test_the_dialog_keeps_words_that_are_not_known() -> None:
    (rule,) = Forwards.parse(newer(f"{WEB}\n")).rules
    checked = check(replace(draft_of(rule), comment="other"), Place(samples.WORK), NOW, lambda _: {})
    assert checked.rule == replace(rule, comment=Comment("other"))
    assert WORD in str(checked.rule)


def dom0_with(dom0: Dom0) -> str:
    dom0.forwards["work"] = f"{WEB}\n{DNS}\n"
    return dom0.status("work")


def test_the_windows_show_the_same() -> None:
    overview = Overview()
    overview.update(read_status(samples.STATUS))
    told = [[cell(status, column, NOW) for column in Column] for status in overview.statuses]
    overview.update(read_status(newer(samples.STATUS)))
    assert [[cell(status, column, NOW) for column in Column] for status in overview.statuses] == told
    assert str(summary(overview.statuses)) == str(summary(read_status(samples.STATUS)))


@pytest.mark.parametrize("name", ["status", "status-of-silent-qubes"])
def test_what_a_newer_dom0_says_of_qubes_and_entrances_is_read(name: str) -> None:
    text = samples.texts()[name]
    known, found = parse_status(text), parse_status(newer(text))
    bare = tuple(replace(one, rule=replace(one.rule, further=())) for one in found.forwards)
    assert replace(found, forwards=bare) == known


def test_new_events_and_new_details_end_no_stream() -> None:
    more = format_event(Event("work", "weather-changed"), {"weather": "fine", "moon": "full"})
    known = format_event(Event("work", "firewall-changed"), {"weather": "fine"})
    assert [event.name for event in events(Pieces(more + known + more))][1] == "firewall-changed"


RELAY = "kind=relay side=uplink"


@pytest.mark.parametrize("new", ["kind=mirror side=uplink", "kind=relay side=tunnel"])
@pytest.mark.parametrize(
    ("doors", "server", "state"),
    [
        ("open", "yes", State.OPEN),
        ("open", "no", State.NO_SERVER),
        ("unknown", "yes", State.UNCLEAR),
        ("shut", "yes", State.UNCLEAR),
        ("ajar", "yes", State.UNCLEAR),
    ],
)
def test_an_entry_of_a_new_kind_leaves_the_judgement_to_dom0(new: str, doors: str, server: str, state: State) -> None:
    """Mistake: a hop that is not understood is left out, and what remains looks open."""
    text = samples.STATUS.replace(RELAY, new).replace("doors=open server=yes", f"doors={doors} server={server}")
    status = read_status(text)[0]
    assert status.state is state
    assert status.doors is (Doors(doors) if doors in list(Doors) else Doors.UNKNOWN)
    if state is State.UNCLEAR:
        assert status.fault is not None
        assert (status.fault.hop, status.fault.reason) == ("sys-net", "not-understood")


def test_what_is_known_to_be_in_the_way_is_said_beside_what_is_not_understood() -> None:
    text = samples.STATUS.replace(RELAY, "kind=mirror side=uplink").replace("doors=open", "doors=shut")
    text = text.replace(
        "side=inner listen=443-443 source=any to=10.137.0.6 ports=8443-8443 state=applied",
        "side=inner listen=443-443 source=any to=10.137.0.6 ports=8443-8443 state=occupied",
    )
    status = read_status(text)[0]
    assert (status.state, status.fault and status.fault.reason) == (State.PROBLEM, "occupied")
