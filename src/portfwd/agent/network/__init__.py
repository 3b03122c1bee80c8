# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""What is around a qube: uplinks, neighbours, ways out, host names, ports of its own."""
