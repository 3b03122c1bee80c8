# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""What the client and the router say to each other on the socket of a qube, and the exit statuses of a call."""

STARTED = b"started"
"""First answer to a call whose service runs; the second is its exit status in decimal. A refused call gets an end at
once, any other failure an exit status alone."""
REQUEST_MAX = 66000
"""Bytes of the request: TARGET NUL SERVICE+ARGUMENT, with the three descriptors of the caller."""
EXIT_PROBLEM = 125
EXIT_REFUSED = 126
EXIT_NOT_FOUND = 127
