# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The planner on random networks and rules: what must hold for every one of them."""

import contextlib
import itertools
from dataclasses import replace
from types import MappingProxyType

from hypothesis import given
from hypothesis import strategies as st

from portfwd.dom0.planning.claims import Seat
from portfwd.dom0.planning.plan import Plan, claims, plan
from portfwd.dom0.planning.snapshot import Qube, Snapshot
from portfwd.dom0.storage.store import StoredForward
from portfwd.model.forward import ForwardRule, parse_forward
from portfwd.wire.entry import Accept, Entry, Relay
from portfwd.wire.errors import RefusedError
from portfwd.wire.values import QubeName, parse_address

NOW = 1000


@st.composite
def rules(draw: st.DrawFn) -> ForwardRule:
    kind = draw(st.sampled_from(["external", "internal"]))
    proto = draw(st.sampled_from(["", " proto=tcp", " proto=udp"]))
    first = draw(st.integers(100, 110))
    length = draw(st.integers(0, 3))
    to = draw(st.integers(100, 110))
    dst = draw(st.sampled_from(["", f" dstports={to}", f" dstports={to}-{to + length}"]))
    source = draw(
        st.sampled_from(["", " srchost=any", " srchost=10.0.0.0/8", " srchost=fd00::/8", " srchost=0.0.0.0/0"])
    )
    rest = draw(st.sampled_from(["", " enabled=no", " expire=999", " expire=2000"]))
    return parse_forward(
        f"action=forward forwardtype={kind}{proto} srcports={first}-{first + length}{dst}{source}{rest}"
    )


@st.composite
def snapshots(draw: st.DrawFn) -> Snapshot:
    qubes: dict[QubeName, Qube] = {}
    count = draw(st.integers(1, 7))
    for number in range(count):
        name = QubeName(f"q{number}")
        forwards = {rule.id(name): rule for rule in draw(st.lists(rules(), max_size=3))}
        qubes[name] = Qube(
            name=name,
            netvm=draw(st.sampled_from([None, *qubes])),
            running=draw(st.integers(0, 9)) > 0,
            ip=parse_address(f"10.137.0.{number + 1}") if draw(st.integers(0, 9)) else None,  # type: ignore[arg-type]
            ip6=parse_address(f"fd09::{number + 1}") if draw(st.booleans()) else None,  # type: ignore[arg-type]
            agent=draw(st.integers(0, 9)) > 0,
            tor_gateway=draw(st.integers(0, 19)) == 0,
            denies=draw(st.integers(0, 19)) == 0,
            forwards=tuple(StoredForward(r, draw(st.integers(0, 3)), "") for r in forwards.values()),
        )
    return Snapshot(MappingProxyType(qubes), NOW)


def live(snapshot: Snapshot) -> dict[str, ForwardRule]:
    return {
        stored.rule.id(qube.name): stored.rule
        for qube in snapshot.qubes.values()
        for stored in qube.forwards
        if stored.rule.enabled and stored.rule.expire != 999
    }


@given(snapshots())
def test_every_live_rule_is_open_or_a_problem_and_never_both(snapshot: Snapshot) -> None:
    planned = plan(snapshot)
    troubled = [problem.rule for problem in planned.problems]
    assert sorted([*planned.paths, *troubled]) == sorted(live(snapshot))


@given(snapshots())
def test_paths_lead_hop_by_hop_to_the_qube(snapshot: Snapshot) -> None:
    for path in plan(snapshot).paths.values():
        for family, proto in {(e.family, e.proto) for _, e in path}:
            hops = [(name, e) for name, e in path if (e.family, e.proto) == (family, proto)]
            for (name, entry), (following, next_entry) in itertools.pairwise(hops):
                assert isinstance(entry, Relay)
                assert snapshot.qubes[following].netvm == name
                assert entry.to == snapshot.qubes[following].address(family)
                assert entry.ports == next_entry.listen
            assert isinstance(hops[-1][1], Accept)
            assert all(snapshot.qubes[name].running and snapshot.qubes[name].agent for name, _ in hops)


@given(snapshots())
def test_no_port_of_an_entrance_is_given_twice(snapshot: Snapshot) -> None:
    for entries in plan(snapshot).entries.values():
        relays = [e for e in entries if isinstance(e, Relay)]
        for place, one in enumerate(relays):
            for other in relays[place + 1 :]:
                same = (one.side, one.family, one.proto) == (other.side, other.family, other.proto)
                assert not (same and one.listen.overlaps(other.listen))


@given(snapshots())
def test_the_order_of_qubes_does_not_matter(snapshot: Snapshot) -> None:
    turned = Snapshot(MappingProxyType(dict(reversed(list(snapshot.qubes.items())))), NOW)

    def facts(planned: Plan) -> tuple[dict[str, set[Entry]], set[object]]:
        return {name: set(found) for name, found in planned.entries.items()}, set(planned.problems)

    assert facts(plan(snapshot)) == facts(plan(turned))


@given(snapshots())
def test_entries_survive_the_wire(snapshot: Snapshot) -> None:
    for entries in plan(snapshot).entries.values():
        for entry in entries:
            assert Entry.decode(entry.key, entry.value) == entry
            assert len(entry.path) <= 63
            assert len(entry.value) < 3072


def granted(snapshot: Snapshot, planned: Plan) -> set[str]:
    """The rules that hold their ports, open or not."""
    return {claim.rule.id(claim.qube) for claim in claims(snapshot) if claim.seat in planned.held.seats}


@given(snapshots())
def test_f5_a_plan_from_what_is_held_is_the_same_plan(snapshot: Snapshot) -> None:
    planned = plan(snapshot)
    again = plan(replace(snapshot, held=planned.held))
    assert {name: set(found) for name, found in again.entries.items()} == {
        name: set(found) for name, found in planned.entries.items()
    }
    assert {(p.rule, p.kind) for p in again.problems} == {(p.rule, p.kind) for p in planned.problems}
    assert again.held.seats == planned.held.seats


@given(snapshots(), st.data())
def test_f5_no_move_takes_a_port_from_who_stays(snapshot: Snapshot, data: st.DataObject) -> None:
    """However many qubes move at the same time, and however old their rules are."""
    before = plan(snapshot)
    names = list(snapshot.qubes)
    moved = {}
    for number, qube in enumerate(snapshot.qubes.values()):
        # Net qubes come first in their order, so that no loop arises.
        netvm = data.draw(st.sampled_from([qube.netvm, None, *names[:number]]))
        moved[qube.name] = replace(qube, netvm=netvm)
    after = replace(snapshot, qubes=MappingProxyType(moved), held=before.held)
    planned = plan(after)
    stay = {
        claim.rule.id(claim.qube)
        for claim in claims(after)
        if claim.seat in before.held.seats and claim.rule.id(claim.qube) in granted(snapshot, before)
    }
    assert stay <= granted(after, planned)


@given(snapshots())
def test_f5_what_is_held_is_read_back_as_it_was_written(snapshot: Snapshot) -> None:
    for seat in plan(snapshot).held.seats:
        assert Seat.parse(str(seat)) == seat


@given(
    st.text(max_size=200) | st.from_regex(r"qube=\w+ side=\w+ hops=[\w,]+ families=[\d,]+ protos=\w+ ports=\S+ to=\S+")
)
def test_f5_whatever_stands_in_the_file_is_a_hold_or_refused(text: str) -> None:
    with contextlib.suppress(RefusedError):
        assert isinstance(Seat.parse(text), Seat)
