# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The product on show: the demo, the windows, and the pages and pictures of docs/ that are made from a laboratory."""
