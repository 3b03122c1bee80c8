# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The oracle, and what it is held against: a machine on fakes, and the laboratory."""
