# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""What the kernel tells and takes: netlink, nftables, conntrack, sockets. Knows no policy."""
