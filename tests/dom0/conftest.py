# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Four qubes and dom0's service for them, on a clock that a test moves."""

from pathlib import Path

import pytest

from tests.dom0.asking import Clock
from tests.fakes.app import FakeApp
from tests.fakes.service import Service


@pytest.fixture
def app(tmp_path: Path) -> FakeApp:
    return FakeApp(tmp_path)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def service(request: pytest.FixtureRequest, app: FakeApp, clock: Clock) -> Service:
    """It begins with the forwards STORED of the module, which lead to work, told to all qubes on the way."""
    made = Service(app, "boot-1", clock, clock)
    if stored := getattr(request.module, "STORED", ""):
        made.set(app.work, stored)
        made.refresh()
    return made
