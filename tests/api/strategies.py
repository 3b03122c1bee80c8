# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Any answer that dom0 can give."""

import ipaddress

from hypothesis import strategies as st

from portfwd.api.connections import Client, Clients
from portfwd.api.diagnosis import Cause, CheckRequest, CheckResult, Diagnosis, Finding
from portfwd.api.hops import Confirmation
from portfwd.api.plan import PlanAnswer
from portfwd.api.status import (
    Doors,
    Entrance,
    ForwardStatus,
    HopState,
    HopStatus,
    Obstacle,
    Outbound,
    PathStatus,
    ProblemKind,
    Status,
)
from portfwd.wire.answers.connections import Connection
from portfwd.wire.answers.preview import Preview
from portfwd.wire.answers.report import Listening
from portfwd.wire.entry import Entry, Relay
from portfwd.wire.values import Family, Proto, QubeName, RuleId
from tests.agent.strategies import entry_sets
from tests.model.strategies import forward_rules

names = st.from_regex(r"[a-zA-Z][a-zA-Z0-9_.-]{0,12}", fullmatch=True).map(QubeName)
sentences = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40)
rule_ids = st.integers(0, 2**64 - 1).map(lambda n: RuleId(f"{n:016x}"))
counts = st.none() | st.integers(0, 10**19)
addresses = st.ip_addresses(v=4) | st.ip_addresses(v=6)
interfaces = st.tuples(st.ip_addresses(v=4), st.integers(0, 32)) | st.tuples(st.ip_addresses(v=6), st.integers(0, 128))


@st.composite
def hops(draw: st.DrawFn, entry: Entry, *, at_entrance: bool, told: bool) -> HopStatus:
    name, state = draw(names), draw(st.sampled_from(HopState))
    if not told:
        return HopStatus(name, entry, HopState.PLANNED)
    if isinstance(entry, Relay):
        hits, last = (draw(counts), draw(counts)) if at_entrance else (None, None)
        return HopStatus(name, entry, state, hits=hits, last=last)
    listening = draw(st.none() | st.sampled_from(Listening))
    return HopStatus(name, entry, state, listening, packets=draw(counts), bytes=draw(counts), connections=draw(counts))


@st.composite
def paths(draw: st.DrawFn, rule: RuleId, *, told: bool) -> PathStatus:
    if draw(st.booleans()):
        return PathStatus(paused=draw(names))
    if draw(st.booleans()):
        return PathStatus(obstacle=Obstacle(draw(names), draw(st.sampled_from(ProblemKind)), draw(sentences)))
    found: list[HopStatus] = []
    for entry in draw(entry_sets):
        same = Entry.decode(f"{rule}.{int(entry.family)}.{entry.proto}", entry.value)
        hop = draw(hops(same, at_entrance=not found, told=told))
        if found and hop.hop == found[0].hop:
            continue
        found.append(hop)
    return PathStatus(tuple(found))


@st.composite
def forwards(draw: st.DrawFn, number: int) -> ForwardStatus:
    qube, rule = draw(names), draw(forward_rules())
    rule_id = rule.id(qube)
    path = draw(paths(rule_id, told=True))
    if draw(st.booleans()):
        return ForwardStatus(qube, rule_id, number, rule, path)
    return ForwardStatus(
        qube,
        rule_id,
        number,
        rule,
        path,
        draw(st.sampled_from(Doors)),
        draw(st.none() | st.sampled_from(Listening)),
        tuple(draw(st.lists(names, max_size=3))),
        draw(st.dictionaries(names, st.sampled_from(Outbound), max_size=3)),
    )


@st.composite
def statuses(draw: st.DrawFn) -> Status:
    found: dict[tuple[QubeName, RuleId], ForwardStatus] = {}
    for number in range(draw(st.integers(0, 4))):
        one = draw(forwards(number))
        found.setdefault((one.qube, one.id), one)
    uplinks = st.lists(interfaces.map(ipaddress.ip_interface), max_size=3).map(tuple)
    entrances = st.dictionaries(names, st.builds(Entrance, uplinks, sentences), max_size=3)
    unread = st.dictionaries(names, sentences, max_size=3)
    return Status(tuple(found.values()), draw(entrances), draw(unread))


elements = st.sampled_from(
    [
        "ip in-port { tcp . 22 : goto anyone }",
        "ip6 down-map { tcp . 5000 timeout 60s : fd09::20 . 22 }",
        'ip in-sources { 192.168.0.0/16 comment "RULES" }',
    ]
)
previews = st.builds(
    Preview, st.lists(elements, min_size=1, max_size=3).map(tuple), st.sampled_from((0, 1, 12, 999_999_999))
)


@st.composite
def plans(draw: st.DrawFn) -> PlanAnswer:
    # A rule has at least one line.
    planned = {rule: draw(paths(rule, told=False)) for rule in draw(st.lists(rule_ids, max_size=3, unique=True))}
    told = {rule: path for rule, path in planned.items() if path != PathStatus()}
    return PlanAnswer(told, draw(st.dictionaries(names, st.none() | previews, max_size=3)))


@st.composite
def confirmations(draw: st.DrawFn) -> tuple[Confirmation, ...]:
    found = draw(st.lists(names, max_size=4, unique=True))
    return tuple(Confirmation(name, draw(st.booleans()), draw(st.booleans())) for name in found)


@st.composite
def connections(draw: st.DrawFn) -> Connection:
    address = draw(addresses)
    port, to = draw(st.integers(0, 65535)), draw(st.integers(1, 65535))
    return Connection(Family(address.version), draw(st.sampled_from(Proto)), address, port, to)


clients = st.builds(
    Clients, st.lists(st.builds(Client, rule_ids, connections()), max_size=4).map(tuple), st.integers(0, 999_999_999)
)
findings = st.builds(Finding, names, st.sampled_from(Cause), st.sampled_from(CheckResult), sentences)
diagnoses = st.lists(findings, min_size=1, max_size=5).map(Diagnosis.of)
check_requests = st.builds(CheckRequest, rule_ids, st.none() | addresses)
