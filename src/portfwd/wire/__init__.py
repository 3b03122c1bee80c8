# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""What crosses a machine boundary: values, entries, limits, the QubesDB protocol."""
