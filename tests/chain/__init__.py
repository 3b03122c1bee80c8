# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Real packets through whole chains of net qubes: rules typed in dom0, clients on the LAN, servers in qubes."""
