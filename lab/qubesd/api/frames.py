# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Prints the frames of qubesd's answers; the product has the parsers and the form (portfwd/api/frames.py)."""

from collections.abc import Mapping

from portfwd.api.frames import EVENT, ErrorFrame, Event


def format_content(content: str) -> bytes:
    """Frame a content."""
    return b"0\0" + content.encode()


def format_error(error: ErrorFrame) -> bytes:
    """Frame an error. qubesd sends clients no traceback."""
    return f"2\0{error.kind}\0\0{error.text}\0".encode()


def format_event(event: Event, details: Mapping[str, str]) -> bytes:
    """Frame an event. No key may be empty."""
    fields = [event.subject, event.name, *(part for pair in details.items() for part in pair), ""]
    return EVENT + b"\0" + "\0".join(fields).encode("ascii") + b"\0"
