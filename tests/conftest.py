# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Fixtures that several folders of tests share."""

import os
import signal
from collections.abc import Iterator

import pytest

from lab.client import Lab

# A shell that starts the suite in the background has its children ignore Ctrl-C, and so would all that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """The default laboratory, one for all tests; a test puts back what it changes."""
    with Lab(f"tests-{os.getpid()}") as lab:
        yield lab
