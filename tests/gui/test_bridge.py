# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The way from the windows to the laboratory's qubesd never keeps a test waiting for somebody who is dead."""

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest

from lab.base import namespaces as ns
from lab.client import Lab
from portfwd.client.adminapi import AdminClient, CallError, SocketTransport
from tests.gui.bridge import bridge

AT_ONCE = 20.0
"""Seconds; who waits for an answer waits for 120."""


def children(parent: int, words: str) -> list[int]:
    """Child processes with these words in their command line."""
    found = []
    for pid in ns.processes():
        with contextlib.suppress(OSError):
            line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            if ns.process_state(pid)[1] == parent and words in line:
                found.append(pid)
    return found


def test_f24_a_bridge_whose_process_died_is_seen_at_once(lab: Lab, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="the bridge died"), bridge(lab, tmp_path / "sock") as path:
        client = AdminClient(SocketTransport(path))
        assert client.qubes()
        (program,) = children(os.getpid(), str(path))
        (carrier,) = children(program, str(path))
        os.kill(carrier, signal.SIGTERM)
        assert ns.wait_for_end(program, AT_ONCE)
        began = time.monotonic()
        with pytest.raises(CallError, match="Connection refused"):
            client.qubes()
        assert time.monotonic() - began < AT_ONCE


def test_f24_a_qubesd_that_is_away_for_a_moment_does_not_end_the_bridge(lab: Lab, tmp_path: Path) -> None:
    with bridge(lab, tmp_path / "sock") as path:
        client = AdminClient(SocketTransport(path))
        lab.service("dom0", "qubesd", "stop")
        try:
            began = time.monotonic()
            with pytest.raises(CallError):
                client.qubes()
            assert time.monotonic() - began < AT_ONCE
        finally:
            lab.service("dom0", "qubesd", "start")
        assert client.qubes()
