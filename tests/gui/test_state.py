# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""What the windows show, without a window: changes, history, traffic, the picture of the network."""

import dataclasses
from typing import Any

import pytest

from portfwd.client.forward_state import RuleStatus
from portfwd.client.network import NetworkQube
from portfwd.client.typed.arguments import lookup_service
from portfwd.gui.state.draft import Draft, Reach, check
from portfwd.gui.state.history import History
from portfwd.gui.state.overview import Column, Overview, cell, closely, found_by, key_of, summary, untold_text
from portfwd.gui.state.picture import LAN, lay_out
from portfwd.gui.state.places import place_of
from portfwd.gui.state.traffic import Traffic, line
from portfwd.model.forward import parse_forward
from portfwd.wire.values import QubeName
from tests.api.reading import read_status

NOW = 1_800_000_000.0
WEB = "forwardtype=external proto=tcp srcports=443-443 dstports=8443-8443"


def status(
    words: str = WEB,
    qube: str = "work",
    state: str = "applied",
    counts: str = "",
    hops: tuple[str, ...] = (),
    uplinks: str = "192.168.1.10/24",
    note: str = "",
) -> RuleStatus:
    """Through sys-net and sys-firewall; `state` is the first one's."""
    rule = parse_forward(f"action=forward {words}")
    name = QubeName(qube)
    head = f"qube={name} rule={rule.id(name)} number=0 {rule}"
    door = f"family=4 proto=tcp side=uplink listen={rule.srcports} source=any"
    way = f"{door} kind=relay to=10.0.0.1 ports={rule.dstports}"
    lines = [f"rule={rule.id(name)} hop=sys-net {way} state={state}"]
    lines += [f"rule={rule.id(name)} hop={hop} {way} state=applied" for hop in hops or ("sys-firewall",)]
    lines.append(f"rule={rule.id(name)} hop={name} {door} kind=accept state=applied listening=yes{counts}")
    (found,) = read_status("\n".join((head, *lines, f"entrance=sys-net uplinks={uplinks}{note}")))
    return found


def qube(name: str, netvm: str = "", label: str = "blue") -> NetworkQube:
    return NetworkQube(QubeName(name), label, QubeName(netvm) if netvm else None, True, not name.startswith("w"))


QUBES = (
    qube("sys-net", label="red"),
    qube("sys-firewall", "sys-net", "green"),
    qube("work", "sys-firewall"),
    qube("web", "sys-firewall"),
    qube("vault"),
)


def test_a_look_tells_what_is_new_what_changed_and_what_is_gone() -> None:
    overview = Overview()
    first, other = status(), status(qube="personal")
    assert overview.update([first, other]).added == (first, other)
    broken = status(state="written")
    changes = overview.update([broken], QubeName("work"))
    assert (changes.added, changes.changed, changes.removed) == ((), ((first, broken),), ())
    assert overview.update([], QubeName("personal")).removed == (other,)
    assert overview.statuses == (broken,)


def test_the_log_tells_openings_and_endings_once() -> None:
    overview, history = Overview(), History()
    for told in ([status(state="written")], [status()], [status(counts=" bytes=5")], []):
        history.note(overview.update(told), NOW)
    assert [entry.text for entry in history.lines] == [
        "work's port 8443 is not open yet: sys-net has not answered yet; look at its service: "
        "systemctl status qubes-port-forward in sys-net",
        "LAN hosts can now reach work's port 8443 at tcp 192.168.1.10:443",
        "work's port 8443 is no longer reachable: the forward is removed",
    ]


def test_f26_a_qube_that_tells_nothing_any_more_is_neither_shut_nor_open() -> None:
    overview, history = Overview(), History()
    first, other = status(), status(qube="personal")
    history.note(overview.update([first, other]), NOW)
    untold = {QubeName("personal"): "Request refused"}
    changes = overview.update([first], None, untold)
    assert (changes.removed, changes.untold, overview.statuses) == ((), (other,), (first,))
    (line_,) = history.note(changes, NOW)
    assert line_.text == "personal's port 8443: not told any more, it may be open or not"
    assert str(summary(overview.statuses, untold)) == "1 forward open: 1 to the LAN; 1 qube is not told"
    assert str(summary((), {**untold, QubeName("web"): ""})) == "No port is known to be open; 2 qubes are not told"
    # Others that are gone are gone.
    assert overview.update([], None, untold).removed == (first,)


def test_f26_a_line_names_some_of_the_qubes_that_tell_nothing() -> None:
    untold = {QubeName(f"q{number}"): "no" for number in range(5)}
    assert untold_text(untold) == "Not told: q0 (no), q1 (no), q2 (no) and 2 more"
    assert untold_text({QubeName("a"): "no"}) == "Not told: a (no)"
    assert untold_text({}) == ""


def test_an_expiry_is_told_as_one() -> None:
    overview, history = Overview(), History()
    ends = status(f"{WEB} expire={int(NOW)}")
    history.note(overview.update([ends]), NOW - 60)
    (entry,) = history.note(overview.update([]), NOW)
    assert entry.text == "work's port 8443 is no longer reachable: its time is over"


@pytest.mark.parametrize(
    ("statuses", "text"),
    [
        ([], "No port is open"),
        ([status()], "1 forward open: 1 to the LAN"),
        ([status(), status(f"{WEB} srchost=any")], "2 forwards open: 1 to anyone, 1 to the LAN"),
        ([status(f"{WEB} srchost=0.0.0.0/0")], "1 forward open: 1 to anyone"),
        ([status(f"{WEB} srchost=10.0.0.0/8")], "1 forward open: 1 to chosen addresses"),
        ([status(state="occupied")], "No port is open; 1 not working"),
        ([status(state="failed")], "1 may be open (not known); 1 not working"),
        ([status(), status(state="unknown")], "1 forward open: 1 to the LAN; 1 may be open (not known)"),
        ([status(state="written")], "1 may be open (not known)"),
    ],
)
def test_the_tray_says_how_many_and_to_whom(statuses: list[RuleStatus], text: str) -> None:
    assert str(summary(statuses)) == text


def test_a_search_finds_state_comment_and_net_qube() -> None:
    told = status(f"{WEB} comment=family web")
    for search in ("", "work", "FAMILY 443", "sys-fire open", "192.168.1.10"):
        assert found_by(told, search)
    assert not found_by(told, "family ssh")
    assert cell(told, Column.ENTRANCE, NOW) == "192.168.1.10:443"


def test_f2_the_details_tell_what_the_entrance_leaves_out_of_account() -> None:
    reason = "nothing comes in by wwan0: its kind, wwan, is neither that of a network card nor of a known tunnel"
    sentence, *more = closely(status(note=f" text={reason}"), NOW).split("\n")
    assert sentence == "LAN hosts can reach work's port 8443 at tcp 192.168.1.10:443"
    assert more == [f"Note: sys-net says that {reason}"]
    assert closely(status(), NOW) == sentence


def test_rates_are_between_looks_and_a_restarted_counter_is_no_negative_rate() -> None:
    traffic = Traffic()
    for moment, size in ((0.0, 100), (2.0, 300), (4.0, 50)):
        traffic.look([status(counts=f" bytes={size} packets=1 connections=2")], moment)
    assert traffic.rates(key_of(status())) == (100.0, 0)
    assert line([status(counts=" bytes=1500 packets=1 connections=1")], (100.0,)) == (
        "1 connection open, 1.5kB so far, 100B/s"
    )
    assert line([status()], ()) == "Traffic is not known"
    traffic.look([], 6.0)
    assert traffic.total() == ()


def test_the_picture_has_net_qubes_in_columns_towards_the_lan() -> None:
    picture = lay_out(QUBES, [status(), status(qube="web")])
    boxes = {box.name: box for box in picture.boxes}
    assert set(boxes) == {"work", "web", "sys-firewall", "sys-net", LAN}
    assert boxes["work"].x == boxes["web"].x < boxes["sys-firewall"].x < boxes["sys-net"].x < boxes[LAN].x
    assert len({(box.x, box.y) for box in picture.boxes}) == 5
    assert boxes["sys-firewall"].y == (boxes["work"].y + boxes["web"].y) / 2
    assert picture.paths[0].names == (LAN, "sys-net", "sys-firewall", "work")
    assert max(box.x for box in picture.boxes) < picture.width


def test_a_broken_hop_is_marked_and_an_internal_forward_begins_at_the_net_qube() -> None:
    inside = status(WEB.replace("external", "internal"))
    picture = lay_out(QUBES, [status(state="failed"), inside])
    assert [(path.names, path.broken) for path in picture.paths] == [
        ((LAN, "sys-net", "sys-firewall", "work"), "sys-net"),
        (("sys-firewall", "work"), None),
    ]


def test_what_dom0_tells_amiss_still_makes_a_picture() -> None:
    ring = (qube("wa", "wb"), qube("wb", "wa"))
    assert lay_out(ring, [status(qube="wa"), status(qube="unknown")]).height > 0
    assert lay_out((), []).paths == ()
    assert {box.name for box in lay_out(QUBES, [], everything=True).boxes} >= {"work", "web", "sys-net"}


def test_a_port_is_taken_only_by_forwards_of_the_same_entrance() -> None:
    elsewhere = (*QUBES, qube("sys-usb"), qube("wifi", "sys-usb"))
    told = [
        status(),
        status(qube="wifi"),
        dataclasses.replace(status(qube="web"), rule=parse_forward(f"action=forward {WEB} enabled=no")),
    ]
    place = place_of(QubeName("web"), elsewhere, told)
    assert (place.net_qube, place.outermost) == ("sys-firewall", "sys-net")
    assert [holder.qube for holder in place.holders] == ["work"]


def predicted(forward: Draft, told: list[RuleStatus], qubes: tuple[NetworkQube, ...] = QUBES) -> str:
    """Where the dialog of web says that clients will find it."""
    checked = check(forward, place_of(QubeName("web"), qubes, told), NOW, lookup_service)
    assert checked.rule is not None, checked.errors
    return checked.sentence.partition("port 1 at ")[2]


TWO_CARDS = "192.168.1.10/24,10.9.0.5/16,2001:db8::5/64"


@pytest.mark.parametrize(
    ("other", "fields", "where"),
    [
        # Of two uplinks the other forward's clients use the one of their own network, and these the other one.
        ("srchost=192.168.1.20", {}, "tcp 192.168.1.10:1 or 10.9.0.5:1"),
        ("srchost=192.168.1.20", {"reach": Reach.ADDRESS, "address": "10.9.0.0/24"}, "tcp 10.9.0.5:1"),
        ("", {"reach": Reach.ADDRESS, "address": "192.168.1.20"}, "tcp 192.168.1.10:1"),
        ("", {"reach": Reach.ANYONE}, "tcp 192.168.1.10:1 or 10.9.0.5:1"),
        # Of a source that the draft's way does not carry nothing is said that could be wrong.
        ("", {"reach": Reach.ADDRESS, "address": "2001:db8::20"}, "tcp port 1 of sys-net"),
    ],
)
def test_f26_the_dialog_predicts_the_addresses_of_its_own_forward_not_another_ones(
    other: str, fields: dict[str, Any], where: str
) -> None:
    told = [status(f"{WEB} {other}".strip(), uplinks=TWO_CARDS)]
    assert predicted(Draft(ports="1", **fields), told) == where


def test_f26_an_ipv6_address_is_predicted_only_where_the_whole_way_has_ipv6() -> None:
    # The other qube's way has IPv6, this one's has not, and the other way round.
    six = status(uplinks=TWO_CARDS)
    for with_ip6, where in (
        ((), "tcp 192.168.1.10:1 or 10.9.0.5:1"),
        (("web",), "tcp 192.168.1.10:1 or 10.9.0.5:1"),
        (("web", "sys-firewall"), "tcp 192.168.1.10:1 or 10.9.0.5:1 or [2001:db8::5]:1"),
    ):
        qubes = tuple(dataclasses.replace(each, ip6=each.name in with_ip6) for each in QUBES)
        assert predicted(Draft(ports="1"), [six], qubes) == where
