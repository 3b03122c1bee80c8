# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The lines of status: how each forward fares, and what is said about it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portfwd.api.status import Doors
from portfwd.client.forward_state import RuleStatus, State
from portfwd.client.text.sentences import clients_short, told
from portfwd.client.text.tables import rule_text, state_text
from portfwd.gui.state.overview import summary
from portfwd.model.forward import parse_forward
from portfwd.wire.errors import RefusedError
from tests.api.reading import read_status
from tests.client.dom0 import Dom0

NOW = 1_800_000_000.0
WEB = "action=forward forwardtype=external proto=tcp srcports=443-443 dstports=8443-8443"
PROBLEM = "problem reason={} text='sys-net' says why"


def fare(rule: str = WEB, **dom0: object) -> RuleStatus:
    world = Dom0(**dom0)  # type: ignore[arg-type]
    world.forwards["work"] = f"{rule}\n"
    (status,) = read_status(world.status("work"))
    return status


@pytest.mark.parametrize(
    ("states", "listening", "state", "fault"),
    [
        ({}, "yes", State.OPEN, None),
        ({}, "unknown", State.SERVER_UNKNOWN, ("work", "server-unknown")),
        ({}, "no", State.NO_SERVER, ("work", "no-server")),
        ({}, "local", State.LOCAL_ONLY, ("work", "local-only")),
        ({"sys-net": "planned"}, "yes", State.PENDING, ("sys-net", "planned")),
        ({"work": "written", "sys-firewall": "incomplete"}, "yes", State.PENDING, ("sys-firewall", "incomplete")),
        ({"sys-net": "no-route", "work": "written"}, "yes", State.PENDING, ("sys-net", "no-route")),
        ({"sys-net": "not-forwarding"}, "yes", State.PENDING, ("sys-net", "not-forwarding")),
        ({"sys-firewall": "unknown"}, "yes", State.UNKNOWN, ("sys-firewall", "unknown")),
        ({"sys-firewall": "unclear"}, "yes", State.UNCLEAR, ("sys-firewall", "unclear")),
        ({"sys-net": "occupied", "work": "failed"}, "yes", State.PROBLEM, ("sys-net", "occupied")),
        ({"work": "no-base-firewall"}, "no", State.PROBLEM, ("work", "no-base-firewall")),
        ({"sys-firewall": PROBLEM.format("halted")}, "yes", State.PROBLEM, ("sys-firewall", "halted")),
        ({"sys-net": PROBLEM.format("something-new")}, "yes", State.PROBLEM, ("sys-net", "something-new")),
    ],
)
def test_one_word_for_a_forward_and_the_first_hop_in_the_way(
    states: dict[str, str], listening: str, state: State, fault: tuple[str, str] | None
) -> None:
    status = fare(states=states, listening=listening)
    assert status.state is state
    assert (status.fault and (status.fault.hop, status.fault.reason)) == fault
    assert status.state.passes == (not states)


def test_a_paused_forward_is_paused() -> None:
    assert fare(f"{WEB} enabled=no").state is State.PAUSED


def test_a_forward_of_which_no_hop_is_told_is_not_open() -> None:
    text = Dom0(forwards={"work": f"{WEB}\n"}).status("work").splitlines()[0]
    (status,) = read_status(text)
    assert status.state is State.PENDING


def test_a_name_with_addresses_of_one_family_is_healthy_and_one_without_any_is_not() -> None:
    rule = f"{WEB} srchost=laptop.lan"
    lines = Dom0(forwards={"work": f"{rule}\n"}, families=(4, 6)).status("work").splitlines()
    half = [line.replace("state=applied", "state=unresolved") if "family=6" in line else line for line in lines]
    none = [line.replace("state=applied", "state=unresolved") for line in lines]
    assert read_status("\n".join(half))[0].state is State.OPEN
    assert read_status("\n".join(none))[0].state is State.PROBLEM


def test_open_for_one_protocol_only_is_not_called_open() -> None:
    both = WEB.replace("proto=tcp ", "")
    lines = Dom0(forwards={"work": f"{both}\n"}).status("work").splitlines()
    cut = [line.replace("applied", "occupied") if "hop=sys-net" in line and "udp" in line else line for line in lines]
    (status,) = read_status("\n".join(cut))
    assert status.state is State.PARTLY
    assert not status.state.passes
    # A server that speaks one of them is enough.
    deaf = [line.replace("listening=yes", "listening=no") if "udp" in line else line for line in lines]
    assert read_status("\n".join(deaf))[0].state is State.OPEN


def test_the_addresses_are_those_that_the_clients_can_use() -> None:
    def places(rule: str, **dom0: object) -> list[str]:
        return [str(address) for address in fare(rule, **dom0).addresses]

    assert places(WEB) == ["192.168.1.10", "192.168.77.10"]
    assert places(WEB, families=(4, 6)) == ["192.168.1.10", "192.168.77.10", "2001:db8:1::a"]
    assert places(f"{WEB} srchost=192.168.77.0/28") == ["192.168.77.10"]
    assert places(f"{WEB} srchost=203.0.113.5/32") == ["192.168.1.10", "192.168.77.10"]
    assert places(f"{WEB} srchost=2001:db8::/32") == ["2001:db8:1::a"]
    assert places(WEB.replace("external", "internal")) == ["10.137.0.6"]
    assert places(WEB, uplinks="-") == []
    assert places(f"{WEB} enabled=no") == []


def test_counts_are_summed_and_unknown_where_nobody_tells_them() -> None:
    status = fare(families=(4, 6))
    assert [status.total(count) for count in ("packets", "bytes", "connections")] == [18, 9422, 2]
    # What one hop hands on comes in at the next.
    assert status.total("hits") == 24
    assert status.last == 3
    text = Dom0(forwards={"work": f"{WEB}\n"}).status("work")
    silent = text.replace("bytes=4711", "bytes=-").replace("connections=1", "connections=-").replace("last=3", "last=-")
    (status,) = read_status(silent)
    assert (status.total("bytes"), status.total("connections"), status.last) == (None, None, None)


def test_siblings_that_may_not_go_out_are_told() -> None:
    world = Dom0(forwards={"work": WEB.replace("external", "internal") + "\n"})
    text = world.status("work")
    rule = text.split(" ")[1]
    (status,) = read_status(f"{text}{rule} sibling=personal outbound=refused\n{rule} sibling=dmz outbound=partly\n")
    assert status.state is State.OPEN
    assert status.siblings == {"personal": "refused", "dmz": "partly"}
    assert "personal: its own firewall rules keep it out\n" in rule_text(status, NOW, colour=False, width=None)
    (status,) = read_status(f"{text}{rule} sibling=personal outbound=maybe\n")
    assert status.siblings == {"personal": "unknown"}, "a word of a newer dom0"


def test_f8_words_of_a_newer_dom0_are_passed_over() -> None:
    """Mistake: one new word and the whole listing fails."""
    text = Dom0(forwards={"work": f"{WEB}\n"}).status("work")
    rule = text.split(" ")[1]
    more = text.replace("state=applied", "peers=3 state=applied") + f"{rule} weather=fine\nmoon=full text=and round\n"
    assert read_status(more) == read_status(text)
    (status,) = read_status(text.replace("state=applied", "state=splendid", 1))
    assert (status.state, status.doors, status.silent) == (State.UNCLEAR, Doors.UNKNOWN, ("sys-net",))
    (status,) = read_status(text.replace("listening=yes", "listening=partly"))
    assert status.state is State.SERVER_UNKNOWN


@pytest.mark.parametrize(
    ("states", "doors", "silent"),
    [
        ({}, Doors.OPEN, ()),
        ({"sys-net": "written", "work": "unknown"}, Doors.UNKNOWN, ("sys-net", "work")),
        ({"sys-net": "occupied", "work": "unknown"}, Doors.SHUT, ()),
        ({"work": "failed"}, Doors.UNKNOWN, ("work",)),
        ({"sys-net": "no-route", "sys-firewall": "not-forwarding"}, Doors.UNKNOWN, ()),
        ({"sys-net": "no-route", "sys-firewall": "occupied"}, Doors.SHUT, ()),
    ],
)
def test_f8_open_shut_and_not_known_are_three_things(
    states: dict[str, str], doors: Doors, silent: tuple[str, ...]
) -> None:
    status = fare(states=states)
    assert (status.doors, status.silent) == (doors, silent)


def test_f8_a_paused_rule_that_may_still_be_open_is_told_so() -> None:
    text = Dom0(forwards={"work": f"{WEB} enabled=no\n"}).status("work")
    rule = text.split(" ")[1]
    (status,) = read_status(f"{text}{rule} doors=unknown server=unknown silent=sys-net\n")
    assert status.doors is Doors.UNKNOWN
    assert "sys-net has not confirmed it: the port may stay open" in told(status, NOW)
    assert state_text(status) == "paused (sys-net: not confirmed)"
    assert str(summary([status])) == "1 may be open (not known)"
    (status,) = read_status(f"{text}{rule} doors=shut server=unknown\n")
    assert str(summary([status])) == "No port is open"


def test_an_address_that_waits_for_a_restart_is_in_the_way() -> None:
    status = fare(states={"work": "restart-needed"})
    assert status.state is State.PROBLEM
    assert "work still has the address that it was started with; restart work" in told(status, NOW)


GOOD = Dom0(forwards={"work": f"{WEB}\n"}, families=(4, 6)).status("work")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("state=applied", "state=applied state=applied"),
        ("state=applied", "state=\x1b[31m"),
        ("state=applied", ""),
        ("listening=yes", "listening=\x1b[31m"),
        ("hits=12", "hits=-12"),
        ("hits=12", "hits=" + "9" * 30),
        ("hits=12", "hits=0x12"),
        ("family=4", "family=5"),
        ("family=4", "family="),
        ("hop=work", "hop=../work"),
        ("to=10.137.0.6", "to=10.137.0.6; reboot"),
        ("number=0", "number=1000000000000000000000"),
        ("number=0", "number=x"),
        ("dstports=8443-8443", "dstports=8444-8444"),
        ("uplinks=192", "uplinks=999"),
        ("rule=", "rule=0"),
    ],
)
def test_a_line_that_is_not_so_is_refused(old: str, new: str) -> None:
    assert old in GOOD
    with pytest.raises(RefusedError) as caught:
        read_status(GOOD.replace(old, new, 1))
    assert str(caught.value).isprintable()


def test_a_rule_told_twice_and_a_line_without_its_rule_are_refused() -> None:
    with pytest.raises(RefusedError):
        read_status(GOOD + GOOD)
    with pytest.raises(RefusedError):
        read_status(GOOD.split("\n", 1)[1])


def test_f2_words_and_lines_of_a_newer_dom0_are_passed_over() -> None:
    """Mistake: one new word in one line, and the whole listing is an error in every older client."""
    newer = GOOD.replace("state=applied", "state=applied peers=3").replace("uplinks=192", "cards=2 uplinks=192", 1)
    newer += "elsewhere=sys-net reason=new\nnew=1 text=a sentence = all of it\n"
    assert read_status(newer) == read_status(GOOD)
    for broken in ("peers", "peers=3 peers=4", "Peers=3", "=3"):
        with pytest.raises(RefusedError):
            read_status(GOOD.replace("state=applied", f"state=applied {broken}", 1))


@given(st.integers(0, len(GOOD)), st.integers(0, 60), st.text(max_size=20))
def test_whatever_stands_there_only_a_refusal_comes_out(at: int, gone: int, put: str) -> None:
    try:
        read_status(GOOD[:at] + put + GOOD[at + gone :])
    except RefusedError as error:
        assert str(error).isprintable()


# ruff: noqa: E501 - a sentence is a line
SAYS = [
    ("", {}, "LAN hosts can reach work's port 8443 at tcp 192.168.1.10:443 or 192.168.77.10:443"),
    ("expire=1800007200", {}, "LAN hosts can reach work's port 8443 at tcp 192.168.1.10:443 or 192.168.77.10:443 until 10:00"),
    ("srchost=any expire=reboot", {"uplinks": "-"}, "Anyone can reach work's port 8443 at tcp port 443 of sys-net until the computer restarts"),
    ("srchost=0.0.0.0/0", {"uplinks": "-"}, "Anyone with IPv4 can reach work's port 8443 at tcp port 443 of sys-net"),
    ("srchost=192.168.1.20 expire=shutdown", {}, "192.168.1.20 can reach work's port 8443 at tcp 192.168.1.10:443 until work shuts down"),
    ("srchost=192.168.77.0/24 expire=1800086400", {}, "Hosts in 192.168.77.0/24 can reach work's port 8443 at tcp 192.168.77.10:443 until tomorrow 08:00"),
    ("srchost=laptop.lan expire=1800864000", {"uplinks": "192.168.1.10/24"}, "laptop.lan can reach work's port 8443 at tcp 192.168.1.10:443 until 2027-01-25 08:00"),
    ("srchost=2001:db8::/32", {}, "Hosts in 2001:db8::/32 can reach work's port 8443 at tcp [2001:db8:1::a]:443"),
    ("enabled=no", {}, "work's port 8443 is not open: the forward is paused"),
    ("", {"listening": "no", "uplinks": "192.168.1.10/24"}, "LAN hosts can reach work's port 8443 at tcp 192.168.1.10:443, but nothing listens on port 8443 in work; start the server in work"),
    ("", {"listening": "local", "uplinks": "192.168.1.10/24"}, "LAN hosts can reach work's port 8443 at tcp 192.168.1.10:443, but the server in work listens on 127.0.0.1 only; let it listen on 0.0.0.0 or on the address of work"),
    ("", {"states": {"sys-firewall": PROBLEM.format("halted")}}, "work's port 8443 is not open: sys-firewall is not running; start sys-firewall"),
    ("", {"states": {"work": PROBLEM.format("no-agent")}}, "work's port 8443 is not open: work has no port forwarding agent; install qubes-port-forwarding-agent in its template and restart work"),
    ("", {"states": {"sys-net": PROBLEM.format("conflict")}}, "work's port 8443 is not open: sys-net says why; choose another port (--pick-port), or remove the other one"),
    ("", {"states": {"sys-net": "written"}}, "work's port 8443 is not open yet: sys-net has not answered yet; look at its service: systemctl status qubes-port-forward in sys-net"),
    ("", {"states": {"sys-net": "no-route"}}, "work's port 8443 is not open yet: sys-net has no interface to the qube behind it; if that lasts, set the netvm of that qube anew, or restart it"),
    ("", {"states": {"sys-net": "not-forwarding"}}, "work's port 8443 is not open yet: sys-net does not forward packets; if that lasts, restart sys-net"),
    ("", {"states": {"sys-net": "unknown"}}, "work's port 8443 may be open or not: sys-net has not answered since its last change; look at its service: systemctl status qubes-port-forward in sys-net"),
    ("", {"listening": "unknown", "uplinks": "192.168.1.10/24"}, "LAN hosts can reach work's port 8443 at tcp 192.168.1.10:443, but whether anything listens on port 8443 is not known, since work does not tell; look at its service: systemctl status qubes-port-forward in work"),
    ("", {"states": {"sys-net": "occupied"}}, "work's port 8443 is not open: sys-net itself uses port 443; choose another port (--pick-port), or stop that program in sys-net"),
]  # fmt: skip


@pytest.mark.usefixtures("utc")
@pytest.mark.parametrize(("more", "dom0", "sentence"), SAYS)
def test_the_sentence_says_all_of_it(more: str, dom0: dict[str, object], sentence: str) -> None:
    assert told(fare(f"{WEB} {more}".rstrip(), **dom0), NOW) == sentence


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        ("external srcports=53-53 dstports=5353-5353", "LAN hosts can reach work's port 5353 at tcp and udp 192.168.1.10:53"),
        ("external proto=udp srcports=5000-5010 dstports=8000-8010", "LAN hosts can reach work's ports 8000-8010 at udp 192.168.1.10:5000-5010"),
        ("internal proto=tcp srcports=22-22 dstports=22-22", "Qubes behind sys-firewall can reach work's port 22 at tcp 10.137.0.6:22"),
        ("internal proto=tcp srcports=22-22 dstports=22-22 srchost=any", "Everyone behind sys-firewall, tunnels included, can reach work's port 22 at tcp 10.137.0.6:22"),
        ("internal proto=tcp srcports=22-22 dstports=22-22 srchost=10.8.0.0/24", "Qubes in 10.8.0.0/24 can reach work's port 22 at tcp 10.137.0.6:22"),
    ],
)  # fmt: skip
def test_the_sentence_of_every_kind_of_rule(rule: str, sentence: str) -> None:
    assert told(fare(f"action=forward forwardtype={rule}", uplinks="192.168.1.10/24"), NOW) == sentence


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("192.168.1.20", "192.168.1.20"),
        ("192.168.0.0/16", "192.168.0.0/16"),
        ("2001:db8::20", "2001:db8::20"),
        ("2001:db8::/32", "2001:db8::/32"),
        ("example.com", "example.com"),
        ("any", "any"),
    ],
)
def test_who_may_connect_is_told_as_it_would_be_typed(source: str, shown: str) -> None:
    rule = parse_forward(f"action=forward forwardtype=external srcports=1 srchost={source}")
    assert clients_short(rule) == shown
