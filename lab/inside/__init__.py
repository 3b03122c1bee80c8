# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""What runs inside the machines of the laboratory: their first process, their network setup, their services."""
