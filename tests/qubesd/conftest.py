# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Worlds for the tests: one of their own, or one that a module shares."""

from collections.abc import Iterator

import pytest

from tests.qubesd.world import World, chain


@pytest.fixture
def world() -> Iterator[World]:
    """The chain, everything up to `work` running."""
    made = World(chain())
    try:
        made.running("sys-net", "sys-firewall", "work")
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def halted() -> Iterator[World]:
    """The chain with nothing running, shared by the tests of a module."""
    made = World(chain(autostart=False))
    try:
        yield made
    finally:
        made.close()
