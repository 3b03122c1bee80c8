# SPDX-License-Identifier: GPL-2.0-or-later
# SPDX-FileCopyrightText: 2026 The Qubes Port Forwarding authors
"""The qubesd world of tests/qubesd."""

from tests.qubesd.conftest import world

__all__ = ["world"]
