# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Windows without a screen, against the laboratory's real Admin API."""

import os
from collections.abc import Callable, Iterator

import pytest
from pytestqt.qtbot import QtBot

from lab.client import Lab
from lab.show.demo import serve
from portfwd.client.adminapi import AdminClient, SocketTransport
from portfwd.gui.shared.tasks import Tasks
from portfwd.gui.shared.watch import Watch
from portfwd.wire.values import QubeName
from tests.gui.bridge import bridge

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
WAIT = 60_000
"""Milliseconds that a test waits for what a user would wait for."""


@pytest.fixture(scope="session")
def transport(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SocketTransport]:
    with bridge(lab, tmp_path_factory.mktemp("bridge") / "qubesd.sock") as path:
        yield SocketTransport(path)


@pytest.fixture(scope="session")
def client(transport: SocketTransport) -> AdminClient:
    return AdminClient(transport)


@pytest.fixture(scope="session")
def server(lab: Lab) -> Iterator[None]:
    """In work: a page at 8443, and a shell of sorts at 22."""
    with serve(lab, "work", "--http", "8443", "--tcp", "22") as process:
        yield
        process.terminate()


def forget(client: AdminClient) -> None:
    for qube in ("work", "personal"):
        client.edit_forwards(QubeName(qube), lambda _: ())


@pytest.fixture
def tasks(qtbot: QtBot) -> Iterator[Tasks]:
    tasks = Tasks()
    yield tasks
    # What is still under way may have to deliver something before it can end.
    qtbot.waitUntil(lambda: not tasks.busy, timeout=WAIT)
    tasks.close()


@pytest.fixture
def watch(client: AdminClient, transport: SocketTransport, tasks: Tasks, qtbot: QtBot) -> Iterator[Watch]:
    forget(client)
    watch = Watch(client, transport, tasks)
    watch.start()
    qtbot.waitUntil(lambda: watch.known, timeout=WAIT)
    yield watch
    watch.close()
    forget(client)


@pytest.fixture
def until(qtbot: QtBot) -> Callable[[Callable[[], bool]], None]:
    """Wait until something is so, as long as a user would."""

    def until(good: Callable[[], bool]) -> None:
        qtbot.waitUntil(good, timeout=WAIT)

    return until
