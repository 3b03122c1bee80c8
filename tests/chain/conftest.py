# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""One laboratory for all these tests; each test begins and ends without any forward."""

import os
from collections.abc import Iterator

import pytest

from tests.chain.world import World, running


@pytest.fixture(scope="package")
def home() -> Iterator[World]:
    """The laboratory with its servers."""
    with running(f"chain-{os.getpid()}") as world:
        yield world


@pytest.fixture
def world(home: World) -> Iterator[World]:
    """The same, cleared after the test. What else a test changes it puts back itself."""
    yield home
    home.clear()
