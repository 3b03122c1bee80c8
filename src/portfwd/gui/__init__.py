# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The graphical side: state and decisions in `state`, without Qt; windows in `widgets`."""
