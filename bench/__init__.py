# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""What the ruleset costs: per packet, per change, and under load, as ratios to plain routing through the same chain."""
