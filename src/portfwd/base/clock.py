# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The clocks by which rules end, and a descriptor that tells when the wall clock was set or the machine has slept.

The wall clock may be set by anybody at any time. CLOCK_BOOTTIME cannot be set and counts suspend; CLOCK_MONOTONIC is
that of select(2) and of the kernel's timers, and stands still in suspend. Sources: clock_gettime(2), timerfd_create(2).
"""

import ctypes
import errno
import os
import time
from typing import NamedTuple

_TFD_NONBLOCK, _TFD_CLOEXEC = os.O_NONBLOCK, os.O_CLOEXEC
_TFD_TIMER_ABSTIME, _TFD_TIMER_CANCEL_ON_SET = 1, 2
_NEVER = 1 << 33
"""Epoch seconds: a far time (the year 2242) that fits into every time_t and ktime_t."""


class Moment(NamedTuple):
    """One moment by three clocks, in seconds: since 1970, since boot, since boot without suspend."""

    wall: float
    boot: float
    monotonic: float


def read_clocks() -> Moment:
    """Read all three clocks (clock_gettime(2))."""
    return Moment(time.time(), time.clock_gettime(time.CLOCK_BOOTTIME), time.monotonic())


class _TimeSpec(ctypes.Structure):
    _fields_ = (("sec", ctypes.c_long), ("nsec", ctypes.c_long))


class _Timer(ctypes.Structure):
    _fields_ = (("interval", _TimeSpec), ("value", _TimeSpec))


class ClockWatch:
    """A descriptor that becomes readable when the wall clock was set or the machine resumed from suspend."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._timer = self._libc.timerfd_create(time.CLOCK_REALTIME, _TFD_NONBLOCK | _TFD_CLOEXEC)
        if self._timer < 0:
            raise _failure()
        self._arm()

    def fileno(self) -> int:
        """For select."""
        return int(self._timer)

    def read(self) -> bool:
        """Take the notice; whether the clock has jumped since the last call."""
        try:
            os.read(self._timer, 8)
        except BlockingIOError:
            return False
        except OSError:
            # ECANCELED: the notice. The timer is as good as gone until it is set again.
            self._arm()
        return True

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._timer)

    def _arm(self) -> None:
        never = _Timer(_TimeSpec(0, 0), _TimeSpec(_NEVER, 0))
        flags = _TFD_TIMER_ABSTIME | _TFD_TIMER_CANCEL_ON_SET
        if self._libc.timerfd_settime(self._timer, flags, ctypes.byref(never), None) < 0:
            failure = _failure()
            # The clock jumped again while the timer was armed: the kernel reports that, and has armed it nevertheless.
            if failure.errno != errno.ECANCELED:
                raise failure


def _failure() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))
