# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Forwards follow the network: every event of a Qubes machine, and after each one the state of every kernel."""
