# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""What happens to qubes over time: start and stop, their network, what they read in QubesDB."""
