# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""A stand-in for qubesd: the Admin API, qubes and their events, QubesDB entries and firewall files of dom0."""
