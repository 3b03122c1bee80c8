# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""admin.Events as Qt signals. Reads in a thread, and connects again when qubesd was away."""

import threading

from PyQt6.QtCore import QObject, pyqtSignal

from portfwd.api.frames import ESTABLISHED
from portfwd.client.adminapi import CallError
from portfwd.client.events import EventTransport, events
from portfwd.client.streams import Stream
from portfwd.wire.errors import RefusedError

_PAUSE_FIRST, _PAUSE_MAX = 0.5, 10.0
"""Seconds between two attempts to reach qubesd."""


class Feed(QObject):
    """`established`: a stream begins, and everything has to be looked at again. `lost`: why there is no stream."""

    established = pyqtSignal()
    happened = pyqtSignal(str, str)
    lost = pyqtSignal(str)

    def __init__(self, transport: EventTransport, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._transport = transport
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._stream: Stream | None = None
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """End the thread; no signal comes any more."""
        self._over.set()
        with self._lock:
            if self._stream is not None:
                self._stream.stop()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        pause = _PAUSE_FIRST
        while not self._over.is_set():
            try:
                stream = self._transport.stream("dom0", "admin.Events")
                with self._lock:
                    self._stream = stream
                    if self._over.is_set():
                        stream.stop()
                try:
                    for event in events(stream):
                        if event.name == ESTABLISHED:
                            pause = _PAUSE_FIRST
                            self._tell("established")
                        else:
                            self._tell("happened", event.subject, event.name)
                        if self._over.is_set():
                            break
                finally:
                    with self._lock:
                        self._stream = None
                    stream.close()
                reason = "dom0 has ended the stream of events"
            except (CallError, RefusedError, OSError) as error:
                reason = str(error)
            self._tell("lost", reason)
            self._over.wait(pause)
            pause = min(pause * 2, _PAUSE_MAX)

    def _tell(self, signal: str, *words: str) -> None:
        if self._over.is_set():
            return
        try:
            getattr(self, signal).emit(*words)
        except RuntimeError:
            # A window of another program was destroyed, and Qt has destroyed this object with it.
            self._over.set()
