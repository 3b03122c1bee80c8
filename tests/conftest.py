# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Fixtures that several folders of tests share."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

import portfwd.wire
from lab.client import Lab
from lab.inside.root import PROJECT

pytest_plugins = ("tests.lanes", "tests.leaks", "tests.time_limit")

if not Path(portfwd.wire.__path__[0]).is_relative_to(PROJECT):
    raise pytest.UsageError(f"this would test {portfwd.wire.__path__[0]}, not this checkout: use ./run test")

# For every folder, and before any test is read: a machine that is busy otherwise must not fail a test.
hypothesis.settings.register_profile("tests", deadline=None)
hypothesis.settings.load_profile("tests")

# A shell that starts the suite in the background has its children ignore Ctrl-C, and so would all that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """The default laboratory, one for all tests; a test puts back what it changes."""
    with Lab(f"tests-{os.getpid()}") as lab:
        # Its connection to the hypervisor is its own, too.
        lab.machines()
        yield lab
