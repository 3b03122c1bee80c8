# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""What qubesd reaches outside of itself: the hypervisor, the QubesDB daemons, qrexec."""
