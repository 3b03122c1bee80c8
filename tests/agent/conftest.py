# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The two worlds as fixtures: every test that takes `world` runs in both."""

from collections.abc import Iterator

import pytest

from tests.agent.fake_world import FakeWorld
from tests.agent.kernel_world import KernelWorld
from tests.agent.world import World


@pytest.fixture(scope="session")
def kernel() -> Iterator[KernelWorld]:
    """The network of namespaces, made once."""
    made = KernelWorld()
    yield made
    made.close()


@pytest.fixture(params=["fake", pytest.param("kernel", marks=pytest.mark.slow)])
def world(request: pytest.FixtureRequest) -> World:
    """A world in which only the base firewall stands."""
    if request.param == "fake":
        return FakeWorld()
    made: KernelWorld = request.getfixturevalue("kernel")
    made.reset()
    return made
