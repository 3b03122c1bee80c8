# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Tests of death at any moment: of qubesd, of an agent, between any two of their steps."""
