# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""What both sides run: clocks, ends in time, the QubesDB protocol. Standard library and wire only."""
