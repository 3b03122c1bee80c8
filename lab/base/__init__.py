# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""What machines are made of: namespaces, ways into them, and the file that describes a laboratory."""
