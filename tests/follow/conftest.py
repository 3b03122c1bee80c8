# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The shared laboratory with forwards of three qubes in place; each test begins and ends with them."""

import contextlib
from collections.abc import Iterator

import pytest

from lab.client import Lab
from tests.follow.world import TIMES, World


@pytest.fixture(scope="package")
def home(lab: Lab) -> Iterator[World]:
    """The laboratory with its servers and forwards."""
    with contextlib.ExitStack() as stack:
        world = World(lab, stack)
        world.restore()
        yield world
        world.clear()


@pytest.fixture
def world(home: World) -> Iterator[World]:
    """The same; what a test leaves changed, as when it fails, is put back."""
    yield home
    home.restore()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tell how long each event took to arrive in every kernel."""
    if TIMES:
        terminalreporter.section("from event to right state in every qube")
        for name, event, after in TIMES:
            terminalreporter.write_line(f"event {event:6.3f} s, then {after:6.3f} s  {name}")
