# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Notifies systemd of our state: sd_notify(3), the datagram protocol, without a library."""

import os
import socket


def notify(state: str) -> None:
    """Send e.g. READY=1 to the service manager; nothing happens when there is none."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    name = "\0" + address[1:] if address.startswith("@") else address
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.connect(name)
            sender.send(state.encode())
    except OSError:
        return
