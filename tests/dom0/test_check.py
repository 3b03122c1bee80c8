# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The diagnosis as a pure function, the words of a probing, and qubes that answer a probe badly."""

import asyncio
import ipaddress
import shlex
import sys
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portfwd.api.diagnosis import CheckResult, Diagnosis, format_check
from portfwd.api.forwards import parse_forwards
from portfwd.api.status import HopState, ProblemKind
from portfwd.dom0.asking import probing
from portfwd.dom0.asking.probing import HopTrace, Prober, Trace
from portfwd.dom0.diagnosis.checking import CheckService
from portfwd.dom0.diagnosis.judge import Case, diagnose
from portfwd.dom0.planning.plan import Problem
from portfwd.dom0.storage.store import StoredForward
from portfwd.dom0.usecases.caller import DOM0, Caller
from portfwd.dom0.views.look import Look
from portfwd.dom0.views.queries import StatusService
from portfwd.wire import limits
from portfwd.wire.acknowledgement import Ignored
from portfwd.wire.answers.probe import Answer, Count, Request, RouteWord, Sent, Sight, Way, parse_head, parse_keyed
from portfwd.wire.entry import Entry
from portfwd.wire.errors import RefusedError
from portfwd.wire.values import Family, Proto, QubeName
from tests.dom0.asking import children, run
from tests.fakes.app import FakeApp
from tests.fakes.service import Service

NET, FIREWALL, WORK = QubeName("sys-net"), QubeName("sys-firewall"), QubeName("work")
WAY = (Family.V4, Proto.TCP)
[RULE] = parse_forwards("action=forward forwardtype=external proto=tcp srcports=443 dstports=8443\n")
KEY = f"{RULE.id(WORK)}.4.tcp"
RELAY = "kind=relay side={} listen=443-443 source={} to=10.137.0.{} ports={}"
PATH = (
    (NET, Entry.decode(KEY, RELAY.format("uplink", "neighbours", 5, "443-443"))),
    (FIREWALL, Entry.decode(KEY, RELAY.format("inner", "any", 6, "8443-8443"))),
    (WORK, Entry.decode(KEY, "kind=accept side=uplink listen=8443-8443 source=any")),
)
SIGHT = Sight(None, base=True, rule=True, before=0, door=True, route=RouteWord.VIF, forwarding=True, listening=None)
CLIENT = ipaddress.ip_address("192.168.1.254")
HANDED_ON = Count(Answer.SYN_ACK, arrived=1, passing=1, left=1, back=1, returned=1)
LET_IN = Count(Answer.SYN_ACK, arrived=1, local=1, delivered=1, back=1, returned=1)


def verdict(found: Diagnosis) -> str:
    """The word that clients get, or nothing."""
    return next((line[8:] for line in format_check(found).splitlines() if line.startswith("verdict=")), "")


def healthy() -> Case:
    hops = {
        NET: HopTrace(True, {WAY: replace(SIGHT, client=CLIENT)}, {WAY: HANDED_ON}),
        FIREWALL: HopTrace(True, {WAY: SIGHT}, {WAY: HANDED_ON}),
        WORK: HopTrace(True, {WAY: replace(SIGHT, route=None, listening="yes")}, {WAY: LET_IN}),
    }
    states = {(name, entry.key): HopState.APPLIED for name, entry in PATH}
    return Case(WORK, StoredForward(RULE, 1, ""), path=PATH, look=Look(states, {}), trace=Trace(hops, Sent.YES))


def test_f2_a_network_that_does_not_count_has_no_neighbours() -> None:
    """What the agent leaves out of account is no reason to look for the fault elsewhere."""
    uplinks = {NET: tuple(map(ipaddress.ip_interface, ("192.168.1.10/24", "203.0.113.1/1")))}
    ignored = {NET: (Ignored.parse("ens7:network:128.0.0.0/1"),)}
    for left_out, wrong in ({}, False), (ignored, True):
        look = Look(healthy().look.states, uplinks, left_out)
        findings = diagnose(replace(healthy(), look=look, client=ipaddress.ip_address("203.0.113.80")))
        assert any(finding.cause == "not-a-neighbour" for finding in findings.findings) is wrong


@pytest.mark.parametrize("kind", ProblemKind)
def test_why_a_forward_opens_nothing_is_what_its_check_says(kind: ProblemKind) -> None:
    """Mistake: a reason that is no word of a diagnosis, and the check fails instead."""
    problem = Problem(WORK, RULE.id(WORK), kind, NET, "a sentence")
    found = diagnose(replace(healthy(), path=(), problem=problem))
    assert verdict(found) == f"sys-net:{kind}"


def seen(case: Case, name: QubeName, **changes: Any) -> Case:
    """The same with another sight at one hop."""
    hop = case.trace.hops[name]
    hops = dict(case.trace.hops) | {name: replace(hop, sights={WAY: replace(hop.sights[WAY], **changes)})}
    return replace(case, trace=replace(case.trace, hops=hops))


def counted(case: Case, counts: dict[QubeName, Count]) -> Case:
    """The same with other counts."""
    hops = {name: replace(hop, counts={WAY: counts.get(name, Count())}) for name, hop in case.trace.hops.items()}
    return replace(case, trace=replace(case.trace, hops=hops))


def test_a_probe_that_came_through_and_back_is_proof() -> None:
    assert verdict(diagnose(healthy())) == "open"
    assert verdict(diagnose(replace(healthy(), look=Look({}, {})))) == "open"
    assert verdict(diagnose(seen(healthy(), FIREWALL, rule=False))) == "open"


def test_what_comes_behind_the_loss_is_not_blamed() -> None:
    lost = counted(healthy(), {NET: HANDED_ON, FIREWALL: Count(arrived=1, passing=1)})
    assert verdict(diagnose(lost)) == "sys-firewall:dropped"
    # Nothing listens either, but the packet was lost before.
    findings = diagnose(seen(lost, WORK, listening="no"))
    assert verdict(findings) == "sys-firewall:dropped"
    assert {f.cause.value for f in findings.findings if f.result is CheckResult.BAD} == {"dropped"}


def test_what_explains_the_loss_is_the_cause() -> None:
    lost = counted(healthy(), {NET: HANDED_ON, FIREWALL: Count(arrived=1, passing=1)})
    assert verdict(diagnose(seen(lost, FIREWALL, rule=False))) == "sys-firewall:rule-missing"


@pytest.mark.parametrize(
    ("counts", "wanted"),
    [
        ({}, ""),
        ({NET: Count(arrived=1, local=1)}, "sys-net:not-translated"),
        ({NET: Count(arrived=1)}, "sys-net:not-routed"),
        ({NET: Count(Answer.RESET, arrived=1, passing=1, back=1)}, "sys-net:rejected"),
        ({NET: HANDED_ON}, "sys-firewall:not-arrived"),
        ({NET: HANDED_ON, FIREWALL: HANDED_ON, WORK: Count(arrived=1, local=1)}, "work:dropped"),
        ({NET: HANDED_ON, FIREWALL: HANDED_ON, WORK: Count(arrived=1, passing=1)}, "work:not-its-address"),
    ],
)
def test_the_place_of_the_loss_is_named(counts: dict[QubeName, Count], wanted: str) -> None:
    assert verdict(diagnose(counted(healthy(), counts))) == wanted


def test_answers_that_are_lost_are_told_from_silence() -> None:
    gone = replace(HANDED_ON, back=0, returned=0, answer=Answer.NONE)
    quiet = {NET: gone, FIREWALL: gone}
    silent = quiet | {WORK: replace(LET_IN, back=0, returned=0, answer=Answer.NONE)}
    assert verdict(diagnose(counted(healthy(), silent))) == "work:silent"
    assert verdict(diagnose(counted(healthy(), quiet | {WORK: replace(LET_IN, returned=0)}))) == "work:answer-dropped"
    assert verdict(diagnose(counted(healthy(), quiet | {WORK: LET_IN}))) == "sys-firewall:answer-lost"


def test_without_a_probe_nothing_is_certain_but_what_was_seen() -> None:
    blind = replace(healthy(), trace=Trace())
    assert verdict(diagnose(blind)) == ""
    states = dict(blind.look.states) | {(FIREWALL, KEY): HopState.UNRESOLVED}
    assert verdict(diagnose(replace(blind, look=Look(states, {})))) == "sys-firewall:unresolved"


@pytest.mark.parametrize("word", ["no-route", "not-forwarding"])
def test_f28_what_an_agent_says_of_the_way_gives_way_to_what_is_seen(word: str) -> None:
    lost = counted(healthy(), {NET: HANDED_ON, FIREWALL: Count(arrived=1, passing=1)})
    told = replace(lost, look=Look(dict(lost.look.states) | {(FIREWALL, KEY): HopState(word)}, {}))
    assert verdict(diagnose(told)) == "sys-firewall:dropped", "its way is there by now"
    assert verdict(diagnose(seen(told, FIREWALL, door=False))) == "sys-firewall:door-missing"
    seen_too = {"no-route": {"route": RouteWord.UPLINK}, "not-forwarding": {"forwarding": False}}[word]
    findings = [f for f in diagnose(seen(told, FIREWALL, **seen_too)).findings if f.result is CheckResult.BAD]
    assert [(f.hop, f.cause.value) for f in findings] == [(FIREWALL, word)], "told once"
    assert verdict(diagnose(replace(told, trace=Trace()))) == f"sys-firewall:{word}"


texts = st.one_of(st.text(max_size=80), st.text("abcdeghilmnoprstuvwy=-0123456789. ", max_size=160))


@given(texts)
def test_any_text_is_read_or_refused(text: str) -> None:
    for parse in (Sight.parse, Count.parse, Way.parse, Request.parse_head, parse_keyed, lambda t: parse_head(t, 1)):
        try:
            parse(text)
        except RefusedError:
            continue


def test_what_is_written_is_read_back() -> None:
    for count in (HANDED_ON, LET_IN, Count()):
        assert Count.parse(str(count)) == count
    for sight in (SIGHT, replace(SIGHT, client=CLIENT, route=None, listening="local")):
        assert Sight.parse(str(sight)) == sight
    for way in (Way(PATH[0][1], 443, 40000, None), Way(PATH[2][1], 8443, 40000, CLIENT)):
        assert Way.parse(str(way)) == way


class Hop:
    """A qube whose probe service is a shell script."""

    def __init__(self, script: str) -> None:
        self._script = script

    async def run_service(self, service: str, *, user: str, **streams: Any) -> asyncio.subprocess.Process:
        assert (service, user) == ("qubes.PortForwardProbe", "root")
        return await asyncio.create_subprocess_exec("sh", "-c", self._script, **streams)


class Unanswered(Hop):
    """A qube that is never called: qubesd gets no further."""

    async def run_service(self, service: str, *, user: str, **streams: Any) -> asyncio.subprocess.Process:
        await asyncio.sleep(1000)
        return await super().run_service(service, user=user, **streams)


def script(sight: Sight, count: Count) -> str:
    head = f"version=1 ways=1 agent=yes\\n{KEY} {sight}\\narmed=yes\\n"
    told = f"{KEY} {count}\\nend\\n"
    cases = f"send) echo sent=yes;; tell) printf '{told}';;"
    return f"printf '{head}'; while read word; do case $word in {cases} esac; done"


def late(sight: Sight, count: Count) -> str:
    """The same, late at each step; in one process, as what a shell has started outlives it when it is killed."""
    answers = {
        "": f"version=1 ways=1 agent=yes\n{KEY} {sight}\narmed=yes\n",
        "send\n": "sent=yes\n",
        "tell\n": f"{KEY} {count}\nend\n",
    }
    program = (
        "import itertools, sys, time\n"
        "for word in itertools.chain([''], sys.stdin):\n"
        f"    if word in {answers}:\n"
        "        time.sleep(0.8)\n"
        f"        print({answers}[word], end='', flush=True)\n"
    )
    return f"exec {shlex.quote(sys.executable)} -c {shlex.quote(program)}"


@pytest.mark.parametrize("bad", ["yes", "printf '\\033[2J\\n'", "true", "echo version=1 ways=1 agent=yes; yes x"])
def test_a_hop_that_answers_badly_costs_its_own_part_only(bad: str) -> None:
    good = healthy().trace.hops
    vms = {name: Hop(script(hop.sights[WAY], hop.counts[WAY])) for name, hop in good.items()}
    assert run(Prober().trace(PATH, vms, {})) == healthy().trace
    found = run(Prober().trace(PATH, vms | {FIREWALL: Hop(bad)}, {}))
    assert found == replace(healthy().trace, hops={NET: good[NET], WORK: good[WORK]})


@pytest.fixture
def checked(tmp_path: Path) -> tuple[CheckService, FakeApp, str]:
    """Three hops that take their time for a probing, and the words that ask for it."""
    app = FakeApp(tmp_path)
    for vm, hop in zip((app.net, app.firewall, app.work), healthy().trace.hops.values(), strict=True):
        vm.services[limits.PROBE_SERVICE] = f"sleep 0.1; {script(hop.sights[WAY], hop.counts[WAY])}"
    service = Service(app, "boot-1")
    service.set(app.work, f"{RULE}\n")
    return CheckService(StatusService(app, service)), app, f"rule={RULE.id(WORK)}\n"


async def at_once(checks: list[Coroutine[Any, Any, str]]) -> tuple[list[float], list[tuple[float, str]]]:
    """When those that were made had their diagnosis, and when the others were refused, and why; in seconds."""
    began = asyncio.get_running_loop().time()
    made: list[float] = []
    refused: list[tuple[float, str]] = []

    async def one(check: Coroutine[Any, Any, str]) -> None:
        try:
            assert "verdict=open" in await check
            made.append(asyncio.get_running_loop().time() - began)
        except RefusedError as error:
            refused.append((asyncio.get_running_loop().time() - began, str(error)))

    await asyncio.gather(*map(one, checks))
    return made, refused


def test_f20_of_twenty_checks_few_wait_and_the_rest_is_told_at_once(checked: tuple[CheckService, FakeApp, str]) -> None:
    """Each waited for all before it: the last of twenty half a minute, with no word."""
    service, app, words = checked
    callers = [Caller(f"gui-{number}", DOM0.may) for number in range(20)]
    made, refused = run(at_once([service.check(app.work, words, caller) for caller in callers]))
    assert (len(made), len(refused)) == (4, 16)
    assert {why.partition(":")[0] for _, why in refused} == {"busy"}
    assert max(then for then, _ in refused) < min(made)
    again, _ = run(at_once([service.check(app.work, words, callers[0])]))
    assert len(again) == 1, "who comes later gets his turn"


def test_f20_one_caller_leaves_room_for_the_others(checked: tuple[CheckService, FakeApp, str]) -> None:
    service, app, words = checked
    hasty, other = Caller("hasty", DOM0.may), Caller("other", DOM0.may)
    made, refused = run(at_once([service.check(app.work, words, who) for who in [hasty] * 10 + [other]]))
    assert (len(made), len(refused)) == (3, 8)


def test_f20_hops_that_drag_their_feet_keep_the_next_check_waiting_for_a_bounded_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each took as long as one step may take, at every step, and all who waited waited for all steps."""
    monkeypatch.setattr(probing, "PROBE_SECONDS", 1.0)
    slow = {name: Hop(late(hop.sights[WAY], hop.counts[WAY])) for name, hop in healthy().trace.hops.items()}
    dead = {name: Unanswered("") for name in slow}

    async def seconds(vms: dict[QubeName, Hop]) -> float:
        began = asyncio.get_running_loop().time()
        await Prober().trace(PATH, vms, {})
        return asyncio.get_running_loop().time() - began

    for vms in (slow, dead):
        assert run(seconds(vms)) < 2.5


def test_f20_who_leaves_while_a_hop_does_not_end_leaves_no_process_behind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(probing, "_END_SECONDS", 60.0)
    deaf = {name: Hop(f"echo no; cat; : > {tmp_path / name}; exec sleep 1000") for name in healthy().trace.hops}

    async def leave() -> set[int]:
        before = children()
        task = asyncio.ensure_future(Prober().trace(PATH, deaf, {}))
        while not all((tmp_path / name).exists() for name in deaf):
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task])
        return children() - before

    assert run(leave()) == set()


def test_f20_who_gives_up_gives_his_place_back(checked: tuple[CheckService, FakeApp, str]) -> None:
    service, app, words = checked

    async def leave() -> str:
        tasks = [asyncio.ensure_future(service.check(app.work, words, DOM0)) for _ in range(2)]
        await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        return await service.check(app.work, words, DOM0)

    assert "verdict=open" in run(leave())
