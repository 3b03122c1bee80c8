# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The Admin API: the socket, the methods, what callers may see, and the extension of the product."""
