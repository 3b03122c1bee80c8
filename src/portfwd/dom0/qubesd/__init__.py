# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Port forwarding inside a stock qubesd (R4.2, R4.3, R4.4): the only place that touches objects of its package."""
