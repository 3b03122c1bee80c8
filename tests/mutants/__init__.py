# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""Which mistakes the fast lane notices: ./run mutants (docs/testing.md)."""
