# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""A test that hangs fails, with the stacks of all threads on its standard error, and the next one begins."""

import faulthandler
import signal
import sys
from collections.abc import Iterator

import pytest

LIMIT = 600.0
"""Seconds for each of a test's fixtures, itself and its end; the slowest takes 130 on a calm machine."""
# Seconds until it is interrupted again, should it go on waiting.
_AGAIN = 20.0


def _over(_number: int, _frame: object) -> None:
    faulthandler.dump_traceback(sys.__stderr__, all_threads=True)
    pytest.fail(f"this took longer than {LIMIT:.0f} s")


def _limited() -> Iterator[None]:
    before = signal.signal(signal.SIGALRM, _over)
    signal.setitimer(signal.ITIMER_REAL, LIMIT, _AGAIN)
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup() -> Iterator[None]:
    return (yield from _limited())


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call() -> Iterator[None]:
    return (yield from _limited())


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown() -> Iterator[None]:
    return (yield from _limited())
