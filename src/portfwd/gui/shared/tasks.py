# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Runs calls of the Admin API in other threads, so that the windows never wait."""

import threading
from collections.abc import Callable
from typing import TypeVar

from PyQt6.QtCore import QObject, QRunnable, QThreadPool, pyqtSignal

from portfwd.client.adminapi import CallError
from portfwd.wire.errors import RefusedError

T = TypeVar("T")
Failure = CallError | RefusedError
"""Why work has failed. With a RefusedError nothing has changed; with any other that is not known."""
_THREADS = 4


class _Signals(QObject):
    """Signals from a working thread to that of the windows."""

    done = pyqtSignal(object)
    failed = pyqtSignal(object)
    told = pyqtSignal(object)


class _Job(QRunnable):
    def __init__(self, work: Callable[[], object], signals: _Signals) -> None:
        super().__init__()
        self._work, self._signals = work, signals

    def run(self) -> None:
        try:
            result = self._work()
        except (CallError, RefusedError) as error:
            self._emit(self._signals.failed, error)
        except Exception as error:
            # Any error must reach the window that waits.
            self._emit(self._signals.failed, CallError(f"{type(error).__name__}: {error}"))
        else:
            self._emit(self._signals.done, result)

    def _emit(self, signal: object, value: object) -> None:
        try:
            signal.emit(value)  # type: ignore[attr-defined]
        except RuntimeError:
            # The program ends, and Qt has destroyed the receiver.
            return


class Tasks(QObject):
    """One per program. `changed`: whether any work is under way, which tests want to know."""

    def __init__(self, pool: QThreadPool | None = None) -> None:
        """`pool`: threads of another program, for which nobody waits here."""
        super().__init__()
        self._ending = threading.Event()
        self._own = QThreadPool(self) if pool is None else None
        if self._own is not None:
            self._own.setMaxThreadCount(_THREADS)
        self._pool = self._own or pool
        self._running: set[_Signals] = set()

    @property
    def ending(self) -> bool:
        """Whether the program ends, so that no result is shown any more. Safe for other threads."""
        return self._ending.is_set()

    @property
    def busy(self) -> bool:
        """Whether some work is under way."""
        return bool(self._running)

    def run(
        self,
        owner: QObject,
        work: Callable[[Callable[[object], None]], T],
        done: Callable[[T], None],
        failed: Callable[[Failure], None],
        told: Callable[[object], None] | None = None,
    ) -> None:
        """Run work(tell) in another thread; then done(result) or failed(error) here, unless `owner` is gone by then.

        Values given to tell() arrive at `told`, in order.
        """
        # A child of this object: Python may collect an object of its own in any thread, while Qt delivers to it.
        signals = _Signals(self)
        gone = False

        def forget() -> None:
            nonlocal gone
            gone = True

        connection = owner.destroyed.connect(forget)

        def finish(call: Callable[[], None]) -> None:
            self._running.discard(signals)
            signals.deleteLater()
            if not gone:
                owner.destroyed.disconnect(connection)
                call()

        signals.done.connect(lambda result: finish(lambda: done(result)))
        signals.failed.connect(lambda error: finish(lambda: failed(error)))
        if told is not None:
            signals.told.connect(lambda value: None if gone else told(value))
        self._running.add(signals)
        if self._pool is not None:
            self._pool.start(_Job(lambda: work(signals.told.emit), signals))

    def close(self) -> None:
        """Wait for our own threads; their results are not delivered any more."""
        self._ending.set()
        self._running.clear()
        if self._own is not None:
            self._own.clear()
            self._own.waitForDone()
