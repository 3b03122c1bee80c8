# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""What a caller is told of other qubes than the one that it asks about."""

import dataclasses

import pytest

from portfwd.api.errors import WordedError
from portfwd.dom0.usecases.caller import DOM0, FORWARDS, Caller
from portfwd.wire.values import QubeName
from tests.dom0.asking import WEB
from tests.fakes.app import FakeApp
from tests.fakes.service import Service

STORED = WEB
WORK, PERSONAL = QubeName("work"), QubeName("personal")


def only(*seen: str) -> Caller:
    """A caller who may ask for the forwards of these qubes and for nothing else."""
    return Caller("sys-gui", lambda name, argument: name in seen and argument == FORWARDS)


def test_who_may_not_ask_there_is_not_told_who_has_the_port(app: FakeApp, service: Service) -> None:
    for caller, owner in ((DOM0, "'work'"), (only("work"), "'work'"), (only(), "a forward that you may not see")):
        with pytest.raises(WordedError, match=r"443.*is taken at 'sys-net' by") as refused:
            service.set(app.personal, WEB, caller=caller)
        assert owner in str(refused.value)
        assert ("'work'" in str(refused.value)) == (owner == "'work'")


def test_a_problem_in_a_plan_names_its_owner_only_to_who_may_see_it(app: FakeApp, service: Service) -> None:
    app.personal.netvm = None
    service.set(app.personal, WEB)
    app.personal.netvm = app.firewall
    planned = service.refresh()
    assert planned is not None
    (problem,) = planned.problems
    assert problem.qube == PERSONAL
    texts = [caller.told(planned).problems[0].text for caller in (DOM0, only("work"), only("personal"))]
    assert texts[0] == texts[1] == problem.text
    assert "work" in texts[0]
    assert "work" not in texts[2]
    assert [dataclasses.replace(only().told(planned).problems[0], text=problem.text)] == [problem]


def test_what_a_restore_brings_comes_in_paused_and_what_is_open_stays(app: FakeApp, service: Service) -> None:
    other = WEB.replace("443-443", "80-80")
    restoring = dataclasses.replace(DOM0, restores=True)
    service.set(app.work, WEB + other, caller=restoring)
    assert [stored.rule.enabled for stored in app.work.firewall.forwards] == [True, False]
    service.set(app.work, WEB + other)
    assert [stored.rule.enabled for stored in app.work.firewall.forwards] == [True, True]
